/** @file What a grid came to: one table, a line for each point, and the same for programs. */
import { join } from "node:path";
import { z } from "zod";
import { readJson, writeFileAtomic } from "../../base/index.ts";
import type { Failure } from "../paper/run.ts";
import type { CellRecord } from "../paper/store.ts";
import type { Column, Table, Value } from "../paper/study.ts";
import type { Scored } from "./measure.ts";
import type { GridPlan } from "./plan.ts";
import { gridSchema, nameOf } from "./schema.ts";

export interface GridScore {
  readonly evaluation: string;
  /** Of the cell: a finished one has cells/ID.json. */
  readonly cell: string;
  /** Undefined while it is not measured. */
  readonly metric?: string;
  readonly value?: number;
  readonly interval?: readonly [low: number, high: number] | null;
  readonly rows?: number;
}

export interface GridResults {
  /** Names of what is tried. */
  readonly axes: readonly string[];
  readonly evaluations: readonly string[];
  readonly points: readonly {
    readonly settings: Readonly<Record<string, unknown>>;
    /** Directory of the training's run below the output, null without one. */
    readonly run: string | null;
    readonly trained: boolean;
    readonly devPerplexity: number | null;
    readonly scores: readonly GridScore[];
  }[];
  readonly cells: number;
  readonly done: number;
  readonly failures: readonly Failure[];
}

const indexSchema = z
  .object({
    grid: gridSchema,
    points: z.array(
      z.object({
        settings: z.record(z.string(), z.unknown()),
        run: z.string().nullable(),
        cells: z.array(z.string()),
      }),
    ),
  })
  .refine(({ grid, points }) => points.every(({ cells }) => cells.length <= grid.evaluate.length), {
    path: ["points"],
    error: "one has more cells than there are evaluations",
  });

/** A plan without all that it takes to do it: the ids of its runs and cells. */
export type GridIndex = z.infer<typeof indexSchema>;

export function indexOf({ grid, points }: GridPlan): GridIndex {
  const lines = points.map(({ settings, run, cells }) => ({
    ...{ settings: { ...settings }, run: run && run.problems.length === 0 ? run.id : null },
    cells: cells.map(({ id }) => id),
  }));
  return { grid, points: lines };
}

const FILE = "grid.json";

/** Says in a directory which grid its cells are of. */
export function writeIndex(directory: string, index: GridIndex): void {
  writeFileAtomic(join(directory, FILE), `${JSON.stringify(index, null, 2)}\n`);
}

/** @throws InputError where there is none, or what there is is damaged */
export function readIndex(directory: string): GridIndex {
  return readJson(join(directory, FILE), indexSchema);
}

/** @param recordOf a finished cell or training */
export function gridResults(
  { grid, points }: GridIndex,
  recordOf: (id: string) => CellRecord | undefined,
  failures: readonly Failure[] = [],
): GridResults {
  const cells = [...new Set(points.flatMap((point) => point.cells))];
  return {
    axes: grid.adapters ? ["adapter"] : Object.keys(grid.axes),
    evaluations: grid.evaluate.map(nameOf),
    points: points.map(({ settings, run, cells: ids }) => {
      const trained = run === null ? undefined : recordOf(run);
      const { devPerplexity = null } = (trained?.value ?? {}) as { readonly devPerplexity?: number | null };
      return {
        ...{ settings, run: run === null ? null : `runs/${run}`, trained: trained !== undefined, devPerplexity },
        scores: ids.map((id, i): GridScore => {
          const about = { evaluation: nameOf(grid.evaluate[i]!), cell: id };
          const scored = recordOf(id)?.value as Scored | undefined;
          if (!scored) return about;
          const { metric, value, interval, rows } = scored;
          return { ...about, metric, value, interval, rows };
        }),
      };
    }),
    cells: cells.length,
    done: cells.filter((id) => recordOf(id)).length,
    failures,
  };
}

const isShare = (metric: string | undefined): boolean => metric !== undefined && metric !== "perplexity";

/** Shares in percent; perplexities as they are. */
export function gridTable({ axes, evaluations, points }: GridResults): Table {
  const metrics = evaluations.map((_, i) => points.find(({ scores }) => scores[i]?.metric)?.scores[i]?.metric);
  const columns: Column[] = [
    ...axes.map((axis) => ({ key: axis, title: axis, digits: "plain" as const })),
    ...evaluations.map((name, i) => {
      const unit = metrics[i] === undefined || name.includes(metrics[i]) ? "" : `, ${metrics[i]}`;
      return {
        key: name,
        title: `${name}${unit}${isShare(metrics[i]) ? " %" : ""}`,
        digits: isShare(metrics[i]) ? 1 : 3,
      };
    }),
  ];
  const rows = points.map(({ settings, scores }): Readonly<Record<string, Value>> => {
    const tried = axes.map((axis) => [axis, plain(settings[axis])]);
    const measured = scores.map(({ evaluation, metric, value }) => [
      evaluation,
      value === undefined ? undefined : isShare(metric) ? 100 * value : value,
    ]);
    return Object.fromEntries([...tried, ...measured]);
  });
  const notes = points.some(({ scores }) => scores.some(({ value }) => value === undefined))
    ? ["A dash is not measured yet, or failed."]
    : [];
  return { name: "grid", title: "Results", columns, rows, notes };
}

const plain = (value: unknown): Value => {
  if (typeof value === "string" || typeof value === "number") return value;
  return value === undefined ? undefined : JSON.stringify(value);
};
