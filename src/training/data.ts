/** @file Training and dev examples: rows filtered, split and tokenised, with a count of everything left out. */
import { createHash } from "node:crypto";
import { setImmediate } from "node:timers/promises";
import { deriveSeed, InputError, Random, sum } from "../base/index.ts";
import type { Tokenizer } from "../models/index.ts";
import { countTokens, type ExampleOrder, MixOrder, Order, quotas } from "./batches.ts";
import type { SourceCounts } from "./metrics.ts";
import { outputOf, renderRow } from "./render.ts";
import { type Columns, loadRows, type Row } from "./rows.ts";
import { lacks, PromptTemplate, type Template, templateOf } from "./template.ts";
import { shorten } from "./text.ts";

/** A tokenised sequence: the prompt, then what is learned. */
export interface Example {
  readonly tokens: Int32Array; // [length]
  /** Tokens before the first supervised one; at least 1, less than the length. */
  readonly promptLength: number;
  /** Mixed data: index of the source. */
  readonly source?: number;
  readonly origin?: Origin;
}

/** The row that an example was made from. */
export interface Origin {
  /** Its file, or what the data source is called. */
  readonly file: string;
  /** 1-based, as in messages about the file. */
  readonly row: number;
  /** What its route may have to do with: the row's `answer`, else the data source. */
  readonly label: string;
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

/** A part of mixed training data. */
export interface MixedSource {
  readonly name: string;
  /** Rows to train on. */
  readonly rows: number;
  /** Rows of it in every epoch. */
  readonly perEpoch: number;
}

export interface DataSet {
  /** Mixed data: source after source. */
  readonly train: readonly Example[];
  /** Mixed data: the sources in the order of their examples; otherwise empty. */
  readonly sources: readonly MixedSource[];
  /** Mixed data with weights: those of the sources. */
  readonly weights?: readonly number[];
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

/** What makes two rows the same row: what their template can show. */
function identityOf(row: Row, template: Template): string {
  if (row.form === "free" || template instanceof PromptTemplate) return JSON.stringify(row.fields);
  if (row.form === "messages") return JSON.stringify(row.messages.map(({ role, content }) => [role, content]));
  return JSON.stringify(
    row.form === "instruction" ? [row.instruction, row.input, row.output] : [row.prompt, "", row.response],
  );
}

/** Rows with something to learn, each once; `seen` are rows of earlier sources, and gets these. */
function usableRows(
  rows: readonly Row[],
  template: Template,
  seen: Set<string>,
): { usable: Row[]; emptyOutputs: number; duplicates: number } {
  const usable: Row[] = [];
  let emptyOutputs = 0;
  for (const row of rows) {
    if (outputOf(row).trim() === "") {
      emptyOutputs++;
      continue;
    }
    const identity = identityOf(row, template);
    if (!seen.has(identity)) usable.push(row);
    seen.add(identity);
  }
  return { usable, emptyOutputs, duplicates: rows.length - emptyOutputs - usable.length };
}

/** Tokenises rows; lets the event loop breathe between some of them. */
async function examplesOf(
  source: string,
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
    const origin = { file: row.file ?? source, row: row.number, label: row.answer ?? source };
    examples.push({ ...example, origin });
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

/** Where rows come from. */
export interface Source {
  readonly path: string;
  /** Share of its rows in every epoch, relative to the other sources' weights. */
  readonly weight?: number | undefined;
  /** Default: its path. */
  readonly name?: string | undefined;
  /** As `templateOf` takes it; default that of the other options. */
  readonly template?: string | PromptTemplate | undefined;
  readonly columns?: Columns | undefined;
}

export interface DataOptions {
  readonly train: string | readonly (string | Source)[];
  /** Sources, or the share of the rows of each training source that is split off; 0 = none. */
  readonly dev: string | number | readonly (string | Source)[];
  readonly columns?: Columns | undefined;
  readonly template: string | PromptTemplate;
  /** Tokens; the caller has already lowered it to the backbone's context. */
  readonly maxLength: number;
  readonly seed: number;
  readonly signal?: AbortSignal | undefined;
}

type NamedSource = Source & { readonly name: string; readonly template: Template };

type Defaults = Pick<DataOptions, "template" | "columns">;

function sourcesOf(given: string | readonly (string | Source)[], options: Defaults, field: string): NamedSource[] {
  const list = typeof given === "string" ? [given] : given;
  const sources = list.map((entry) => {
    const { path, name, template, columns, weight } = typeof entry === "string" ? ({ path: entry } as Source) : entry;
    return {
      path,
      name: name ?? path,
      template: templateOf(template ?? options.template),
      columns: columns ?? options.columns,
      weight,
    };
  });
  const problems: string[] = [];
  const names = sources.map(({ name }) => name);
  const twice = new Set(names.filter((name, i) => names.indexOf(name) !== i));
  for (const name of twice) problems.push(`"${name}" is there twice; give each a name of its own`);
  const weightless = sources.filter(({ weight }) => weight === undefined);
  if (weightless.length > 0 && weightless.length < sources.length) {
    problems.push(`${weightless.map(({ name }) => `"${name}"`).join(", ")}: no weight, but others have one`);
  }
  if (problems.length) throw new InputError("DATA_INVALID", field, problems);
  return sources;
}

/** Names all rows that lack what the template needs. */
function requireFields(path: string, rows: readonly Row[], template: PromptTemplate): void {
  const bad = rows.flatMap((row) => {
    const missing = template.missing(row);
    return missing.length ? [lacks(row, missing)] : [];
  });
  if (bad.length === 0) return;
  const where = `${path} (${bad.length} of ${rows.length} rows do not fit the template ${template.name})`;
  throw new InputError("DATA_INVALID", where, shorten(bad));
}

/** Tokenises the rows of sources and counts what it leaves out. */
class Reader {
  readonly warnings: string[] = [];
  readonly #tokenizer: Tokenizer;
  readonly #options: DataOptions;

  constructor(tokenizer: Tokenizer, options: DataOptions) {
    this.#tokenizer = tokenizer;
    this.#options = options;
  }

  async load(source: NamedSource, seen: Set<string>) {
    const { columns, template } = source;
    const free = template instanceof PromptTemplate;
    const rows = await loadRows(source.path, { columns, free, signal: this.#options.signal });
    if (free) requireFields(source.path, rows, template);
    const { usable, ...left } = usableRows(rows, template, seen);
    if (left.emptyOutputs === rows.length) {
      throw new InputError("DATA_INVALID", source.name, "every row has an empty output");
    }
    return { source, usable, left: { rows: rows.length, ...left } };
  }

  async tokenise(
    name: string,
    template: Template,
    rows: readonly Row[],
    left?: Omit<DataCounts, "promptTooLong" | "truncated" | "examples">,
  ): Promise<Example[]> {
    const { maxLength, signal } = this.#options;
    const options = { template, maxLength, ...(signal && { signal }) };
    const { examples, promptTooLong, truncated } = await examplesOf(name, rows, this.#tokenizer, options);
    const counts = left ?? { rows: rows.length, emptyOutputs: 0, duplicates: 0 };
    const lines = describe(name, { ...counts, promptTooLong, truncated, examples: examples.length }, maxLength);
    this.warnings.push(...lines);
    if (counts.rows > 0 && examples.length === 0) {
      throw new InputError("DATA_INVALID", name, `no row is left to learn from (${lines.join("; ")})`);
    }
    return examples;
  }
}

/** The parts of a mix, with what a user should know of them. */
function mixOf(parts: readonly { source: NamedSource; examples: readonly Example[] }[], warnings: string[]) {
  if (parts.length === 1) return { sources: [] };
  const sizes = parts.map(({ examples }) => examples.length);
  const total = sum(sizes);
  const given = parts.map(({ source }) => source.weight);
  const weights = given.every((weight) => weight !== undefined) ? given : undefined;
  const perEpoch = weights === undefined ? sizes : quotas(sizes, weights);
  const sources = parts.map(({ source }, i) => ({ name: source.name, rows: sizes[i]!, perEpoch: perEpoch[i]! }));
  const never = sources.filter((source) => source.perEpoch === 0).map(({ name }) => `"${name}"`);
  if (never.length) {
    const problem = `${never.join(", ")}: the weight is less than one row of the ${total} of an epoch`;
    throw new InputError("DATA_INVALID", "data.train", problem);
  }
  for (const { name, rows, perEpoch: count } of weights === undefined ? [] : sources) {
    const times = Number((count / rows).toPrecision(3));
    warnings.push(`${name}: ${count} of the ${total} rows of an epoch, each of its ${rows} rows ${times} times`);
  }
  return { sources, ...(weights && { weights }) };
}

/**
 * Loads and tokenises the rows of a run. Rows with an empty output and repeated rows (also of an earlier source) are
 * left out; a row longer than `maxLength` loses its end, as in LLM-Adapters; one whose prompt leaves no room for the
 * response is left out, so that nothing trains on empty losses. Each of these is counted in `warnings`. Throws
 * `InputError` for unusable files.
 */
export async function loadData(tokenizer: Tokenizer, options: DataOptions): Promise<DataSet> {
  const { dev, seed } = options;
  const reader = new Reader(tokenizer, options);
  const { warnings } = reader;
  const trainSources = sourcesOf(options.train, options, "data.train");
  const devSources = typeof dev === "number" ? [] : sourcesOf(dev, options, "data.dev");
  const known = new Set<string>();
  const parts: { source: NamedSource; examples: readonly Example[] }[] = [];
  const devSet: Example[] = [];
  for (const one of trainSources) {
    const { source, usable, left } = await reader.load(one, known);
    const split = typeof dev === "number" ? splitRows(usable, dev, seed) : { train: usable, dev: [] };
    const examples = await reader.tokenise(source.name, source.template, split.train, left);
    const index = parts.length;
    parts.push({
      source,
      examples: trainSources.length === 1 ? examples : examples.map((example) => ({ ...example, source: index })),
    });
    devSet.push(...(await reader.tokenise(`${source.name} (dev share)`, source.template, split.dev)));
  }
  const devSeen = new Set<string>();
  for (const one of devSources) {
    const { source, usable, left } = await reader.load(one, devSeen);
    devSet.push(...(await reader.tokenise(source.name, source.template, usable, left)));
    const shared = usable.filter((row) => known.has(identityOf(row, source.template))).length;
    if (shared === 0) continue;
    const rows = `${shared} of ${usable.length} rows`;
    warnings.push(`${source.name}: ${rows} are training rows, too; dev perplexity will flatter`);
  }
  const mix = mixOf(parts, warnings);
  const train = parts.flatMap(({ examples }) => examples);
  const content = examplesDigest(train, devSet);
  const digest =
    parts.length === 1
      ? content
      : createHash("sha256")
          .update(JSON.stringify([content, mix]))
          .digest("hex");
  return { train, dev: devSet, ...mix, digest, warnings };
}

/** All rows of the training sources, also those that `loadData` would leave out. Throws `InputError`. */
export async function countRows(options: Defaults & Pick<DataOptions, "train">): Promise<number> {
  let rows = 0;
  for (const { path, columns, template } of sourcesOf(options.train, options, "data.train")) {
    rows += (await loadRows(path, { columns, free: template instanceof PromptTemplate })).length;
  }
  return rows;
}

/** The order in which a run takes its training examples. */
export function trainOrder({ train, sources, weights }: DataSet, seed: number): ExampleOrder {
  if (weights === undefined) return new Order(train.length, seed, "train order");
  return new MixOrder(
    sources.map(({ rows }) => rows),
    weights,
    seed,
    "train order",
  );
}

/** Rows and tokens of a batch by the name of their source; undefined where data are not mixed. */
export function countSources(
  { sources }: DataSet,
  batch: readonly Example[],
): Readonly<Record<string, SourceCounts>> | undefined {
  if (sources.length === 0) return undefined;
  const of = (index: number): SourceCounts => {
    const own = batch.filter((example) => example.source === index);
    return { rows: own.length, tokens: countTokens(own) };
  };
  return Object.fromEntries(sources.map(({ name }, index) => [name, of(index)]));
}
