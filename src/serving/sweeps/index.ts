/** @file Grids of trainings and measurements as jobs on a database, done by workers on any machine. */
export { adoptRecords, type GridOptions, RETRIES, RETRY_SECONDS, runGrid, submitGrid } from "./grid.ts";
export type { RetryPolicy } from "./jobs.ts";
export { sweepOf } from "./marker.ts";
export { presetOfSpec, type SweepSpec } from "./spec.ts";
export type { DeadJob, RunningJob, SweepFacts, SweepStatus, WorkerStatus } from "./status.ts";
export { openSweeps, type SweepLocation, Sweeps } from "./sweeps.ts";
export { LEASE_SECONDS, type WorkerEvent, type WorkerOptions, workOn } from "./worker.ts";
