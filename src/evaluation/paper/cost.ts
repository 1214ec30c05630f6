/** @file What a plan will cost: trainings, tokens, hours from what was measured on this machine, disk. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { MiloraError, median, sum } from "../../base/index.ts";
import { train } from "../../training/index.ts";
import { evaluateTask } from "../evaluate.ts";
import { loadTasks } from "../registry.ts";
import { protocolOf } from "./data.ts";
import type { Plan, PlannedCell } from "./plan.ts";
import { openCells, openRuns } from "./run.ts";
import { machineName } from "./store.ts";
import type { PlannedRun, World } from "./work.ts";

export interface Cost {
  readonly runs: number;
  readonly runsDone: number;
  readonly cells: number;
  readonly cellsDone: number;
  /** Left out on purpose, with the reasons. */
  readonly skipped: Readonly<Record<string, number>>;
  /** Cells that lack something. */
  readonly blocked: number;
  /** To be trained on; what is not known counts nothing. */
  readonly tokens: number;
  /** Trainings of which the tokens are not known. */
  readonly unknown: number;
  /** Rows to be answered or scored. */
  readonly rows: number;
  /** Of what is known; undefined where nothing is. */
  readonly trainingSeconds: number | undefined;
  readonly measuringSeconds: number | undefined;
  /** Adapters and outputs, and the checkpoints of what is trained at one time. */
  readonly diskBytes: number;
  /** What the seconds are from; empty where nothing was measured. */
  readonly measured: string;
}

/** Seconds for a token of training, and for a row of a task. */
export interface Pace {
  training(run: PlannedRun): number | undefined;
  row(cell: PlannedCell): number | undefined;
  readonly about: string;
}

/** Steps of a measurement; the first builds what the others use. */
const STEPS = 4;
/** Rows of a measurement. */
const ROWS = 8;
/** When this is over, what is not measured is taken to be like what is. */
const PATIENCE_MS = 60_000;
/** Bytes of an output with its key, about. */
const ROW_BYTES = 400;

/** Finished cells say it best; the rest is tried out, a few steps and rows of each kind. */
export async function measurePace(plan: Plan, world: World, signal?: AbortSignal): Promise<Pace> {
  const started = performance.now();
  const machine = machineName();
  const trained = new Map<string, number[]>();
  const rows = new Map<string, number[]>();
  const note = (known: Map<string, number[]>, key: string, value: number) =>
    known.set(key, [...(known.get(key) ?? []), value]);
  for (const run of plan.runs) {
    const record = world.store.get(run.id);
    if (record?.machine === machine && record.amount > 0) note(trained, kindOf(run), record.seconds / record.amount);
  }
  for (const cell of plan.cells) {
    const record = world.store.get(cell.id);
    if (record?.machine === machine && record.amount > 0) note(rows, taskOf(cell), record.seconds / record.amount);
  }
  const fromCells = trained.size + rows.size;
  const patient = () => performance.now() - started < PATIENCE_MS;
  for (const run of openRuns(plan)) {
    if (run.problems.length > 0 || trained.has(kindOf(run)) || !patient()) continue;
    signal?.throwIfAborted();
    const seconds = await tryTraining(run, world, signal);
    if (seconds !== undefined) note(trained, kindOf(run), seconds);
  }
  for (const cell of openCells(plan)) {
    if (cell.problem || cell.cell.kind !== "accuracy" || rows.has(taskOf(cell)) || !patient()) continue;
    signal?.throwIfAborted();
    note(rows, taskOf(cell), await tryRows(cell, plan, world, signal));
  }
  const middle = (known: Map<string, number[]>, key: string) =>
    known.has(key) ? median(known.get(key)!) : known.size ? median([...known.values()].map(median)) : undefined;
  return {
    training: (run) => middle(trained, kindOf(run)),
    row: (cell) => middle(rows, taskOf(cell)),
    about:
      trained.size + rows.size === 0
        ? "" // nothing that could be tried is here
        : `${fromCells > 0 ? "finished cells and " : ""}short trials on this machine (${machine})`,
  };
}

const kindOf = ({ model, training }: PlannedRun): string => `${model} ${training.method}`;
const taskOf = ({ model, cell }: PlannedCell): string => `${model} ${cell.kind} ${"task" in cell ? cell.task : ""}`;

/** Seconds for a token, of one adapter alone; undefined where it cannot be trained, which its run will tell. */
async function tryTraining(run: PlannedRun, { models }: World, signal?: AbortSignal): Promise<number | undefined> {
  const folder = mkdtempSync(join(tmpdir(), "milora-pace-"));
  try {
    run.write();
    const paces: number[] = [];
    await train(
      {
        ...run.config!,
        data: { ...run.config!.data, dev: 0 },
        max_steps: Math.min(STEPS, run.steps),
        output_dir: join(folder, "run"),
      },
      {
        backbone: await models.backbone(run.model, run.holding),
        signal,
        onProgress: (event) => {
          if (event.type === "step") paces.push(event.metrics.seconds / event.metrics.tokens);
        },
      },
    );
    return median(paces.length > 1 ? paces.slice(1) : paces);
  } catch (error) {
    if (error instanceof MiloraError) return undefined;
    throw error;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Seconds for a row, answered by the bare backbone. */
async function tryRows(
  { cell, model, holding, rows = ROWS }: PlannedCell,
  { scope }: Plan,
  { models, data }: World,
  signal?: AbortSignal,
): Promise<number> {
  const task = (await loadTasks()).get((cell as { readonly task: string }).task)!;
  const engine = await models.engine(model, holding);
  const limit = Math.min(ROWS, rows);
  const { maxNewTokens } = scope;
  const generates = task.protocols[protocolOf(task)]!.kind === "generate";
  const measureOnce = async () => {
    const started = performance.now();
    await evaluateTask(engine, task, {
      ...{ protocol: protocolOf(task), data: { directory: data.directory }, limit, beams: scope.beams, signal },
      ...(generates && { maxNewTokens }),
    });
    return (performance.now() - started) / 1000 / limit;
  };
  await measureOnce();
  return await measureOnce();
}

/** @param pace undefined: without hours */
export function costOf(plan: Plan, pace: Pace | undefined): Cost {
  const [runs, cells] = [openRuns(plan), openCells(plan)];
  const skipped: Record<string, number> = {};
  for (const { skipped: why } of plan.cells) if (why) skipped[why] = (skipped[why] ?? 0) + 1;
  const total = (values: readonly (number | undefined)[]) => {
    const known = values.filter((value) => value !== undefined);
    return known.length === 0 && values.length > 0 ? undefined : sum(known);
  };
  const numbers = (values: readonly (number | undefined)[]) => values.reduce<number>((a, b) => a + (b ?? 0), 0);
  const training = runs.map((run) => {
    const perToken = pace?.training(run);
    return perToken === undefined || run.tokens === undefined ? undefined : perToken * run.tokens;
  });
  const measuring = cells.map((cell) => {
    if (cell.cell.kind === "rows") return 0;
    const perRow = pace?.row(cell);
    return perRow === undefined || cell.rows === undefined ? undefined : perRow * cell.rows;
  });
  const rows = numbers(cells.map(({ rows }) => rows));
  const largest = Math.max(0, ...runs.map(({ parameters }) => parameters ?? 0));
  const company = plan.scope.together ? plan.scope.seeds : 1;
  return {
    runs: runs.length,
    runsDone: plan.runs.filter(({ state }) => state === "done").length,
    cells: cells.length,
    cellsDone: plan.cells.filter(({ state }) => state === "done").length,
    skipped,
    blocked: cells.filter(({ problem }) => problem).length,
    tokens: numbers(runs.map(({ tokens }) => tokens)),
    unknown: runs.filter(({ tokens }) => tokens === undefined).length,
    rows,
    trainingSeconds: pace && total(training),
    measuringSeconds: pace && total(measuring),
    // float32; a checkpoint has the adapter and AdamW's two moments, and the one before stays until it is written
    diskBytes: 4 * numbers(runs.map(({ parameters }) => parameters)) + company * 2 * 3 * 4 * largest + ROW_BYTES * rows,
    measured: pace?.about ?? "",
  };
}
