/** @file What is to be trained and measured, whatever asks for it: tables of the paper, or a grid of somebody's own. */
import { type MiloraError, reasonOf } from "../../base/index.ts";
import type { TrainingConfigInput } from "../../training/index.ts";
import type { Judge } from "../judge/index.ts";
import type { Data } from "./data.ts";
import type { Holding, Models } from "./models.ts";
import type { CellStore } from "./store.ts";
import type { Training } from "./study.ts";

export type State = "done" | "begun" | "missing";

export interface PlannedRun {
  readonly id: string;
  readonly label: string;
  readonly training: Training;
  readonly model: string;
  readonly holding?: Holding;
  readonly config: TrainingConfigInput | undefined;
  /** Makes the files that `config` names. */
  readonly write: () => void;
  readonly rows: number;
  readonly steps: number;
  /** Undefined while rows or tokenizer are not here. */
  readonly tokens: number | undefined;
  readonly parameters: number | undefined;
  readonly state: State;
  /** Why it cannot be done. */
  readonly problems: readonly MiloraError[];
}

/** One thing to be measured, and where that stands. */
export interface WorkCell {
  readonly id: string;
  readonly label: string;
  readonly cell: { readonly kind: string };
  readonly run: PlannedRun | undefined;
  readonly model: string;
  readonly holding?: Holding;
  /** Rows to be measured; undefined where they are not here. */
  readonly rows: number | undefined;
  readonly state: State;
  /** Left out on purpose, and why: this is no failure. */
  readonly skipped?: string;
  readonly problem?: MiloraError;
}

export interface World {
  readonly models: Models;
  readonly data: Data;
  readonly store: CellStore;
  /** Of MT-Bench; without one its cells are left out. */
  readonly judge?: Judge | undefined;
}

export interface CellContext extends World {
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (done: number, total: number) => void;
}

export interface Work {
  readonly runs: readonly PlannedRun[];
  readonly cells: readonly WorkCell[];
  /** Seeds of one adapter are trained in one go. */
  readonly together: boolean;
  /** What a cell gives, as it is kept. */
  measure(cell: WorkCell, context: CellContext): Promise<unknown>;
}

/** What the store has of a training. */
export function runState(store: CellStore, id: string): State {
  if (store.get(id) && store.hasAdapter(id)) return "done";
  return store.begun(id) ? "begun" : "missing";
}

/** Why things cannot be done, each reason once. */
export function problemsOf({ cells }: Work): string[] {
  const reasons = cells.flatMap(({ problem, run }) => [...(run?.problems ?? []), ...(problem ? [problem] : [])]);
  return [...new Set(reasons.map(reasonOf))];
}
