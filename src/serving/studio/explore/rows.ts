/** @file Rows of a data set as prompts, read and rendered as training does; what cannot be used is named, row by row. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { InputError } from "../../../base/index.ts";
import type { Tokenizer } from "../../../models/index.ts";
import { loadRows, parseRow, type Row, renderPrompt, rowsOfText, shorten } from "../../../training/index.ts";
import { RequestError } from "../../http/errors.ts";
import type { NamedData } from "../types.ts";
import type { ExploreDataBody } from "./schemas.ts";

const BUNDLED = fileURLToPath(new URL("../../../../assets/data/", import.meta.url)); // same place from dist/

/** Rows rendered at a time. */
const TURN = 64;

let listed: Promise<readonly NamedData[]> | undefined;

/** The data sets that come with the package and whose rows are those of training. */
export function namedData(): Promise<readonly NamedData[]> {
  listed ??= listBundled();
  return listed;
}

async function listBundled(): Promise<NamedData[]> {
  const files = await readdir(BUNDLED, { recursive: true, withFileTypes: true });
  const found: NamedData[] = [];
  for (const { name, parentPath } of files.filter((file) => file.isFile() && file.name.endsWith(".jsonl"))) {
    const path = join(parentPath, name);
    const lines = (await readFile(path, "utf8")).split("\n").filter((line) => line.trim() !== "");
    const usable = lines.length > 0 && parseRow(JSON.parse(lines[0]!), 1).row !== undefined;
    if (usable) found.push({ name: nameOf(path), rows: lines.length });
  }
  return found.sort((a, b) => (a.name < b.name ? -1 : 1));
}

const nameOf = (path: string): string =>
  path
    .slice(BUNDLED.length)
    .replaceAll("\\", "/")
    .replace(/\.jsonl$/, "");

/** A prompt and the answer of its row, where it has one. */
export interface DataPrompt {
  readonly tokens: readonly number[];
  readonly answer: string | undefined;
}

/** @throws InputError DATA_INVALID with every problem and its row; RequestError for a name that there is not */
export async function readPrompts(
  body: ExploreDataBody,
  tokenizer: Tokenizer,
  { context, signal }: { readonly context: number; readonly signal: AbortSignal },
): Promise<DataPrompt[]> {
  const rows = await rowsOf(body);
  const prompts: DataPrompt[] = [];
  const bad: string[] = [];
  for (const [index, row] of rows.entries()) {
    if (index % TURN === TURN - 1) {
      await setImmediate();
      signal.throwIfAborted();
    }
    try {
      const tokens = renderPrompt(row, tokenizer, { template: body.template });
      if (tokens.length > context) {
        bad.push(`row ${row.number}: its prompt has ${tokens.length} tokens, the context holds ${context}`);
      } else if (tokens.length === 0) bad.push(`row ${row.number}: its prompt is empty`);
      else prompts.push({ tokens, answer: row.answer });
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      bad.push(error.message.startsWith("row ") ? error.message : `row ${row.number}: ${error.message}`);
    }
  }
  if (bad.length) {
    throw new InputError(
      "DATA_INVALID",
      `${body.name ?? "the data"} (${bad.length} bad rows of ${rows.length})`,
      shorten(bad),
    );
  }
  return prompts;
}

async function rowsOf({ name, text, format, limit }: ExploreDataBody): Promise<Row[]> {
  if (text !== undefined) {
    return rowsOfText(text, format === "csv" ? "data.csv" : `data.${format}`, { limit, promptsOnly: true });
  }
  const known = await namedData();
  if (!known.some((one) => one.name === name)) {
    const problem = `there is no data set of this name; there are ${known.map((one) => one.name).join(", ")}`;
    throw new RequestError(`name: ${problem}`, "name");
  }
  return loadRows(join(BUNDLED, `${name}.jsonl`), { limit, promptsOnly: true });
}
