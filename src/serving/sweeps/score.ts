/** @file What a finished cell is worth in one number, for tables of cells of every kind. */
import { z } from "zod";
import type { CellRecord } from "../../evaluation/index.ts";

export interface CellScore {
  readonly metric: string;
  readonly value: number;
}

const number = z.number();
const trainedSchema = z.object({ devPerplexity: number });
const measuredSchema = z.object({ metric: z.string(), value: number });
const ratedSchema = z.object({ value: number, judge: z.string() });
const timedSchema = z.object({ tokensPerSecond: number });

/** Undefined for what has none: rows that were counted, trainings without dev rows. */
export function scoreOf({ value }: Pick<CellRecord, "value">): CellScore | undefined {
  const measured = measuredSchema.safeParse(value);
  if (measured.success) return measured.data;
  const trained = trainedSchema.safeParse(value);
  if (trained.success) return { metric: "dev perplexity", value: trained.data.devPerplexity };
  const rated = ratedSchema.safeParse(value);
  if (rated.success) return { metric: "rating", value: rated.data.value };
  const timed = timedSchema.safeParse(value);
  return timed.success ? { metric: "tokens/s", value: timed.data.tokensPerSecond } : undefined;
}
