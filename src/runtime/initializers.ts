/** @file Finds the initializers a model expects from outside, so that a missing or ill-shaped weight is told by name. */

export interface ExternalInitializer {
  readonly onnxType: number;
  readonly shape: readonly number[];
}

/** Walks the fields of a protobuf message without decoding what is skipped. */
class Reader {
  readonly #bytes: Uint8Array;
  #at: number;
  readonly #end: number;

  constructor(bytes: Uint8Array, start: number, end: number) {
    if (end > bytes.length || start > end) throw new RangeError("truncated message");
    this.#bytes = bytes;
    this.#at = start;
    this.#end = end;
  }

  get done(): boolean {
    return this.#at >= this.#end;
  }

  varint(): number {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = this.#at < this.#end ? this.#bytes[this.#at++]! : undefined;
      if (byte === undefined || scale > 2 ** 63) throw new RangeError("truncated number");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  }

  /** The body of a length-delimited field. */
  message(): Reader {
    const length = this.varint();
    const start = this.#at;
    this.#at += length;
    return new Reader(this.#bytes, start, this.#at);
  }

  text(): string {
    const body = this.message();
    return new TextDecoder().decode(this.#bytes.subarray(body.#at, body.#end));
  }

  skip(wireType: number): void {
    if (wireType === 0) this.varint();
    else if (wireType === 1) this.#at += 8;
    else if (wireType === 2) this.message();
    else if (wireType === 5) this.#at += 4;
    else throw new RangeError(`wire type ${wireType}`);
  }
}

/** Calls `visit` for each field; what it does not read (by returning false) is skipped. */
function eachField(reader: Reader, visit: (field: number, wireType: number) => boolean): void {
  while (!reader.done) {
    const tag = reader.varint();
    if (!visit(Math.floor(tag / 8), tag % 8)) reader.skip(tag % 8);
  }
}

const LENGTH_DELIMITED = 2;
// Field numbers of onnx.proto.
const MODEL_GRAPH = 7;
const GRAPH_INITIALIZER = 5;
const TENSOR_DIMS = 1;
const TENSOR_DATA_TYPE = 2;
const TENSOR_NAME = 8;
const TENSOR_DATA_LOCATION = 14;
const EXTERNAL = 1;

/** The initializers of a ModelProto whose data is external; undefined for bytes that are no protobuf message. */
export function externalInitializers(model: Uint8Array): ReadonlyMap<string, ExternalInitializer> | undefined {
  const found = new Map<string, ExternalInitializer>();
  try {
    const reader = new Reader(model, 0, model.length);
    eachField(reader, (field, wireType) => {
      if (field !== MODEL_GRAPH || wireType !== LENGTH_DELIMITED) return false;
      const graph = reader.message();
      eachField(graph, (graphField, graphWireType) => {
        if (graphField !== GRAPH_INITIALIZER || graphWireType !== LENGTH_DELIMITED) return false;
        const tensor = readTensor(graph.message());
        if (tensor.external) found.set(tensor.name, { onnxType: tensor.onnxType, shape: tensor.shape });
        return true;
      });
      return true;
    });
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
  return found;
}

function readTensor(reader: Reader): { name: string; onnxType: number; shape: number[]; external: boolean } {
  const tensor = { name: "", onnxType: 0, shape: [] as number[], external: false };
  eachField(reader, (field, wireType) => {
    if (field === TENSOR_DIMS && wireType === LENGTH_DELIMITED) {
      const packed = reader.message();
      while (!packed.done) tensor.shape.push(packed.varint());
    } else if (field === TENSOR_DIMS && wireType === 0) tensor.shape.push(reader.varint());
    else if (field === TENSOR_DATA_TYPE && wireType === 0) tensor.onnxType = reader.varint();
    else if (field === TENSOR_NAME && wireType === LENGTH_DELIMITED) tensor.name = reader.text();
    else if (field === TENSOR_DATA_LOCATION && wireType === 0) tensor.external = reader.varint() === EXTERNAL;
    else return false;
    return true;
  });
  return tensor;
}
