/** @file The records of one data file: JSON, JSONL, CSV, TSV or parquet, each perhaps gzipped, told apart by content and name. */
import { readFile } from "node:fs/promises";
import { gunzipSync } from "node:zlib";
import { CsvError, parse as parseCsv } from "csv-parse/sync";
import { InputError, reasonOf } from "../base/index.ts";
import { parquetRows } from "./parquet.ts";

/** A record of a file before anything is known of its fields, or what keeps it from being read. */
export type FileRecord =
  | { readonly number: number; readonly value: unknown }
  | { readonly number: number; readonly problem: string };

/** Ends of file names that are taken for data where a directory is named, each also with `.gz`. */
const DATA_NAME = /\.(json|jsonl|ndjson|csv|tsv|parquet)(\.gz)?$/i;

export function isDataFile(name: string): boolean {
  return DATA_NAME.test(name) && !name.startsWith(".");
}

const GZIP = Buffer.of(0x1f, 0x8b);
const PARQUET = Buffer.from("PAR1");
const BYTE_ORDER_MARK = Buffer.of(0xef, 0xbb, 0xbf);

const startsWith = (bytes: Buffer, magic: Buffer): boolean => bytes.subarray(0, magic.length).equals(magic);

/**
 * All records of a file, numbered as an error should name them: the element of a JSON array, the line of JSONL, the
 * row of a table (the first below the header is 1). Gzip and parquet are known by their first bytes, CSV and TSV by the
 * name; anything else is JSON where it begins with `[`, else JSONL.
 * @param options.columns names of the columns of a table without a header
 * @throws InputError FILE_UNREADABLE; DATA_INVALID when nothing in the file can be read
 */
export async function readRecords(path: string, options: { columns?: readonly string[] } = {}): Promise<FileRecord[]> {
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new InputError("FILE_UNREADABLE", path, missing ? "no such file" : reasonOf(error), { cause: error });
  }
  return await recordsOf(path, bytes, options);
}

/**
 * The records of what a file called `path` would hold.
 * @param options.text it is text, whatever it begins with: a few bytes from a stranger unpack to nothing larger
 * @throws InputError DATA_INVALID when nothing in it can be read
 */
export async function recordsOf(
  path: string,
  bytes: Buffer,
  options: { columns?: readonly string[]; text?: boolean } = {},
): Promise<FileRecord[]> {
  if (!options.text && startsWith(bytes, GZIP)) {
    try {
      bytes = gunzipSync(bytes);
    } catch (error) {
      throw new InputError("DATA_INVALID", path, `damaged gzip file (${reasonOf(error)})`, { cause: error });
    }
  }
  if (!options.text && startsWith(bytes, PARQUET)) return await parquetRecords(path, bytes);
  if (startsWith(bytes, BYTE_ORDER_MARK)) bytes = bytes.subarray(BYTE_ORDER_MARK.length);
  const name = path.toLowerCase().replace(/\.gz$/, "");
  if (name.endsWith(".parquet")) throw new InputError("DATA_INVALID", path, "is no parquet file");
  if (name.endsWith(".csv")) return csvRecords(path, bytes, ",", options.columns);
  if (name.endsWith(".tsv")) return csvRecords(path, bytes, "\t", options.columns);
  return /^\s*\[/.test(bytes.toString("utf8", 0, 1024)) ? jsonRecords(path, bytes) : [...lineRecords(bytes)];
}

function jsonRecords(path: string, bytes: Buffer): FileRecord[] {
  try {
    const list = JSON.parse(bytes.toString("utf8")) as unknown[];
    return list.map((value, index) => ({ number: index + 1, value }));
  } catch (error) {
    throw new InputError("DATA_INVALID", path, `not valid JSON (${reasonOf(error)})`, { cause: error });
  }
}

/** One JSON value a line; blank lines are skipped. Lines are cut from the bytes, so that no text is too long for a string. */
function* lineRecords(bytes: Buffer): Generator<FileRecord> {
  for (let start = 0, number = 1; start < bytes.length; number++) {
    const found = bytes.indexOf(0x0a, start);
    const end = found < 0 ? bytes.length : found;
    const line = bytes.toString("utf8", start, end);
    start = end + 1;
    if (line.trim() === "") continue;
    try {
      yield { number, value: JSON.parse(line) };
    } catch (error) {
      yield { number, problem: `not valid JSON (${reasonOf(error)})` };
    }
  }
}

/** RFC 4180, with a header unless the columns are given; every field is text. */
function csvRecords(path: string, bytes: Buffer, delimiter: string, columns?: readonly string[]): FileRecord[] {
  let table: string[][];
  try {
    table = parseCsv(bytes, { delimiter, relax_column_count: true, skip_empty_lines: true });
  } catch (error) {
    const kind = delimiter === "," ? "CSV" : "TSV";
    const reason = error instanceof CsvError ? reasonOf(error).replaceAll("\n", " ") : reasonOf(error);
    throw new InputError("DATA_INVALID", path, `not valid ${kind} (${reason})`, { cause: error });
  }
  const [header, ...rows] = columns ? [columns, ...table] : table;
  if (header === undefined) return [];
  const twice = header.filter((name, index) => header.indexOf(name) !== index);
  if (twice.length) throw new InputError("DATA_INVALID", path, `the header has "${twice[0]}" twice`);
  return rows.map((fields, index) => {
    const number = index + 1;
    if (fields.length !== header.length) {
      return { number, problem: `has ${fields.length} fields, the header ${header.length}` };
    }
    return { number, value: Object.fromEntries(header.map((name, column) => [name, fields[column]])) };
  });
}

async function parquetRecords(path: string, bytes: Buffer): Promise<FileRecord[]> {
  try {
    return (await parquetRows(bytes)).map((row, index) => ({ number: index + 1, value: plain(row) }));
  } catch (error) {
    throw new InputError("DATA_INVALID", path, `not a readable parquet file (${reasonOf(error)})`, { cause: error });
  }
}

/** 64-bit integers as numbers where they fit, else as text, so that a row is what JSON could hold. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (value instanceof Date) return value.toISOString();
  if (Array.isArray(value)) return value.map(plain);
  if (value !== null && typeof value === "object" && !ArrayBuffer.isView(value)) {
    return Object.fromEntries(Object.entries(value).map(([key, field]) => [key, plain(field)]));
  }
  return value;
}
