/** @file Grids of trainings and measurements as jobs on a database, done by workers on any machine. */

export { CELL_STATES, type CellPage, type CellQuery, type CellState, type CellStatus } from "./cells.ts";
export { adoptRecords, type GridOptions, RETRIES, RETRY_SECONDS, runGrid, submitGrid } from "./grid.ts";
export type { RetryPolicy } from "./jobs.ts";
export { sweepOf } from "./marker.ts";
export type { SweepOverview } from "./overview.ts";
export type { SweepPace } from "./pace.ts";
export { openSpec, type PaperSpec, presetOfSpec, type SweepSpec } from "./spec.ts";
export type { DeadJob, RunningJob, SweepFacts, SweepStatus, WorkerStatus } from "./status.ts";
export { findSweeps, openSweeps, type SweepLocation, Sweeps } from "./sweeps.ts";
export { ALONE_LEASE_SECONDS, LEASE_SECONDS, type WorkerEvent, type WorkerOptions, workOn } from "./worker.ts";
