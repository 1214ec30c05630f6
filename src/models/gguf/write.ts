/** @file Writes GGUF files, version 3, as llama.cpp reads them. */
import { writeFileAtomic } from "../../base/index.ts";
import { float32ToFloat16 } from "../floats.ts";

/** A metadata value: numbers say how they are stored. */
export type GgufValue =
  | string
  | boolean
  | { readonly uint32: number }
  | { readonly float32: number }
  | readonly string[]
  | Float32Array
  | Int32Array;

export interface GgufTensorToWrite {
  readonly name: string;
  /** Outermost dimension first. */
  readonly shape: readonly number[];
  readonly type: "F32" | "F16";
  /** float32, whatever the type; asked for when the tensor is written. */
  values(): Float32Array;
}

const ALIGNMENT = 32;
const TYPES = { F32: { number: 0, bytes: 4 }, F16: { number: 1, bytes: 2 } } as const;
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
const sizeOf = (shape: readonly number[]): number => shape.reduce((product, dimension) => product * dimension, 1);

function* serialize(
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensorToWrite[],
): Generator<Uint8Array> {
  const head = [Buffer.from("GGUF"), uint32(3), uint64(tensors.length), uint64(metadata.size)];
  for (const [key, value] of metadata) head.push(text(key), Buffer.concat(encode(value)));
  let offset = 0;
  for (const { name, shape, type } of tensors) {
    head.push(text(name), uint32(shape.length), ...[...shape].reverse().map(uint64));
    head.push(uint32(TYPES[type].number), uint64(offset));
    const bytes = sizeOf(shape) * TYPES[type].bytes;
    offset += bytes + padding(bytes);
  }
  const header = Buffer.concat(head);
  yield header;
  yield Buffer.alloc(padding(header.length));
  for (const { name, shape, type, values } of tensors) {
    const given = values();
    if (given.length !== sizeOf(shape)) throw new Error(`${name} [${shape.join(", ")}] has ${given.length} numbers`);
    const data = type === "F16" ? float32ToFloat16(given) : given;
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    yield bytes;
    yield Buffer.alloc(padding(bytes.length));
  }
}

/** Writes a GGUF file, atomically; one tensor is converted at a time. */
export function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensorToWrite[],
): void {
  writeFileAtomic(path, serialize(metadata, tensors));
}
