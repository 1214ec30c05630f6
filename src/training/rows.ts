/** @file Rows of data files: the three forms a row may have, read as untrusted input, all bad rows named at once. */
import { InputError } from "../base/index.ts";
import { type FileRecord, readRecords, recordsOf } from "./files.ts";
import { filesOf } from "./sources.ts";
import { shorten } from "./text.ts";

export interface Message {
  readonly role: string;
  readonly content: string;
}

interface RowBase {
  /** 1-based: the element of the JSON array, the line of the JSONL file, the row of the table below its header. */
  readonly number: number;
  /** The file, where the data are several. */
  readonly file?: string;
  /** The bare answer, where the file has one (LLM-Adapters' `answer`); for evaluation, and for what routes tell. */
  readonly answer?: string;
  /** Everything the row has, for templates that use more than its form does. */
  readonly fields?: Readonly<Record<string, unknown>>;
}

/** One example: an instruction with its output, a prompt with its response, a conversation, or any fields. */
export type Row = RowBase &
  (
    | { readonly form: "instruction"; readonly instruction: string; readonly input: string; readonly output: string }
    | { readonly form: "completion"; readonly prompt: string; readonly response: string }
    /** The last message is the assistant's: that turn is what is learned. */
    | { readonly form: "messages"; readonly messages: readonly Message[] }
    /** Only what is learned is known; a template of the user's own makes a prompt of the fields. */
    | { readonly form: "free"; readonly output: string }
  );

const ROLES = new Set(["system", "user", "assistant", "tool"]);

/** What is wrong with a row, in words; an empty list when nothing is. */
type Problems = string[];

function text(value: Record<string, unknown>, key: string, problems: Problems): string {
  const field = value[key];
  if (typeof field === "string") return field;
  problems.push(field === undefined ? `missing "${key}"` : `"${key}" is ${kindOf(field)}, not text`);
  return "";
}

function kindOf(value: unknown): string {
  if (value === null) return "null";
  return Array.isArray(value) ? "a list" : typeof value === "object" ? "an object" : `a ${typeof value}`;
}

function readMessages(value: unknown, problems: Problems): Message[] {
  if (!Array.isArray(value)) {
    problems.push(`"messages" is ${kindOf(value)}, not a list`);
    return [];
  }
  const messages: Message[] = [];
  for (const [index, entry] of value.entries()) {
    const { role, content } = (entry ?? {}) as { role?: unknown; content?: unknown };
    if (typeof role !== "string" || !ROLES.has(role)) {
      problems.push(`messages[${index}].role is not one of ${[...ROLES].join(", ")}`);
    } else if (typeof content !== "string") {
      problems.push(`messages[${index}].content is ${content === undefined ? "missing" : kindOf(content)}`);
    } else messages.push({ role, content });
  }
  const last = messages.findLastIndex((message) => message.role === "assistant");
  if (problems.length === 0 && last < 0) problems.push("no assistant message");
  else if (problems.length === 0 && last === 0) problems.push("no message before the assistant's");
  return messages.slice(0, last + 1);
}

/**
 * One row of any form. Exported for rows that do not come from a file.
 * @param free also takes rows of which no more is known than an `output`, `completion` or `response`
 */
export function parseRow(value: unknown, number: number, free = false): { row?: Row; problems: readonly string[] } {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    return { problems: [`${kindOf(value)}, not an object`] };
  }
  const fields = value as Record<string, unknown>;
  const problems: Problems = [];
  const answer = { ...(typeof fields.answer === "string" && { answer: fields.answer }), fields };
  let row: Row;
  if ("messages" in fields) {
    row = { number, ...answer, form: "messages", messages: readMessages(fields.messages, problems) };
  } else if ("instruction" in fields) {
    const input = fields.input === undefined || fields.input === null ? "" : text(fields, "input", problems);
    const instruction = text(fields, "instruction", problems);
    row = { number, ...answer, form: "instruction", instruction, input, output: text(fields, "output", problems) };
  } else if ("prompt" in fields) {
    const key = "completion" in fields ? "completion" : "response";
    const prompt = text(fields, "prompt", problems);
    if (!("completion" in fields) && !("response" in fields)) problems.push('missing "completion" (or "response")');
    row = {
      number,
      ...answer,
      form: "completion",
      prompt,
      response: problems.length ? "" : text(fields, key, problems),
    };
  } else if (free) {
    const key = ["output", "completion", "response"].find((name) => name in fields) ?? "output";
    row = { number, ...answer, form: "free", output: text(fields, key, problems) };
  } else {
    const found = Object.keys(fields)
      .slice(0, 5)
      .map((key) => `"${key}"`);
    problems.push(`needs "instruction", "prompt" or "messages", has ${found.length ? found.join(", ") : "nothing"}`);
    return { problems };
  }
  return problems.length ? { problems } : { row, problems };
}

/** Fields that decide the form of a row. */
const FORM_FIELDS = ["messages", "instruction", "prompt"];

/** Where a field comes from, by field: a column of the file, or a path into it such as `answers.text.0`. */
export type Columns = Readonly<Record<string, string>>;

function columnOf(record: Readonly<Record<string, unknown>>, path: string): unknown {
  if (Object.hasOwn(record, path)) return record[path];
  let value: unknown = record;
  for (const part of path.split(".")) {
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, part)) return undefined;
    value = (value as Record<string, unknown>)[part];
  }
  return value;
}

/** A record with its columns under the names of the fields. Numbers in mapped columns become text. */
function renamed(record: unknown, columns: Columns | undefined, problems: string[]): unknown {
  if (columns === undefined || record === null || typeof record !== "object" || Array.isArray(record)) return record;
  const fields: Record<string, unknown> = { ...(record as Record<string, unknown>) };
  if (FORM_FIELDS.some((name) => name in columns)) for (const name of FORM_FIELDS) delete fields[name];
  for (const [field, column] of Object.entries(columns)) {
    const value = columnOf(record as Record<string, unknown>, column);
    if (value === undefined) problems.push(`missing "${column}" (for "${field}")`);
    else fields[field] = typeof value === "number" || typeof value === "boolean" ? String(value) : value;
  }
  return fields;
}

export interface RowOptions {
  /** Which columns the fields of a row come from, where the file calls them otherwise. */
  readonly columns?: Columns | undefined;
  /** Rows need no more than an `output`, `completion` or `response`: a template of the user's own takes any fields. */
  readonly free?: boolean | undefined;
  /** Prompts are all that is wanted of the rows: outputs, completions and responses may be missing. */
  readonly promptsOnly?: boolean | undefined;
  /** No more than the first rows. */
  readonly limit?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

function rowOf(record: FileRecord, options: RowOptions): { row?: Row; problems: readonly string[] } {
  if ("problem" in record) return { problems: [record.problem] };
  const missing: string[] = [];
  const value = renamed(record.value, options.columns, missing);
  if (missing.length) return { problems: missing };
  return parseRow(options.promptsOnly ? answered(value) : value, record.number, options.free);
}

/** The fields of a row with an empty answer where it has none. */
function answered(value: unknown): unknown {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
  if ("instruction" in value && !("output" in value)) return { ...value, output: "" };
  if ("prompt" in value && !("completion" in value || "response" in value)) return { ...value, completion: "" };
  return value;
}

/**
 * Reads data: JSON, JSONL, CSV, TSV or parquet, each perhaps gzipped; a file, a directory, a pattern such as
 * `data/train-*.parquet`, or a Hugging Face data set, `hf:org/name[@revision][:config][/split]`. Each row is
 * `{instruction, input?, output}`, `{prompt, completion | response}` or `{messages: [{role, content}, …]}`; other
 * fields are ignored, save `answer`.
 * Throws one `InputError` (DATA_INVALID) that names the bad rows of all files (the first 20 and a count) and what each
 * lacks.
 */
export async function loadRows(source: string, options: RowOptions = {}): Promise<Row[]> {
  const files = await filesOf(source, options.signal);
  const found: FoundRows = { rows: [], bad: [] };
  for (const [index, file] of files.entries()) {
    if (index > 0) options.signal?.throwIfAborted();
    collect(await readRecords(file), found, files.length > 1 ? file : undefined, options);
  }
  return soundRows(source, found);
}

/**
 * Rows of a text that was not read from a file.
 * @param name what messages call it; one that ends in `.csv` or `.tsv` is read so, anything else as JSON or JSONL
 * @throws InputError as `loadRows`
 */
export async function rowsOfText(text: string, name: string, options: RowOptions = {}): Promise<Row[]> {
  const found: FoundRows = { rows: [], bad: [] };
  collect(await recordsOf(name, Buffer.from(text), { text: true }), found, undefined, options);
  return soundRows(name, found);
}

interface FoundRows {
  readonly rows: Row[];
  /** What is wrong with the others. */
  readonly bad: string[];
}

/** @param file where the data are several */
function collect(records: readonly FileRecord[], found: FoundRows, file: string | undefined, options: RowOptions) {
  const { limit = Number.POSITIVE_INFINITY } = options;
  for (const record of records) {
    if (found.rows.length + found.bad.length >= limit) return;
    const { row, problems } = rowOf(record, options);
    if (row) found.rows.push(file === undefined ? row : { ...row, file });
    else found.bad.push(`${file === undefined ? "" : `${file} `}row ${record.number}: ${problems.join(", ")}`);
  }
}

function soundRows(source: string, { rows, bad }: FoundRows): Row[] {
  if (bad.length) {
    const where = `${source} (${bad.length} bad rows of ${bad.length + rows.length})`;
    throw new InputError("DATA_INVALID", where, shorten(bad));
  }
  if (rows.length === 0) throw new InputError("DATA_INVALID", source, "has no rows");
  return rows;
}
