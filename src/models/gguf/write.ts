/** @file Writes GGUF files, version 3, as llama.cpp reads them. */
import { float32ToFloat16, restoreOutput, writeFileAtomic } from "../../base/index.ts";
import { BLOCK_TYPES } from "./types.ts";

/** A metadata value: numbers say how they are stored. */
export type GgufValue =
  | string
  | boolean
  | { readonly uint32: number }
  | { readonly float32: number }
  | readonly string[]
  | Float32Array
  | Int32Array;

/** Its numbers are asked for when the tensor is written. */
export type GgufTensorToWrite = {
  readonly name: string;
  /** Outermost dimension first. */
  readonly shape: readonly number[];
} & (
  | { readonly type: "F32" | "F16" /** float32, whatever the type. */; values(): Float32Array }
  | { /** Of ggml, e.g. `Q4_0`. */ readonly type: string /** The blocks as the file has them. */; bytes(): Uint8Array }
);

const ALIGNMENT = 32;
const TYPES = new Map([...BLOCK_TYPES].map(([number, type]) => [type.name, { number, ...type }]));
const VALUE = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;

function uint32(value: number): Buffer {
  const part = Buffer.alloc(4);
  part.writeUInt32LE(value);
  return part;
}

function uint64(value: number): Buffer {
  const part = Buffer.alloc(8);
  part.writeBigUInt64LE(BigInt(value));
  return part;
}

function float32(value: number): Buffer {
  const part = Buffer.alloc(4);
  part.writeFloatLE(value);
  return part;
}

const text = (value: string): Buffer => Buffer.concat([uint64(Buffer.byteLength(value)), Buffer.from(value)]);

const numbers = ({ buffer, byteOffset, byteLength }: Float32Array | Int32Array) =>
  Buffer.from(buffer, byteOffset, byteLength);

function encode(value: GgufValue): Buffer[] {
  if (typeof value === "string") return [uint32(VALUE.string), text(value)];
  if (typeof value === "boolean") return [uint32(VALUE.bool), Buffer.from([value ? 1 : 0])];
  if (value instanceof Float32Array || value instanceof Int32Array) {
    const element = value instanceof Float32Array ? VALUE.float32 : VALUE.int32;
    return [uint32(VALUE.array), uint32(element), uint64(value.length), numbers(value)];
  }
  if ("uint32" in value) return [uint32(VALUE.uint32), uint32(value.uint32)];
  if ("float32" in value) return [uint32(VALUE.float32), float32(value.float32)];
  return [uint32(VALUE.array), uint32(VALUE.string), uint64(value.length), Buffer.concat(value.map(text))];
}

const padding = (bytes: number): number => (ALIGNMENT - (bytes % ALIGNMENT)) % ALIGNMENT;

function typeOf({ name, type }: GgufTensorToWrite) {
  const known = TYPES.get(type);
  if (!known) throw new Error(`${name}: ggml has no tensor type ${type}`);
  return known;
}

function bytesOf(tensor: GgufTensorToWrite): number {
  const { name, shape, type } = tensor;
  const { weights, bytes } = typeOf(tensor);
  if ((shape.at(-1) ?? 1) % weights !== 0)
    throw new Error(`${name} [${shape.join(", ")}]: rows of ${type} are multiples of ${weights}`);
  return (shape.reduce((product, dimension) => product * dimension, 1) / weights) * bytes;
}

function storedBytes(tensor: GgufTensorToWrite): Uint8Array {
  if ("bytes" in tensor) return tensor.bytes();
  const values = tensor.values();
  const { buffer, byteOffset, byteLength } = tensor.type === "F16" ? float32ToFloat16(values) : values;
  return new Uint8Array(buffer, byteOffset, byteLength);
}

function* serialize(
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensorToWrite[],
): Generator<Uint8Array> {
  const head = [Buffer.from("GGUF"), uint32(3), uint64(tensors.length), uint64(metadata.size)];
  for (const [key, value] of metadata) head.push(text(key), Buffer.concat(encode(value)));
  let offset = 0;
  for (const tensor of tensors) {
    const { name, shape } = tensor;
    head.push(text(name), uint32(shape.length), ...[...shape].reverse().map(uint64));
    head.push(uint32(typeOf(tensor).number), uint64(offset));
    const size = bytesOf(tensor);
    offset += size + padding(size);
  }
  const header = Buffer.concat(head);
  yield header;
  yield Buffer.alloc(padding(header.length));
  for (const tensor of tensors) {
    const bytes = storedBytes(tensor);
    const wanted = bytesOf(tensor);
    if (bytes.length !== wanted) {
      const { name, shape, type } = tensor;
      throw new Error(`${name} [${shape.join(", ")}] of ${type} has ${bytes.length} bytes instead of ${wanted}`);
    }
    yield bytes;
    yield Buffer.alloc(padding(bytes.length));
  }
}

/** Writes a GGUF file, atomically; one tensor is asked for at a time. What a killed process left of it goes. */
export function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensorToWrite[],
): void {
  restoreOutput(path);
  writeFileAtomic(path, serialize(metadata, tensors));
}
