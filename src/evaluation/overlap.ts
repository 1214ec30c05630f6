/** @file Whether questions of a test occur in training rows: runs of 13 words that both have. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { type Columns, loadRows, type Row, readRunConfig } from "../training/index.ts";
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

function* runsOf(words: readonly string[], length: number): Generator<string> {
  for (let i = 0; i + length <= words.length; i++) yield words.slice(i, i + length).join(" ");
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

/** Texts of test rows, compared with training rows; `texts[i]` is what row i asks, without its template. */
export function findOverlap(texts: readonly string[], training: TrainingTexts): Overlap {
  const owners = new Map<string, Set<number>>();
  const lengths = new Set<number>();
  let unchecked = 0;
  for (const [row, text] of texts.entries()) {
    const words = wordsOf(text);
    const length = Math.min(WORDS, words.length);
    if (length < FEWEST) {
      unchecked++;
      continue;
    }
    lengths.add(length);
    for (const run of runsOf(words, length)) {
      const rows = owners.get(run);
      if (rows) rows.add(row);
      else owners.set(run, new Set([row]));
    }
  }
  const most = Math.max(FRAME_ROWS, texts.length * FRAME_SHARE);
  for (const [run, rows] of owners) if (rows.size > most) owners.delete(run);
  const found = new Set<number>();
  const hash = createHash("sha256");
  for (const text of training.texts) {
    hash.update(`${text}\n`);
    const words = wordsOf(text);
    for (const length of lengths) {
      for (const run of runsOf(words, length)) for (const row of owners.get(run) ?? []) found.add(row);
    }
  }
  return {
    training: training.names,
    trainingRows: training.texts.length,
    trainingDigest: hash.digest("hex"),
    words: WORDS,
    checked: texts.length - unchecked,
    unchecked,
    rows: [...found].sort((a, b) => a - b),
  };
}

/** What a document asks, without its choices: those stand apart in every prompt. */
export function textOfDocument({ passage, question }: Document): string {
  return passage === undefined ? question : `${passage} ${question}`;
}

/** Where training rows are, and under which columns. */
export interface TrainingSource {
  readonly path: string;
  readonly columns?: Columns | undefined;
}

export interface TrainingTexts {
  readonly names: readonly string[];
  readonly texts: readonly string[];
}

/** Texts of training rows of any form. */
export async function trainingTexts(sources: readonly TrainingSource[], signal?: AbortSignal): Promise<TrainingTexts> {
  const texts: string[] = [];
  for (const { path, columns } of sources) {
    texts.push(...(await loadRows(path, { free: true, columns, signal })).map(textOfRow));
  }
  return { names: sources.map(({ path }) => path), texts };
}

/** How far above an adapter its run's directory may be: `run/best`, `run/checkpoints/step-100`. */
const LEVELS = 3;

/** What an adapter was trained on, where its run's config.json is still above it. */
export function trainingSourcesOf(adapter: string): TrainingSource[] | undefined {
  let directory = resolve(adapter);
  for (let level = 0; level <= LEVELS; level++, directory = dirname(directory)) {
    if (!existsSync(join(directory, "config.json"))) continue;
    try {
      const { train, columns } = readRunConfig(directory).data;
      const sources = typeof train === "string" ? [train] : train;
      return sources.map((source) => (typeof source === "string" ? { path: source, columns } : { columns, ...source }));
    } catch {
      // Some other config.json: that of a model, for one.
    }
  }
  return undefined;
}
