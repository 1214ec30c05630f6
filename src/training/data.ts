/** @file Training and dev examples: rows filtered, split and tokenised, with a count of everything left out. */
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { deriveSeed, InputError, Random } from "../base/index.ts";
import type { Tokenizer } from "../models/index.ts";
import { outputOf, renderRow, type Template } from "./render.ts";
import { type Columns, loadRows, type Row } from "./rows.ts";

/** A tokenised sequence: the prompt, then what is learned. */
export interface Example {
  readonly tokens: Int32Array; // [length]
  /** Tokens before the first supervised one; at least 1, less than the length. */
  readonly promptLength: number;
}

/** Rows left out or cut, by reason. */
export interface DataCounts {
  readonly rows: number;
  readonly emptyOutputs: number;
  readonly duplicates: number;
  /** The prompt alone fills the sequence: nothing would be learned. */
  readonly promptTooLong: number;
  /** The response lost its end; such a sequence has no end-of-sequence token. */
  readonly truncated: number;
  readonly examples: number;
}

export interface DataSet {
  readonly train: readonly Example[];
  readonly dev: readonly Example[];
  /** sha256 over all examples, in order: the identity of what a run learns from. */
  readonly digest: string;
  /** What a user should know, in sentences. */
  readonly warnings: readonly string[];
}

/** An example of at most `maxLength` tokens, or undefined where no supervised token would be left. */
export function toExample(
  prompt: readonly number[],
  response: readonly number[],
  maxLength: number,
): Example | undefined {
  if (prompt.length === 0 || response.length === 0 || prompt.length >= maxLength) return undefined;
  const tokens = Int32Array.from([...prompt, ...response].slice(0, maxLength));
  return { tokens, promptLength: prompt.length };
}

/** What makes two rows the same row. */
function identityOf(row: Row): string {
  if (row.form === "messages") return JSON.stringify(row.messages.map(({ role, content }) => [role, content]));
  return JSON.stringify(
    row.form === "instruction" ? [row.instruction, row.input, row.output] : [row.prompt, "", row.response],
  );
}

/** Rows with something to learn, each once. */
function usableRows(rows: readonly Row[]): { usable: Row[]; emptyOutputs: number; duplicates: number } {
  const seen = new Set<string>();
  const usable: Row[] = [];
  let emptyOutputs = 0;
  for (const row of rows) {
    if (outputOf(row).trim() === "") {
      emptyOutputs++;
      continue;
    }
    const identity = identityOf(row);
    if (!seen.has(identity)) usable.push(row);
    seen.add(identity);
  }
  return { usable, emptyOutputs, duplicates: rows.length - emptyOutputs - usable.length };
}

/** Tokenises rows; lets the event loop breathe between some of them. */
async function examplesOf(
  rows: readonly Row[],
  tokenizer: Tokenizer,
  options: { template: Template; maxLength: number; signal?: AbortSignal },
): Promise<{ examples: Example[]; promptTooLong: number; truncated: number }> {
  const examples: Example[] = [];
  let truncated = 0;
  for (const [index, row] of rows.entries()) {
    if (index % 64 === 63) {
      await setImmediate();
      options.signal?.throwIfAborted();
    }
    const { prompt, response } = renderRow(row, tokenizer, options);
    const example = toExample(prompt, response, options.maxLength);
    if (example === undefined) continue;
    if (example.tokens.length < prompt.length + response.length) truncated++;
    examples.push(example);
  }
  return { examples, promptTooLong: rows.length - examples.length, truncated };
}

/** The rows of a share, drawn by seed; both parts keep the file's order. */
export function splitRows<T>(rows: readonly T[], share: number, seed: number): { train: T[]; dev: T[] } {
  const size = share === 0 ? 0 : Math.max(1, Math.round(rows.length * share));
  if (size >= rows.length) {
    throw new InputError(
      "DATA_INVALID",
      "data.dev",
      `a share of ${share} of ${rows.length} rows leaves none to train on`,
    );
  }
  const chosen = new Set(new Random(deriveSeed(seed, "dev split")).permutation(rows.length).slice(0, size));
  return { train: rows.filter((_, i) => !chosen.has(i)), dev: rows.filter((_, i) => chosen.has(i)) };
}

function describe(name: string, counts: DataCounts, maxLength: number): string[] {
  const rows = (n: number): string => (n === 1 ? "1 row" : `${n} rows`);
  const lines: string[] = [];
  const say = (n: number, what: string): void => {
    if (n > 0) lines.push(`${name}: ${rows(n)} of ${counts.rows} ${what}`);
  };
  say(counts.emptyOutputs, "left out, empty output");
  say(counts.duplicates, "left out, the same as an earlier row");
  say(counts.promptTooLong, `left out, the prompt alone has ${maxLength} tokens or more`);
  say(counts.truncated, `cut at ${maxLength} tokens: the end of the response is not learned`);
  return lines;
}

/** sha256 over the examples' tokens and boundaries. */
export function examplesDigest(...sets: readonly (readonly Example[])[]): string {
  const hash = createHash("sha256");
  for (const set of sets) {
    hash.update(`${set.length}\n`);
    for (const { tokens, promptLength } of set) {
      hash.update(Int32Array.of(tokens.length, promptLength));
      hash.update(tokens);
    }
  }
  return hash.digest("hex");
}

export interface DataOptions {
  readonly train: string;
  /** A file, or the share of the training rows that is split off; 0 = none. */
  readonly dev: string | number;
  readonly columns?: Columns | undefined;
  readonly template: Template;
  /** Tokens; the caller has already lowered it to the backbone's context. */
  readonly maxLength: number;
  readonly seed: number;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Loads and tokenises the rows of a run. Rows with an empty output and repeated rows are left out; a row longer than
 * `maxLength` loses its end, as in LLM-Adapters; one whose prompt leaves no room for the response is left out, so
 * that nothing trains on empty losses. Each of these is counted in `warnings`. Throws `InputError` for unusable files.
 */
export async function loadData(tokenizer: Tokenizer, options: DataOptions): Promise<DataSet> {
  const { template, maxLength } = options;
  const warnings: string[] = [];
  const tokenise = async (
    name: string,
    rows: readonly Row[],
    counts: Omit<DataCounts, "promptTooLong" | "truncated" | "examples">,
  ) => {
    const signal = options.signal === undefined ? {} : { signal: options.signal };
    const { examples, promptTooLong, truncated } = await examplesOf(rows, tokenizer, {
      template,
      maxLength,
      ...signal,
    });
    warnings.push(...describe(name, { ...counts, promptTooLong, truncated, examples: examples.length }, maxLength));
    if (rows.length > 0 && examples.length === 0) {
      throw new InputError("DATA_INVALID", name, `no row is left to learn from (${warnings.join("; ")})`);
    }
    return examples;
  };

  const trainRows = await loadRows(options.train, options);
  const { usable, ...left } = usableRows(trainRows);
  if (usable.length === 0) throw new InputError("DATA_INVALID", options.train, "every row has an empty output");
  if (typeof options.dev === "number") {
    const { train, dev } = splitRows(usable, options.dev, options.seed);
    const trainSet = await tokenise(options.train, train, { rows: trainRows.length, ...left });
    const devSet = await tokenise(`${options.train} (dev share)`, dev, {
      rows: dev.length,
      emptyOutputs: 0,
      duplicates: 0,
    });
    return { train: trainSet, dev: devSet, digest: examplesDigest(trainSet, devSet), warnings };
  }
  const devRows = await loadRows(options.dev, options);
  const { usable: dev, ...devLeft } = usableRows(devRows);
  const known = new Set(usable.map(identityOf));
  const shared = dev.filter((row) => known.has(identityOf(row))).length;
  const trainSet = await tokenise(options.train, usable, { rows: trainRows.length, ...left });
  const devSet = await tokenise(options.dev, dev, { rows: devRows.length, ...devLeft });
  if (devSet.length === 0) throw new InputError("DATA_INVALID", options.dev, "every row has an empty output");
  if (shared > 0) {
    warnings.push(
      `${options.dev}: ${shared} of ${dev.length} rows are training rows, too; dev perplexity will flatter`,
    );
  }
  return { train: trainSet, dev: devSet, digest: examplesDigest(trainSet, devSet), warnings };
}
