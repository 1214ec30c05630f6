/** @file Safetensors files: tensors read one by one straight into their destination, written as deterministic bytes. */
import { closeSync, fstatSync, readSync } from "node:fs";
import {
  bfloat16ToFloat32,
  float16ToFloat32,
  InputError,
  openRegularFile,
  reasonOf,
  writeFileAtomic,
} from "../base/index.ts";
import type { DType, TensorData } from "../runtime/index.ts";
import {
  elementCount,
  MAX_HEADER_BYTES,
  parseHeader,
  type SafetensorsHeader,
  storedDType,
  type TensorEntry,
} from "./safetensors-header.ts";

/** Bytes read from disk at a time where a conversion follows: small enough for the second-level cache. */
const CHUNK_BYTES = 1024 * 1024;
/** Bytes handed to one read or write call; Node refuses 2 GiB and more. */
const CALL_BYTES = 256 * 1024 * 1024;

/** A tensor in JavaScript memory. A `Tensor` of the runtime is one, too. float16 and bfloat16 are bit patterns. */
export interface StoredTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: TensorData;
}

/** Sees the stored bytes of a tensor, in order, as they are read. The view is only good during the call. */
export type ByteObserver = (bytes: Uint8Array) => void;

function allocate(dtype: DType, size: number): TensorData {
  switch (dtype) {
    case "float32":
      return new Float32Array(size);
    case "float64":
      return new Float64Array(size);
    case "int64":
      return new BigInt64Array(size);
    case "int32":
      return new Int32Array(size);
    case "int16":
      return new Int16Array(size);
    case "int8":
      return new Int8Array(size);
    case "uint8":
    case "bool":
      return new Uint8Array(size);
    default:
      return new Uint16Array(size);
  }
}

/**
 * An open safetensors file. Its header has been checked; data are read on demand.
 *
 * The format is little-endian, as is every machine ONNX Runtime is built for.
 */
export class SafetensorsFile implements Disposable {
  readonly path: string;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  /** The strings of `__metadata__`; empty when there are none. */
  readonly metadata: Readonly<Record<string, string>>;
  #source: Source | undefined;
  readonly #dataStart: number;
  #chunk: ArrayBuffer | undefined;

  private constructor(path: string, source: Source, dataStart: number, header: SafetensorsHeader) {
    this.path = path;
    this.entries = header.entries;
    this.metadata = header.metadata;
    this.#source = source;
    this.#dataStart = dataStart;
  }

  /**
   * Opens a file and checks its header.
   * @param contents of the file, where they have been read already: the file itself is left alone then
   * @throws InputError `FILE_UNREADABLE`, or `SAFETENSORS_INVALID` with every problem of the header
   */
  static open(path: string, contents?: Uint8Array): SafetensorsFile {
    const source = contents ?? openRegularFile(path);
    try {
      const fileBytes = typeof source === "number" ? fstatSync(source).size : source.byteLength;
      const fail = (problem: string): never => {
        throw new InputError("SAFETENSORS_INVALID", path, problem);
      };
      if (fileBytes < 8) fail(`only ${fileBytes} bytes long: the file is truncated`);
      const prefix = new Uint8Array(8);
      readFully(source, prefix, 0, path);
      const headerBytes = new DataView(prefix.buffer).getBigUint64(0, true);
      if (headerBytes > BigInt(MAX_HEADER_BYTES)) {
        fail(`declares a header of ${headerBytes} bytes, more than the ${MAX_HEADER_BYTES} allowed`);
      }
      const length = Number(headerBytes);
      if (length > fileBytes - 8) fail(`declares a header of ${length} bytes in a file of ${fileBytes}: truncated`);
      const header = new Uint8Array(length);
      readFully(source, header, 8, path);
      return new SafetensorsFile(path, source, 8 + length, knownHeader(header, fileBytes - 8 - length, path));
    } catch (error) {
      close(source);
      throw error;
    }
  }

  /** Where in the file the first tensor's data begin. */
  get dataStart(): number {
    return this.#dataStart;
  }

  /** Reads one tensor in its stored dtype. */
  read(name: string): StoredTensor {
    const entry = this.#entry(name);
    if (entry.dtype === undefined) throw this.#unsupported(entry, "this dtype");
    const data = allocate(entry.dtype, entry.size);
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    readFully(this.#open(), bytes, this.#dataStart + entry.begin, this.path);
    return { dtype: entry.dtype, shape: entry.shape, data };
  }

  /**
   * Reads elements `start` … `start + target.length` of a tensor stored as F32, F16, BF16 or F64 into `target`,
   * converting chunk by chunk: no second copy of the tensor exists at any time.
   */
  readFloat32(name: string, target: Float32Array, start = 0, observe?: ByteObserver): Float32Array {
    const entry = this.#entry(name);
    if (start < 0 || start + target.length > entry.size) {
      throw new RangeError(`${name} has ${entry.size} elements, not ${start + target.length}`);
    }
    const source = this.#open();
    const { dtype } = entry;
    if (dtype === "float32") {
      const bytes = new Uint8Array(target.buffer, target.byteOffset, target.byteLength);
      readFully(source, bytes, this.#dataStart + entry.begin + 4 * start, this.path);
      observe?.(bytes);
      return target;
    }
    if (dtype !== "bfloat16" && dtype !== "float16" && dtype !== "float64") {
      throw this.#unsupported(entry, "weights of this dtype");
    }
    const elementBytes = storedDType(dtype).bytes;
    this.#chunk ??= new ArrayBuffer(CHUNK_BYTES);
    const perChunk = CHUNK_BYTES / elementBytes;
    for (let done = 0; done < target.length; done += perChunk) {
      const part = target.subarray(done, done + perChunk);
      const bytes = new Uint8Array(this.#chunk, 0, part.length * elementBytes);
      readFully(source, bytes, this.#dataStart + entry.begin + (start + done) * elementBytes, this.path);
      observe?.(bytes);
      if (dtype === "bfloat16") bfloat16ToFloat32(new Uint16Array(this.#chunk, 0, part.length), part);
      else if (dtype === "float16") float16ToFloat32(new Uint16Array(this.#chunk, 0, part.length), part);
      else part.set(new Float64Array(this.#chunk, 0, part.length));
    }
    return target;
  }

  /**
   * All elements of a tensor as float32: where it is stored so and the file is in memory, its own bytes, which are not to
   * be written to.
   */
  float32(name: string): Float32Array {
    const { dtype, begin, size } = this.#entry(name);
    const source = this.#open();
    if (dtype === "float32" && typeof source !== "number") {
      const at = source.byteOffset + this.#dataStart + begin;
      if (at % Float32Array.BYTES_PER_ELEMENT === 0) return new Float32Array(source.buffer, at, size);
    }
    return this.readFloat32(name, new Float32Array(size));
  }

  #entry(name: string): TensorEntry {
    const entry = this.entries.get(name);
    if (!entry) throw new InputError("TENSOR_MISSING", this.path, `no tensor named ${JSON.stringify(name)}`);
    return entry;
  }

  #open(): Source {
    if (this.#source === undefined) throw new Error(`${this.path} is closed`);
    return this.#source;
  }

  #unsupported(entry: TensorEntry, what: string): InputError {
    const problem = `tensor ${JSON.stringify(entry.name)} is ${entry.storedDType}; ${what} cannot be used here`;
    return new InputError("DTYPE_UNSUPPORTED", this.path, problem);
  }

  /** Closes the file; closing twice is fine. */
  dispose(): void {
    if (this.#source !== undefined) close(this.#source);
    this.#source = undefined;
    this.#chunk = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

interface Known {
  readonly bytes: Uint8Array;
  readonly dataBytes: number;
  readonly header: SafetensorsHeader;
}

/** Files of adapters that differ in their numbers only have one header, which is long to parse: the last few are kept. */
const known: Known[] = [];
const MOST_KNOWN = 4;
const LONGEST_KNOWN = 1024 * 1024;

function knownHeader(bytes: Uint8Array, dataBytes: number, path: string): SafetensorsHeader {
  const found = known.findIndex((one) => one.dataBytes === dataBytes && Buffer.compare(one.bytes, bytes) === 0);
  const one = known[found] ?? { bytes, dataBytes, header: parseHeader(bytes, dataBytes, path) };
  if (found >= 0) known.splice(found, 1);
  if (bytes.length <= LONGEST_KNOWN) known.unshift(one);
  known.length = Math.min(known.length, MOST_KNOWN);
  return one.header;
}

/** A file's number, or what is in it. */
type Source = number | Uint8Array;

function close(source: Source): void {
  if (typeof source === "number") closeSync(source);
}

/** Fills `target` from `position` of the file, however the system splits the read. */
function readFully(source: Source, target: Uint8Array, position: number, path: string): void {
  if (typeof source !== "number") {
    target.set(source.subarray(position, position + target.byteLength)); // the length was checked
    return;
  }
  for (let done = 0; done < target.byteLength; ) {
    let got: number;
    try {
      got = readSync(source, target, done, Math.min(CALL_BYTES, target.byteLength - done), position + done);
    } catch (error) {
      throw new InputError("FILE_UNREADABLE", path, reasonOf(error), { cause: error });
    }
    // The length was checked when the file was opened, so it has been cut since.
    if (got === 0) throw new InputError("SAFETENSORS_INVALID", path, "the file became shorter while it was read");
    done += got;
  }
}

/** Reads a whole file into memory, for small files such as adapters. @throws as `SafetensorsFile` */
export function readSafetensors(path: string): {
  tensors: Map<string, StoredTensor>;
  metadata: Readonly<Record<string, string>>;
} {
  using file = SafetensorsFile.open(path);
  const tensors = new Map<string, StoredTensor>();
  for (const name of [...file.entries.keys()].sort()) tensors.set(name, file.read(name));
  return { tensors, metadata: file.metadata };
}

const byName = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);

/** A tensor as a header describes it. */
type Described = Pick<StoredTensor, "dtype" | "shape">;

/**
 * The bytes before the data, and the order of the data: wider dtypes first, so that every tensor lies on a multiple of
 * its element size, then by name, as the reference writer does; the data begin on a multiple of `alignment`.
 */
export function safetensorsHeader<T extends Described>(
  tensors: ReadonlyMap<string, T>,
  metadata: Readonly<Record<string, string>> = {},
  alignment = 8,
): { header: Uint8Array; order: (readonly [string, T])[] } {
  const width = ({ dtype }: Described): number => storedDType(dtype).bytes;
  const order = [...tensors].sort(([a, x], [b, y]) => width(y) - width(x) || byName(a, b));
  const fields: string[] = [];
  const strings = Object.entries(metadata).sort(([a], [b]) => byName(a, b));
  // Pieced together as text: an object would move names that look like numbers to the front.
  if (strings.length > 0) {
    const pairs = strings.map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`);
    fields.push(`"__metadata__":{${pairs.join(",")}}`);
  }
  let position = 0;
  for (const [name, { dtype, shape }] of order) {
    const stored = storedDType(dtype);
    const end = position + elementCount(shape)! * stored.bytes;
    fields.push(
      `${JSON.stringify(name)}:${JSON.stringify({ dtype: stored.name, shape, data_offsets: [position, end] })}`,
    );
    position = end;
  }
  const json = Buffer.from(`{${fields.join(",")}}`);
  const header = Buffer.alloc(Math.ceil((8 + json.length) / alignment) * alignment, " ");
  header.writeBigUInt64LE(BigInt(header.length - 8), 0);
  json.copy(header, 8);
  return { header, order };
}

/** The bytes of a tensor, in pieces that one write takes. */
export function* bytesOf({ buffer, byteOffset, byteLength }: TensorData): Generator<Uint8Array> {
  for (let done = 0; done < byteLength; done += CALL_BYTES) {
    yield new Uint8Array(buffer, byteOffset + done, Math.min(CALL_BYTES, byteLength - done));
  }
}

/** The bytes of a file, piece by piece. */
function* serialize(
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata: Readonly<Record<string, string>>,
): Generator<Uint8Array> {
  const { header, order } = safetensorsHeader(tensors, metadata);
  yield header;
  for (const [, { data }] of order) yield* bytesOf(data);
}

/**
 * Writes tensors to `path`, atomically. Equal input gives equal bytes.
 * @throws InputError `TENSOR_INVALID` with every tensor whose data do not fit its shape
 */
export function writeSafetensors(
  path: string,
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata: Readonly<Record<string, string>> = {},
): void {
  const problems: string[] = [];
  for (const [name, { dtype, shape, data }] of tensors) {
    const size = elementCount(shape);
    if (name === "__metadata__") problems.push('"__metadata__" is not a name for a tensor');
    if (size === undefined || size * storedDType(dtype).bytes !== data.byteLength) {
      problems.push(
        `tensor ${JSON.stringify(name)} ${dtype} [${shape.join(", ")}] has ${data.byteLength} bytes of data`,
      );
    }
  }
  if (problems.length > 0) throw new InputError("TENSOR_INVALID", path, problems);
  writeFileAtomic(path, serialize(tensors, metadata));
}
