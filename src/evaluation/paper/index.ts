/** @file The paper's tables and figures: planned, run, and told beside the paper's numbers. */
export { type Cost, costOf, measurePace, type Pace } from "./cost.ts";
export { judgingOfPlan } from "./judging-cost.ts";
export type { Plan, PlannedCell, PlannedRun, World } from "./plan.ts";
export { problemsOf } from "./plan.ts";
export type { Preset } from "./presets.ts";
export { findPreset, findStudies, loadStudies } from "./registry.ts";
export { csvTable, differencesTable, doneText, markdownReport, markdownTable, valueText } from "./render.ts";
export { type ReproduceOptions, reproduce } from "./reproduce.ts";
export { type Report, reportOf } from "./results.ts";
export { type Failure, type Outcome, openCells, openRuns, type RunEvent, runPlan } from "./run.ts";
export type { Chart, Table } from "./study.ts";
export { openWorld, planOf } from "./world.ts";
