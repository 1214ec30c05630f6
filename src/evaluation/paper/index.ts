/** @file The paper's tables and figures: planned, run, and told beside the paper's numbers. */
export { type Cost, costOf, measurePace, type Pace } from "./cost.ts";
export { judgingOfPlan } from "./judging-cost.ts";
export { isPortable, type Part, type Piece, partsOf, pieceOf } from "./parts.ts";
export type { Plan, PlannedCell } from "./plan.ts";
export { type Preset, REPRODUCE_PRESETS } from "./presets.ts";
export { findPreset, findStudies, loadStudies } from "./registry.ts";
export { csvTable, differencesTable, doneText, markdownReport, markdownTable, valueText } from "./render.ts";
export { type ReproduceOptions, reproduce } from "./reproduce.ts";
export { type Report, reportOf } from "./results.ts";
export { type Failure, type Outcome, openCells, openRuns, type RunEvent, type RunOptions, runPlan } from "./run.ts";
export { type CellRecord, CellStore, cellRecordSchema, machineName, writeRecord } from "./store.ts";
export type { Chart, Table } from "./study.ts";
export { type PlannedRun, problemsOf, type Work, type WorkCell, type World } from "./work.ts";
export { openWorld, planOf } from "./world.ts";
