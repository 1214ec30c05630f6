/** @file Whether questions of a test occur in training rows: runs of 13 words that both have. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { InputError } from "../base/index.ts";
import { type Columns, loadRows, type Row, readRunConfig, type TrainingConfig } from "../training/index.ts";
import type { Document } from "./task.ts";

/** Words in a run, as in GPT-3's check (Brown et al. 2020, appendix C). */
const WORDS = 13;
/** A shorter text counts as found when all of it is; below this many words it says too little. */
const FEWEST = 8;
/** A run that more of the questions share is the task's frame. */
const FRAME_SHARE = 0.01;
const FRAME_ROWS = 3;

/** What was compared with what, and which test rows turned up. */
export interface Overlap {
  readonly training: readonly string[];
  readonly trainingRows: number;
  /** sha256 of the training texts. */
  readonly trainingDigest: string;
  readonly words: number;
  readonly checked: number;
  /** Too short to tell. */
  readonly unchecked: number;
  /** Test rows, from 0, that share a run with a training row. */
  readonly rows: readonly number[];
}

/** Letters and digits in lower case; everything else parts words. */
function wordsOf(text: string): string[] {
  return (
    text
      .normalize("NFKC")
      .toLowerCase()
      .match(/[\p{L}\p{N}]+/gu) ?? []
  );
}

/** All that a training row shows the model. */
export function textOfRow(row: Row): string {
  if (row.form === "instruction") return `${row.instruction} ${row.input} ${row.output}`;
  if (row.form === "completion") return `${row.prompt} ${row.response}`;
  if (row.form === "messages") return row.messages.map(({ content }) => content).join(" ");
  return Object.values(row.fields ?? { output: row.output })
    .filter((value) => typeof value === "string")
    .join(" ");
}

/** Runs that begin with the same words. */
interface Head {
  readonly runs: { readonly words: readonly string[]; readonly rows: Set<number> }[];
}

/** Texts of test rows, compared with training rows; `texts[i]` is what row i asks, without its template. */
export function findOverlap(texts: readonly string[], training: TrainingTexts): Overlap {
  // By their first words, so that every place of a training row needs one look only.
  const heads = new Map<string, Head>();
  let unchecked = 0;
  for (const [row, text] of texts.entries()) {
    const words = wordsOf(text);
    const length = Math.min(WORDS, words.length);
    if (length < FEWEST) unchecked++;
    for (let i = 0; length >= FEWEST && i + length <= words.length; i++) addRun(heads, words.slice(i, i + length), row);
  }
  const most = Math.max(FRAME_ROWS, texts.length * FRAME_SHARE);
  const found = new Set<number>();
  for (const words of training.rows) {
    for (let i = 0; i + FEWEST <= words.length; i++) {
      const head = heads.get(words.slice(i, i + FEWEST).join(" "));
      for (const run of head?.runs ?? []) {
        if (run.rows.size > most || !run.words.every((word, j) => word === words[i + j])) continue;
        for (const row of run.rows) found.add(row);
      }
    }
  }
  return {
    training: training.names,
    trainingRows: training.rows.length,
    trainingDigest: training.digest,
    words: WORDS,
    checked: texts.length - unchecked,
    unchecked,
    rows: [...found].sort((a, b) => a - b),
  };
}

function addRun(heads: Map<string, Head>, words: readonly string[], row: number): void {
  const key = words.slice(0, FEWEST).join(" ");
  let head = heads.get(key);
  if (!head) {
    head = { runs: [] };
    heads.set(key, head);
  }
  const same = head.runs.find((run) => run.words.length === words.length && run.words.every((w, i) => w === words[i]));
  if (same) same.rows.add(row);
  else head.runs.push({ words, rows: new Set([row]) });
}

/** What a document asks, without its choices: those stand apart in every prompt. */
export function textOfDocument({ passage, question, turns = [question] }: Document): string {
  const asked = turns.join(" ");
  return passage === undefined ? asked : `${passage} ${asked}`;
}

/** Where training rows are, and under which columns. */
export interface TrainingSource {
  readonly path: string;
  readonly columns?: Columns | undefined;
}

/** Training rows as words. */
export interface TrainingTexts {
  readonly names: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** sha256 of the texts. */
  readonly digest: string;
}

export function asTraining(names: readonly string[], texts: readonly string[]): TrainingTexts {
  const hash = createHash("sha256");
  for (const text of texts) hash.update(`${text}\n`);
  return { names, rows: texts.map(wordsOf), digest: hash.digest("hex") };
}

/** Training rows of any form. */
export async function trainingTexts(sources: readonly TrainingSource[], signal?: AbortSignal): Promise<TrainingTexts> {
  const texts: string[] = [];
  for (const { path, columns } of sources) {
    texts.push(...(await loadRows(path, { free: true, columns, signal })).map(textOfRow));
  }
  return asTraining(
    sources.map(({ path }) => path),
    texts,
  );
}

/** Training rows of an adapter's run, or why none are known. */
export async function knownTraining(
  adapter: string | undefined,
): Promise<TrainingTexts | { readonly skipped: string }> {
  const sources = adapter === undefined ? undefined : trainingSourcesOf(adapter);
  if (!sources) return { skipped: "no training rows are known" };
  try {
    return await trainingTexts(sources);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    return { skipped: `the training rows cannot be read: ${error.message}` };
  }
}

/** How far above an adapter its run's directory may be: `run/best`, `run/checkpoints/step-100`. */
const LEVELS = 3;

/** The config of an adapter's run, where its config.json is still above it. */
export function runConfigOf(adapter: string): TrainingConfig | undefined {
  let directory = resolve(adapter);
  for (let level = 0; level <= LEVELS; level++, directory = dirname(directory)) {
    if (!existsSync(join(directory, "config.json"))) continue;
    try {
      return readRunConfig(directory);
    } catch {
      // Some other config.json: that of a model, for one.
    }
  }
  return undefined;
}

/** What an adapter was trained on, where its run is known. */
export function trainingSourcesOf(adapter: string): TrainingSource[] | undefined {
  const config = runConfigOf(adapter);
  if (!config) return undefined;
  const { train, columns } = config.data;
  const sources = typeof train === "string" ? [train] : train;
  return sources.map((source) => (typeof source === "string" ? { path: source, columns } : { columns, ...source }));
}
