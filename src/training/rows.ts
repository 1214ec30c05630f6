/** @file Rows of a data file: the three forms a row may have, read as untrusted input, all bad rows named at once. */
import { readFileSync } from "node:fs";
import { InputError, reasonOf } from "../base/index.ts";
import { shorten } from "./text.ts";

export interface Message {
  readonly role: string;
  readonly content: string;
}

interface RowBase {
  /** 1-based: the element of the JSON array, or the line of the JSONL file. */
  readonly number: number;
  /** The bare answer, where the file has one (LLM-Adapters' `answer`); only evaluation looks at it. */
  readonly answer?: string;
}

/** One example: an instruction with its output, a prompt with its response, or a conversation. */
export type Row = RowBase &
  (
    | { readonly form: "instruction"; readonly instruction: string; readonly input: string; readonly output: string }
    | { readonly form: "completion"; readonly prompt: string; readonly response: string }
    /** The last message is the assistant's: that turn is what is learned. */
    | { readonly form: "messages"; readonly messages: readonly Message[] }
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

/** One row of any form. Exported for rows that do not come from a file. */
export function parseRow(value: unknown, number: number): { row?: Row; problems: readonly string[] } {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    return { problems: [`${kindOf(value)}, not an object`] };
  }
  const fields = value as Record<string, unknown>;
  const problems: Problems = [];
  const answer = typeof fields.answer === "string" ? { answer: fields.answer } : {};
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
  } else {
    const found = Object.keys(fields)
      .slice(0, 5)
      .map((key) => `"${key}"`);
    problems.push(`needs "instruction", "prompt" or "messages", has ${found.length ? found.join(", ") : "nothing"}`);
    return { problems };
  }
  return problems.length ? { problems } : { row, problems };
}

/** The objects of a JSON array, or of JSONL (blank lines are skipped), with their numbers. */
function* entries(path: string, content: string, bad: string[]): Generator<[number, unknown]> {
  if (content.trimStart().startsWith("[")) {
    let list: unknown;
    try {
      list = JSON.parse(content);
    } catch (error) {
      throw new InputError("DATA_INVALID", path, `not valid JSON (${reasonOf(error)})`, { cause: error });
    }
    for (const [index, value] of (list as unknown[]).entries()) yield [index + 1, value];
    return;
  }
  for (const [index, line] of content.split("\n").entries()) {
    if (line.trim() === "") continue;
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      bad.push(`row ${index + 1}: not valid JSON (${reasonOf(error)})`);
      continue;
    }
    yield [index + 1, value];
  }
}

/**
 * Reads a data file: a JSON array, or one JSON object a line. Each row is `{instruction, input?, output}`,
 * `{prompt, completion | response}` or `{messages: [{role, content}, …]}`; other keys are ignored, save `answer`.
 * Throws one `InputError` (DATA_INVALID) that names the bad rows (the first 20 and a count) and what each lacks.
 */
export function loadRows(path: string): Row[] {
  let content: string;
  try {
    content = readFileSync(path, "utf8");
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new InputError("FILE_UNREADABLE", path, missing ? "no such file" : reasonOf(error), { cause: error });
  }
  if (content.startsWith("\uFEFF")) content = content.slice(1);
  const rows: Row[] = [];
  const bad: string[] = [];
  for (const [number, value] of entries(path, content, bad)) {
    const { row, problems } = parseRow(value, number);
    if (row) rows.push(row);
    else bad.push(`row ${number}: ${problems.join(", ")}`);
  }
  if (bad.length) {
    bad.sort((a, b) => Number.parseInt(a.slice(4), 10) - Number.parseInt(b.slice(4), 10));
    throw new InputError(
      "DATA_INVALID",
      `${path} (${bad.length} bad rows of ${bad.length + rows.length})`,
      shorten(bad),
    );
  }
  if (rows.length === 0) throw new InputError("DATA_INVALID", path, "has no rows");
  return rows;
}
