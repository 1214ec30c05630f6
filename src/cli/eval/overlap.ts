/** @file Whether questions were seen in training: which training rows are known, and the warning. */
import { InputError } from "../../base/index.ts";
import { type Overlap, type TrainingTexts, trainingSourcesOf, trainingTexts } from "../../evaluation/index.ts";
import { warn } from "../terminal.ts";
import type { EvalFlags } from "./flags.ts";

export type Training = TrainingTexts | { readonly skipped: string };

/** Training rows that are known: named ones, else those of the adapter's run; or why there are none. */
export async function trainingFor({ overlap, train, adapter }: EvalFlags): Promise<Training> {
  if (!overlap) return { skipped: "turned off" };
  if (train) return await trainingTexts(train.map((path) => ({ path })));
  const sources = adapter === undefined ? undefined : trainingSourcesOf(adapter);
  if (!sources) return { skipped: "no training rows are known; --train names them" };
  try {
    return await trainingTexts(sources);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    return { skipped: `the training rows cannot be read: ${error.message}` };
  }
}

/** Says so where test rows were seen in training. */
export function warnOfOverlap(name: string, overlap: Overlap | { readonly skipped: string }, rows: number): void {
  if ("skipped" in overlap || overlap.rows.length === 0) return;
  const text = `${overlap.rows.length} of ${rows} rows share ${overlap.words} words in a row with the training rows`;
  warn(`${name}: ${text}`);
}
