/** @file A plan in parts that machines can do one apart from the other, and one part of it as it stands now. */

import { openCells, openRuns, trainingGroups } from "./run.ts";
import type { CellStore } from "./store.ts";
import { type PlannedRun, runState, type Work, type WorkCell } from "./work.ts";

/** What is trained in one go with all that is measured with it, or one cell that needs no training. */
export interface Part {
  readonly label: string;
  /** Not finished yet. */
  readonly runs: readonly PlannedRun[];
  readonly cells: readonly WorkCell[];
}

/**
 * Whether a cell may be measured wherever its adapter can be read. Speed is one machine's, and the judge's key is at one
 * place; what lacks something fails where it was planned.
 */
export const isPortable = ({ cell, problem }: WorkCell): boolean =>
  problem === undefined && cell.kind !== "speed" && cell.kind !== "judged";

/** All that is open and may be done elsewhere, also trainings of which the cells may not. */
export function partsOf(plan: Work): Part[] {
  const cells = openCells(plan).filter(isPortable);
  const open = new Set(openRuns(plan).filter(({ problems }) => problems.length === 0));
  const runs = [...new Set([...cells.flatMap(({ run }) => run ?? []), ...open])];
  return [
    ...cells.filter(({ run }) => run === undefined).map((cell) => ({ label: cell.label, runs: [], cells: [cell] })),
    ...trainingGroups(plan, runs).map((group) => ({
      label: group.length > 1 ? `${group[0]!.label} and ${group.length - 1} more` : group[0]!.label,
      runs: group.filter((run) => open.has(run)),
      cells: cells.filter(({ run }) => run !== undefined && group.includes(run)),
    })),
  ];
}

/** A part of a plan that can be run by itself. */
export interface Piece {
  readonly plan: Work;
  readonly trainings: readonly PlannedRun[];
  /** Ids that the plan does not have: models, data or versions differ. */
  readonly unknown: readonly string[];
}

/** What `ids` of runs and cells name, in the state in which the store has it now. */
export function pieceOf(plan: Work, store: CellStore, ids: ReadonlySet<string>): Piece {
  const fresh = new Map<PlannedRun, PlannedRun>();
  const renewed = (run: PlannedRun): PlannedRun => {
    const known = fresh.get(run) ?? { ...run, state: runState(store, run.id) };
    fresh.set(run, known);
    return known;
  };
  const trainings = plan.runs.filter(({ id }) => ids.has(id)).map(renewed);
  const cells = plan.cells
    .filter(({ id }) => ids.has(id))
    .map(
      (cell): WorkCell => ({
        ...cell,
        run: cell.run && renewed(cell.run),
        state: store.get(cell.id) ? "done" : "missing",
      }),
    );
  const found = new Set([...trainings, ...cells].map(({ id }) => id));
  return {
    plan: { ...plan, runs: [...fresh.values()], cells },
    trainings: trainings.filter(({ state }) => state !== "done"),
    unknown: [...ids].filter((id) => !found.has(id)),
  };
}
