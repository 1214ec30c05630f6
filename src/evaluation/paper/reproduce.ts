/** @file Tables and figures in one call, for programs: planned, run as far as they are missing, reported. */
import type { Preset, ReproducePreset } from "./presets.ts";
import { findPreset } from "./registry.ts";
import { type Report, reportOf } from "./results.ts";
import { type RunOptions, runPlan } from "./run.ts";
import { openWorld, planOf } from "./world.ts";

export interface ReproduceOptions extends RunOptions {
  /** Directory of all that is trained and measured. The same call goes on from there and does nothing twice. */
  readonly output: string;
  /** How much of everything; `small` by default. */
  readonly preset?: ReproducePreset;
  /** What is to differ from the preset, e.g. `{ model, dataDirectory, seeds: 1 }`. */
  readonly changes?: Partial<Omit<Preset, "name">>;
}

/**
 * Trains and measures what tables and figures of Zhang et al. 2024 (arXiv 2410.18035) need, as `milora reproduce` does
 * (docs/reproduce.md). MT-Bench of table 3 is left out: that is the command's, which asks before a judge is paid.
 *
 * @param names `table1` … `fig5`, or `all`
 * @returns tables and charts beside the paper's numbers; what failed stands in `failures` and is tried again by the
 *   next call
 * @throws InputError `FLAG_INVALID` for unknown names or presets; the signal's reason when it was aborted
 */
export async function reproduce(names: readonly string[], options: ReproduceOptions): Promise<Report> {
  const { output, preset = "small", changes = {}, signal, onEvent } = options;
  const settings: Preset = { ...findPreset(preset), ...changes };
  using world = openWorld(settings, output);
  const plan = await planOf(names, settings, world);
  const { failures } = await runPlan(plan, world, { signal, onEvent });
  return reportOf(plan, world.store, failures);
}
