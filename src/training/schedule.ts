/** @file Learning-rate schedules: a factor in [0, 1] for each optimizer step. */

export type ScheduleName = "linear" | "constant";

/** Number of warm-up steps of a run, rounded up as transformers' `TrainingArguments.get_warmup_steps` does. */
export function warmupSteps(totalSteps: number, warmupRatio: number): number {
  return Math.ceil(totalSteps * warmupRatio);
}

/**
 * Factor of the base learning rate for step `step` (0-based). `linear` is transformers'
 * `get_linear_schedule_with_warmup`: the very first step has factor 0 when there is a warm-up; after it the factor
 * falls from 1 to 0 at `totalSteps`. `constant` stays at 1 after the same warm-up.
 */
export function scheduleFactor(name: ScheduleName, step: number, totalSteps: number, warmup: number): number {
  if (step < warmup) return step / Math.max(1, warmup);
  if (name === "constant") return 1;
  return Math.max(0, (totalSteps - step) / Math.max(1, totalSteps - warmup));
}
