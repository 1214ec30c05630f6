/** @file The header of a GGUF file (versions 2 and 3), checked as untrusted input before a weight is read. */
import { readSync } from "node:fs";
import { InputError, reasonOf } from "../../base/index.ts";
import { BLOCK_TYPES, type BlockType } from "./types.ts";

/**
 * The largest header that is read, in bytes. It holds the vocabulary: a quarter of a million tokens with merges and
 * scores are 20 MB.
 */
const MAX_HEADER_BYTES = 96 * 1024 * 1024;
const FIRST_READ = 1024 * 1024;
const MAGIC = 0x46554747; // "GGUF", little-endian
const MAX_TENSORS = 2 ** 17;
const MAX_METADATA = 2 ** 16;
const MAX_KEY = 1024;
/** Elements of one array; half a million merges is the most seen. */
const MAX_ARRAY = 2 ** 22;
const ALIGNMENTS = Array.from({ length: 14 }, (_, i) => 8 << i);
/** The format allows arrays of arrays; nothing uses them. */
const MAX_DEPTH = 4;
const MAX_DIMENSIONS = 4;
/** ggml's own limit is 64. */
const MAX_NAME_BYTES = 256;

/** A metadata value. Arrays of numbers are typed, 64-bit ones are bigint only beyond 2^53. */
export type MetadataValue =
  | string
  | number
  | bigint
  | boolean
  | readonly MetadataValue[]
  | Float32Array
  | Int32Array
  | Uint32Array;

/** One tensor of a file. */
export interface GgufTensor {
  readonly name: string;
  readonly type: BlockType;
  /** Outermost dimension first, as everywhere here; the file stores the reverse. */
  readonly shape: readonly number[];
  /** First byte, from the beginning of the file. */
  readonly begin: number;
  readonly bytes: number;
}

export interface GgufHeader {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, MetadataValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

/** Reads forward through the beginning of a file; never asks for more memory than the file has bytes. */
class Cursor {
  readonly #handle: number;
  readonly #limit: number;
  readonly #where: string;
  readonly #fail: (problem: string) => never;
  #bytes = Buffer.alloc(0);
  position = 0;

  constructor(handle: number, fileBytes: number, where: string, fail: (problem: string) => never) {
    this.#handle = handle;
    this.#where = where;
    this.#limit = Math.min(fileBytes, MAX_HEADER_BYTES);
    this.#fail = fail;
  }

  /** Makes `count` bytes available and returns where they begin. */
  #take(count: number): number {
    const end = this.position + count;
    if (end > this.#limit) {
      this.#fail(
        this.#limit === MAX_HEADER_BYTES
          ? `the header is longer than ${MAX_HEADER_BYTES} bytes`
          : "the header goes beyond the end of the file: truncated, or a count in it is wrong",
      );
    }
    if (end > this.#bytes.length) {
      const bytes = Buffer.alloc(Math.min(this.#limit, Math.max(end, 2 * this.#bytes.length, FIRST_READ)));
      this.#bytes.copy(bytes);
      for (let done = this.#bytes.length; done < bytes.length; ) {
        done += this.#read(bytes, done);
      }
      this.#bytes = bytes;
    }
    const start = this.position;
    this.position = end;
    return start;
  }

  #read(bytes: Buffer, from: number): number {
    try {
      const got = readSync(this.#handle, bytes, from, bytes.length - from, from);
      return got || this.#fail("the file became shorter while it was read");
    } catch (error) {
      if (error instanceof InputError) throw error;
      throw new InputError("FILE_UNREADABLE", this.#where, reasonOf(error), { cause: error });
    }
  }

  /** Refuses a count of things of at least `bytes` bytes each that the rest of the header cannot hold. */
  check(count: number, bytes: number, what: string, most = Number.POSITIVE_INFINITY): number {
    if (count > most) this.#fail(`${what}: ${count} of them are more than the ${most} allowed`);
    if (count * bytes > this.#limit - this.position) {
      this.#fail(`${what}: ${count} of them cannot be in the rest of the file: truncated, or the count is wrong`);
    }
    return count;
  }

  uint8 = (): number => {
    const at = this.#take(1);
    return this.#bytes.readUInt8(at);
  };
  int8 = (): number => {
    const at = this.#take(1);
    return this.#bytes.readInt8(at);
  };
  uint16 = (): number => {
    const at = this.#take(2);
    return this.#bytes.readUInt16LE(at);
  };
  int16 = (): number => {
    const at = this.#take(2);
    return this.#bytes.readInt16LE(at);
  };
  uint32 = (): number => {
    const at = this.#take(4);
    return this.#bytes.readUInt32LE(at);
  };
  int32 = (): number => {
    const at = this.#take(4);
    return this.#bytes.readInt32LE(at);
  };
  float32 = (): number => {
    const at = this.#take(4);
    return this.#bytes.readFloatLE(at);
  };
  float64 = (): number => {
    const at = this.#take(8);
    return this.#bytes.readDoubleLE(at);
  };
  uint64 = (): bigint => {
    const at = this.#take(8);
    return this.#bytes.readBigUInt64LE(at);
  };
  int64 = (): bigint => {
    const at = this.#take(8);
    return this.#bytes.readBigInt64LE(at);
  };

  /** A count or size; what no file can reach becomes infinite and is refused by whoever uses it. */
  size = (): number => {
    const value = this.uint64();
    return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : Number.POSITIVE_INFINITY;
  };

  string = (): string => {
    const length = this.check(this.size(), 1, "a text's bytes");
    const start = this.#take(length);
    return this.#bytes.toString("utf8", start, start + length);
  };
}

const exact = (value: bigint): number | bigint => {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
};

const ARRAY = 9;
const STRING = 8;

/** Readers of the scalar types by number, and the fewest bytes of each. */
function scalarReaders(cursor: Cursor): Readonly<Record<number, { bytes: number; read: () => MetadataValue }>> {
  return {
    0: { bytes: 1, read: cursor.uint8 },
    1: { bytes: 1, read: cursor.int8 },
    2: { bytes: 2, read: cursor.uint16 },
    3: { bytes: 2, read: cursor.int16 },
    4: { bytes: 4, read: cursor.uint32 },
    5: { bytes: 4, read: cursor.int32 },
    6: { bytes: 4, read: cursor.float32 },
    7: { bytes: 1, read: () => cursor.uint8() !== 0 },
    [STRING]: { bytes: 8, read: cursor.string },
    10: { bytes: 8, read: () => exact(cursor.uint64()) },
    11: { bytes: 8, read: () => exact(cursor.int64()) },
    12: { bytes: 8, read: cursor.float64 },
  };
}

const TYPED: Readonly<Record<number, new (length: number) => Float32Array | Int32Array | Uint32Array>> = {
  4: Uint32Array,
  5: Int32Array,
  6: Float32Array,
};

function readMetadata(cursor: Cursor, count: number, fail: (problem: string) => never): Map<string, MetadataValue> {
  const scalars = scalarReaders(cursor);
  const value = (type: number, key: string, depth: number): MetadataValue => {
    if (type !== ARRAY) {
      return scalars[type]?.read() ?? fail(`metadata ${JSON.stringify(key)} is of the unknown type ${type}`);
    }
    if (depth === MAX_DEPTH) fail(`metadata ${JSON.stringify(key)}: arrays are nested deeper than ${MAX_DEPTH}`);
    const element = cursor.uint32();
    const fewest = element === ARRAY ? 12 : scalars[element]?.bytes;
    if (fewest === undefined) return fail(`metadata ${JSON.stringify(key)} is an array of the unknown type ${element}`);
    const length = cursor.check(cursor.size(), fewest, `metadata ${JSON.stringify(key)}`, MAX_ARRAY);
    const typed = TYPED[element];
    if (typed) {
      const numbers = new typed(length);
      const { read } = scalars[element]!;
      for (let i = 0; i < length; i++) numbers[i] = read() as number;
      return numbers;
    }
    const list: MetadataValue[] = [];
    for (let i = 0; i < length; i++) list.push(value(element, key, depth + 1));
    return list;
  };
  const metadata = new Map<string, MetadataValue>();
  for (let i = 0; i < count; i++) {
    const key = cursor.string();
    if (key.length > MAX_KEY) fail(`a key of metadata has ${key.length} characters`);
    if (metadata.has(key)) fail(`metadata ${JSON.stringify(key)} occurs twice`);
    metadata.set(key, value(cursor.uint32(), key, 0));
  }
  return metadata;
}

interface Declared {
  readonly name: string;
  readonly dimensions: readonly number[];
  readonly type: number;
  readonly offset: number;
}

function readDeclared(cursor: Cursor, fail: (problem: string) => never): Declared {
  const name = cursor.string();
  if (name.length > MAX_NAME_BYTES) fail(`the name of a tensor has ${name.length} characters`);
  const count = cursor.uint32();
  if (count > MAX_DIMENSIONS)
    fail(`tensor ${JSON.stringify(name)} has ${count} dimensions, more than ${MAX_DIMENSIONS}`);
  const dimensions = Array.from({ length: count }, cursor.size);
  return { name, dimensions, type: cursor.uint32(), offset: cursor.size() };
}

/** A tensor whose description is sound, or what is wrong with it. */
function checked({ name, dimensions, type: number, offset }: Declared, start: number, end: number, alignment: number) {
  const type = BLOCK_TYPES.get(number);
  const label = `tensor ${JSON.stringify(name)}`;
  if (type === undefined) return `${label} is of the unknown type ${number}`;
  const size = dimensions.reduce((product, dimension) => product * dimension, 1);
  if (!Number.isSafeInteger(size) || size === 0)
    return `${label} ${type.name} [${dimensions.join(", ")}]: no such size`;
  const row = dimensions[0] ?? 1;
  if (row % type.weights !== 0)
    return `${label}: rows of ${row} are not whole blocks of ${type.weights} (${type.name})`;
  if (offset % alignment !== 0) return `${label}: its offset ${offset} is not a multiple of ${alignment}`;
  const bytes = (size / type.weights) * type.bytes;
  if (start + offset + bytes > end) {
    return `${label}: ends at byte ${start + offset + bytes} of ${end}: the file is truncated`;
  }
  return { name, type, shape: [...dimensions].reverse(), begin: start + offset, bytes } satisfies GgufTensor;
}

function checkTensors(declared: readonly Declared[], start: number, end: number, alignment: number) {
  const problems: string[] = [];
  const tensors = new Map<string, GgufTensor>();
  for (const one of declared) {
    const tensor = checked(one, start, end, alignment);
    if (typeof tensor === "string") problems.push(tensor);
    else if (tensors.has(tensor.name)) problems.push(`tensor ${JSON.stringify(tensor.name)} occurs twice`);
    else tensors.set(tensor.name, tensor);
  }
  let position = start;
  for (const tensor of [...tensors.values()].sort((a, b) => a.begin - b.begin)) {
    if (tensor.begin < position) problems.push(`tensor ${JSON.stringify(tensor.name)} overlaps the tensor before it`);
    position = Math.max(position, tensor.begin + tensor.bytes);
  }
  return { tensors, problems };
}

/**
 * Reads the header of an open file.
 * @param where the file, for errors
 * @throws InputError `GGUF_INVALID` with every problem found
 */
export function readGgufHeader(handle: number, fileBytes: number, where: string): GgufHeader {
  const fail = (problems: string | readonly string[]): never => {
    throw new InputError("GGUF_INVALID", where, problems);
  };
  const cursor = new Cursor(handle, fileBytes, where, fail);
  if (fileBytes < 24 || cursor.uint32() !== MAGIC) fail('does not begin with "GGUF": no GGUF file');
  const version = cursor.uint32();
  if (version !== 2 && version !== 3) {
    // A big-endian file's version reads as 0x03000000.
    fail(version % 2 ** 16 === 0 ? "is big-endian, which is not supported" : `version ${version} is not supported`);
  }
  const tensorCount = cursor.check(cursor.size(), 24, "tensors", MAX_TENSORS);
  const metadataCount = cursor.check(cursor.size(), 13, "metadata", MAX_METADATA);
  const metadata = readMetadata(cursor, metadataCount, fail);
  const declared = Array.from({ length: tensorCount }, () => readDeclared(cursor, fail));
  const alignment = metadata.get("general.alignment") ?? 32;
  if (typeof alignment !== "number" || !ALIGNMENTS.includes(alignment)) {
    return fail(`general.alignment ${String(alignment)} is no power of two from 8 to 65536`);
  }
  const start = Math.ceil(cursor.position / alignment) * alignment;
  const { tensors, problems } = checkTensors(declared, start, fileBytes, alignment);
  if (problems.length > 0) fail(problems);
  return { version, metadata, tensors };
}
