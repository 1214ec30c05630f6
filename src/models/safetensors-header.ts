/** @file The header of a safetensors file, checked as untrusted input before a byte of tensor data is read. */
import { z } from "zod";
import { InputError, nestedDeeper, reasonOf } from "../base/index.ts";
import type { DType } from "../runtime/index.ts";

/**
 * The largest header that is parsed, in bytes. The reference reader allows 100 MB, which as JavaScript objects would be
 * a gigabyte; 16 MiB still hold more than 100,000 tensors in one file.
 */
export const MAX_HEADER_BYTES = 16 * 1024 * 1024;

/** The format needs 3. */
const MAX_DEPTH = 8;

/** Element sizes in bytes of the dtypes of the format. */
const ELEMENT_BYTES: Readonly<Record<string, number>> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
  F8_E4M3: 1,
  F8_E5M2: 1,
};

const TO_DTYPE: Readonly<Record<string, DType>> = {
  F64: "float64",
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
  I64: "int64",
  I32: "int32",
  I16: "int16",
  I8: "int8",
  U16: "uint16",
  U8: "uint8",
  BOOL: "bool",
};

const FROM_DTYPE = Object.fromEntries(Object.entries(TO_DTYPE).map(([stored, dtype]) => [dtype, stored]));

/** The name safetensors gives a dtype, and its element size in bytes. */
export function storedDType(dtype: DType): { name: string; bytes: number } {
  const name = FROM_DTYPE[dtype]!;
  return { name, bytes: ELEMENT_BYTES[name]! };
}

/** One tensor of a file, as its header declares it. */
export interface TensorEntry {
  readonly name: string;
  /** As stored, e.g. `BF16`. */
  readonly storedDType: string;
  /** The runtime's dtype; undefined where the runtime has none (U32, U64, the 8-bit floats). */
  readonly dtype: DType | undefined;
  readonly shape: readonly number[];
  /** Number of elements, the product of `shape`. */
  readonly size: number;
  /** First byte and byte after the last, counted from the end of the header. */
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  /** In the order of their data. */
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly metadata: Readonly<Record<string, string>>;
}

const count = z
  .number({ error: "not a number" })
  .refine((value) => Number.isSafeInteger(value) && value >= 0, { error: "not a non-negative integer below 2^53" });

const entrySchema = z.strictObject({
  dtype: z.string().refine((name) => Object.hasOwn(ELEMENT_BYTES, name), { error: "unknown dtype" }),
  shape: z.array(count),
  data_offsets: z.tuple([count, count]),
});

const metadataSchema = z.record(z.string(), z.string());

/** Product of the dimensions, or undefined when it is not exactly representable. */
export function elementCount(shape: readonly number[]): number | undefined {
  if (shape.includes(0)) return 0;
  let product = 1;
  for (const dim of shape) {
    product *= dim;
    if (product > Number.MAX_SAFE_INTEGER) return undefined;
  }
  return product;
}

/**
 * Keys that occur twice in one object of a valid JSON text. `JSON.parse` keeps the last one in silence, so two readers
 * could see two different tensors under one name.
 */
export function duplicateKeys(json: string): string[] {
  const found: string[] = [];
  const open: (Set<string> | undefined)[] = []; // one set of keys per open object; undefined for an array
  let i = 0;
  while (i < json.length) {
    const char = json[i];
    if (char === "{") open.push(new Set());
    else if (char === "[") open.push(undefined);
    else if (char === "}" || char === "]") open.pop();
    else if (char === '"') {
      const start = i;
      for (i++; json[i] !== '"'; i++) if (json[i] === "\\") i++;
      const keys = open.at(-1);
      let next = i + 1;
      while (json[next] === " " || json[next] === "\n" || json[next] === "\r" || json[next] === "\t") next++;
      if (keys && json[next] === ":") {
        const key = JSON.parse(json.slice(start, i + 1)) as string;
        if (keys.has(key)) found.push(key);
        keys.add(key);
      }
    }
    i++;
  }
  return found;
}

/**
 * Parses the JSON of a header.
 * @param bytes the header without its length
 * @param dataBytes length of the file after the header, in bytes
 * @param where the file, for errors
 * @throws InputError `SAFETENSORS_INVALID` with every problem found
 */
export function parseHeader(bytes: Uint8Array, dataBytes: number, where: string): SafetensorsHeader {
  const fail = (problems: string | string[], cause?: unknown): never => {
    throw new InputError("SAFETENSORS_INVALID", where, problems, cause === undefined ? {} : { cause });
  };
  if (bytes[0] !== 0x7b) fail("the header does not begin with '{': not a safetensors file, or a damaged one");
  let root: unknown;
  let text = "";
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
    if (nestedDeeper(text, MAX_DEPTH)) fail("the header is nested deeper than the format allows");
    root = JSON.parse(text);
  } catch (error) {
    if (error instanceof InputError) throw error;
    fail(`the header is not valid JSON (${reasonOf(error)})`, error);
  }
  const problems = duplicateKeys(text).map((key) => `the name ${JSON.stringify(key)} occurs twice in the header`);
  const entries: TensorEntry[] = [];
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(root as Record<string, unknown>)) {
    if (name === "__metadata__") {
      const parsed = metadataSchema.safeParse(value);
      if (parsed.success) metadata = parsed.data;
      else problems.push("__metadata__ is not an object of strings");
      continue;
    }
    const parsed = entrySchema.safeParse(value);
    if (!parsed.success) {
      for (const issue of parsed.error.issues) {
        const field = issue.path.length > 0 ? `${issue.path.map(String).join(".")}: ` : "";
        problems.push(`tensor ${JSON.stringify(name)}: ${field}${issue.message}`);
      }
      continue;
    }
    const { dtype, data_offsets } = parsed.data;
    const shape = parsed.data.shape.map((dim) => dim + 0); // -0 becomes 0
    const begin = data_offsets[0] + 0;
    const end = data_offsets[1] + 0;
    const size = elementCount(shape);
    const needed = size === undefined ? Number.POSITIVE_INFINITY : size * ELEMENT_BYTES[dtype]!;
    const label = `tensor ${JSON.stringify(name)} ${dtype} [${shape.join(", ")}]`;
    if (size === undefined || needed > Number.MAX_SAFE_INTEGER) problems.push(`${label}: the size overflows`);
    else if (begin > end) problems.push(`${label}: data_offsets [${begin}, ${end}] run backwards`);
    else if (end - begin !== needed) {
      problems.push(`${label}: needs ${needed} bytes, data_offsets [${begin}, ${end}] hold ${end - begin}`);
    } else entries.push({ name, storedDType: dtype, dtype: TO_DTYPE[dtype], shape, size, begin, end });
  }
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end || (a.name < b.name ? -1 : 1));
  // Holes are only looked for in a header that is sound so far: each tensor refused above would look like one.
  const sound = problems.length === 0;
  let position = 0;
  for (const entry of entries) {
    const label = `tensor ${JSON.stringify(entry.name)}`;
    if (entry.end > dataBytes) {
      problems.push(`${label}: ends at byte ${entry.end} of ${dataBytes}: the file is truncated`);
    }
    if (entry.begin < position) problems.push(`${label}: overlaps the tensor before it`);
    else if (sound && entry.begin > position) {
      problems.push(`${label}: ${entry.begin - position} bytes before it belong to no tensor`);
    }
    position = Math.max(position, entry.end);
  }
  if (sound && position < dataBytes) problems.push(`the last ${dataBytes - position} bytes belong to no tensor`);
  if (problems.length > 0) fail(problems);
  return { entries: new Map(entries.map((entry) => [entry.name, entry])), metadata };
}
