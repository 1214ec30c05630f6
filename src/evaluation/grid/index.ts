/** @file Grids of somebody's own: trainings with axes of settings, and adapters that are there, each measured on named data. */
export type { Scored } from "./measure.ts";
export { type GridPlan, type PlannedPoint, planGrid } from "./plan.ts";
export { type GridIndex, type GridResults, gridResults, gridTable, indexOf, readIndex, writeIndex } from "./results.ts";
export { type Grid, gridSchema, portableGrid, readGrid } from "./schema.ts";
