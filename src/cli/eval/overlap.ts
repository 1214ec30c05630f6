/** @file Whether questions were seen in training: which training rows are known, and the warning. */
import { knownTraining, type Overlap, type TrainingTexts, trainingTexts } from "../../evaluation/index.ts";
import { warn } from "../terminal.ts";
import type { EvalFlags } from "./flags.ts";

export type Training = TrainingTexts | { readonly skipped: string };

/** Training rows that are known: named ones, else those of the adapter's run; or why there are none. */
export async function trainingFor({ overlap, train, adapter }: EvalFlags): Promise<Training> {
  if (!overlap) return { skipped: "turned off" };
  if (train) return await trainingTexts(train.map((path) => ({ path })));
  const known = await knownTraining(adapter);
  const unknown = "skipped" in known && known.skipped === "no training rows are known";
  return unknown ? { skipped: `${known.skipped}; --train names them` } : known;
}

/** Says so where test rows were seen in training. */
export function warnOfOverlap(name: string, overlap: Overlap | { readonly skipped: string }, rows: number): void {
  if ("skipped" in overlap || overlap.rows.length === 0) return;
  const text = `${overlap.rows.length} of ${rows} rows share ${overlap.words} words in a row with the training rows`;
  warn(`${name}: ${text}`);
}
