/** @file What the pages of sweeps get; a part of types.ts. */
import type { SweepCounts } from "../sweeps/counts.ts";

/** A grid of trainings and measurements, which workers do. */
export interface SweepSummary extends SweepCounts {
  /** Last part of its directory. */
  readonly name: string;
  /** ISO 8601. */
  readonly createdAt: string;
}

export interface SweepWorker {
  readonly host: string;
  readonly pid: number;
  /** Jobs at a time. */
  readonly slots: number;
  readonly version: string;
  readonly startedAt: string;
  readonly heardAt: string;
  /** Sweeps that it leaves to others, and why. */
  readonly shunned: readonly { readonly sweep: string; readonly reason: string }[];
}

export interface SweepList {
  /** Newest first. */
  readonly sweeps: readonly SweepSummary[];
  readonly workers: readonly SweepWorker[];
}

/** `retrying`: waits for another attempt. */
export type SweepCellState = "running" | "waiting" | "retrying" | "failed" | "done";

export interface SweepCell {
  readonly id: string;
  /** `training`, or what is measured. */
  readonly kind: string;
  readonly label: string;
  readonly state: SweepCellState;
  /** What is tried again together. */
  readonly job: string;
  /** Its training, as runs are shown; null where none is. */
  readonly run: string | null;
  readonly attempts: number;
  /** Who has it, or had it last. */
  readonly worker: { readonly host: string; readonly pid: number | null; readonly heardAt: string } | null;
  readonly progress: { readonly done: number; readonly total: number } | null;
  /** Why its last attempt ended; of those that failed or wait for another. */
  readonly reason: string | null;
  readonly code: string | null;
  readonly retryAt: string | null;
  readonly metric: string | null;
  readonly score: number | null;
  readonly seconds: number | null;
  readonly finishedAt: string | null;
}

export interface SweepDetail extends SweepSummary {
  readonly states: Readonly<Record<SweepCellState, number>>;
  /** Jobs that workers which are there may do at a time. */
  readonly slots: number;
  /** Finished in the last quarter of an hour, by the hour. */
  readonly perHour: number;
  /** Null while too little is known, or nobody works. */
  readonly secondsLeft: number | null;
  /** Cells that the question is about, of which `list` are some, in the order of the grid. */
  readonly matching: number;
  readonly from: number;
  readonly list: readonly SweepCell[];
}

/** A grid that `milora sweep` has put into a directory below a folder of runs. */
export interface GridSummary extends Pick<SweepCounts, "directory" | "trainings" | "cells"> {
  readonly id: string;
  readonly axes: readonly string[];
  readonly evaluations: readonly string[];
  /** When something was last finished, ISO 8601. */
  readonly updatedAt: string;
}

export interface GridPoint {
  /** By columns. */
  readonly values: Readonly<Record<string, string | number | null | undefined>>;
  /** Its training, as runs are shown; null where none is. */
  readonly run: string | null;
  /** Null without a training. */
  readonly trained: boolean | null;
  readonly devPerplexity: number | null;
}

export interface GridDetail extends GridSummary {
  /** Finished cells whose numbers have been read; fewer than are done while files are read. */
  readonly read: number;
  readonly columns: readonly {
    readonly key: string;
    readonly title: string;
    readonly digits?: number | "plain" | undefined;
  }[];
  readonly points: readonly GridPoint[];
  /** What failed when it was last worked on. */
  readonly failures: readonly { readonly label: string; readonly code: string; readonly reason: string }[];
}
