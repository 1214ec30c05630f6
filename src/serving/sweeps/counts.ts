/** @file How far a sweep is, as commands and the studio's pages are told alike. */

/** A grid of trainings and measurements whose jobs are in a database. */
export interface SweepCounts {
  readonly id: string;
  readonly directory: string;
  readonly trainings: { readonly total: number; readonly done: number };
  /** Measurements. */
  readonly cells: { readonly total: number; readonly done: number };
  readonly jobs: {
    readonly waiting: number;
    readonly retrying: number;
    readonly running: number;
    readonly failed: number;
  };
}
