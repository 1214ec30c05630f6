/** @file How much a scheduler takes on: rows, adapters, memory, and how many requests may wait. */
import { z } from "zod";

const count = z.int().min(1);

/** Every field has a default; `schedulerLimitsSchema.parse({})` gives them all. */
export const schedulerLimitsSchema = z.strictObject({
  maxBatch: count.default(16).describe("sequences that decode together, beams and choices counted"),
  maxAdaptersPerBatch: count
    .default(16)
    .describe("different adapters that decode together; the bare model counts as one"),
  maxKvTokens: count
    .default(65_536)
    .describe("positions of the key-value cache: sequences at a time, times the longest of them with its answer"),
  maxPrefillTokens: count
    .default(256)
    .describe("prompt tokens read between two steps of the sequences that decode; longer prompts are read in slices"),
  maxWaiting: count.default(256).describe("requests that may wait, of all tenants"),
  maxWaitingPerTenant: count.default(64).describe("requests of one tenant that may wait"),
  maxRunningPerTenant: count.default(64).describe("requests of one tenant that run at a time"),
  maxTokensPerTenant: count
    .optional()
    .describe("tokens of one tenant's running requests, answers counted at full length; without it no limit"),
});

export type SchedulerLimits = z.infer<typeof schedulerLimitsSchema>;
/** The same as it is written: every field may be left out. */
export type SchedulerLimitsInput = z.input<typeof schedulerLimitsSchema>;
