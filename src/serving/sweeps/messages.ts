/** @file What a worker and the processes that compute for it tell each other. */
import type { CellRecord, Failure } from "../../evaluation/index.ts";
import type { Progress } from "./attempts.ts";
import type { SweepSpec } from "./spec.ts";

/** A job, as the process that is to do it needs it. */
export interface SlotJob {
  readonly type: "job";
  readonly directory: string;
  /** Of the request: what was planned for it is kept. */
  readonly key: string;
  readonly spec: SweepSpec;
  readonly label: string;
  readonly cells: readonly string[];
  /** What is finished of it already. */
  readonly known: readonly CellRecord[];
  /** An attempt before has ended: locks that it left are nobody's. */
  readonly again: boolean;
  readonly leaseSeconds: number;
}

export type ToSlot =
  | SlotJob
  /** The lease holds. */
  | { readonly type: "heard" }
  | { readonly type: "stop" };

export type FromSlot =
  | { readonly type: "progress"; readonly progress: Progress }
  | { readonly type: "record"; readonly record: CellRecord }
  | { readonly type: "end"; readonly failures: readonly Failure[]; readonly interrupted: boolean }
  /** This machine cannot do it; another one may. */
  | { readonly type: "unsuited"; readonly reason: string };
