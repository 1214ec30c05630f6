/** @file Grids of somebody's own from their files: run here, or put into a database for workers, and their results. */
import { join } from "node:path";
import { InputError, MiloraError, writeFileAtomic } from "../../base/index.ts";
import {
  CellStore,
  csvTable,
  type GridPlan,
  type GridResults,
  gridResults,
  gridTable,
  indexOf,
  markdownTable,
  type Outcome,
  openCells,
  openRuns,
  portableGrid,
  problemsOf,
  readGrid,
  readIndex,
  runPlan,
  valueText,
  writeIndex,
} from "../../evaluation/index.ts";
import { configureRuntime } from "../../runtime/index.ts";
import { openSpec, type SweepSpec, submitGrid } from "../../serving/index.ts";
import { shorten } from "../../training/index.ts";
import { onInterrupt } from "../interrupt.ts";
import { follow } from "../reproduce/follow.ts";
import { openQueue, policyOf, type QueueFlags, reporting, runQueued } from "../reproduce/queue.ts";
import { note, print, printJson, table } from "../terminal.ts";
import { databaseUrl } from "./flags.ts";

export interface GridFlags extends QueueFlags {
  readonly output: string;
  readonly plan?: boolean;
  readonly wait?: boolean;
  readonly json?: boolean;
}

/** Problems that are told at once. */
const MOST_PROBLEMS = 12;

/** @param start put it into the database, instead of doing it here */
export async function runGridFile(file: string, flags: GridFlags, start: boolean): Promise<void> {
  const { output, concurrency, json } = flags;
  if (start && databaseUrl(flags) === undefined) {
    throw new InputError("FLAG_INVALID", "start", "needs --database or DATABASE_URL; milora sweep run needs none");
  }
  const spec: SweepSpec = { grid: portableGrid(readGrid(file)) };
  const queued = start || concurrency !== undefined;
  if (flags.threads !== undefined && !queued) configureRuntime({ threads: flags.threads });
  using interrupt = onInterrupt(start ? "leaving …" : "saving; the same command goes on from here …");
  const { signal } = interrupt;
  // Only `start` shares its jobs; those of `run` are its own processes', whatever the environment names.
  await using queue = queued && !flags.plan ? await openQueue(output, flags, start) : undefined;
  using opened = await openSpec(spec, output);
  const { world } = opened;
  const plan = opened.work as GridPlan;
  const problems = problemsOf(plan);
  if (problems.length) throw new InputError("CONFIG_INVALID", file, shorten(problems, MOST_PROBLEMS));
  const facts = { trainings: openRuns(plan).length, cells: openCells(plan).length };
  if (flags.plan) return showPlan(plan, facts, json);
  writeIndex(output, indexOf(plan));
  if (start && !flags.wait && concurrency === undefined) {
    await submitGrid(queue!.sweeps, queue!.sweep, plan, { spec, policy: policyOf(flags) });
    const { id } = queue!.sweep;
    if (json) printJson({ sweep: id, output, ...facts });
    else
      print(`sweep ${id}: ${factsText(facts)} to do; milora worker does them, milora sweep status ${id} tells how far`);
    return;
  }
  note(`${factsText(facts)} to do`);
  const report = (failures: Outcome["failures"] = []) => write(output, resultsAt(output, failures));
  const { failures } = await work();
  show(report(failures), output, json);
  if (failures.length === 0) return;
  const [first] = failures;
  const more = failures.length > 1 ? `, and ${failures.length - 1} more` : "";
  const message = `${first!.label} failed: ${first!.reason}${more}; all others are there, and the same command tries again`;
  throw new MiloraError("CELLS_FAILED", message, { exitCode: 1 });

  async function work(): Promise<Outcome> {
    using progress = follow(plan);
    const options = { signal, onEvent: progress.onEvent };
    if (!queue) return await runPlan(plan, world, options);
    return await runQueued(
      plan,
      world,
      queue,
      spec,
      flags,
      reporting(options, () => report()),
    );
  }
}

const counted = (count: number, one: string): string => `${count} ${one}${count === 1 ? "" : "s"}`;
const factsText = ({ trainings, cells }: { readonly trainings: number; readonly cells: number }): string =>
  `${counted(trainings, "training")} and ${counted(cells, "cell")}`;

function showPlan(plan: GridPlan, facts: { trainings: number; cells: number }, json: boolean | undefined): void {
  const runs = plan.runs.map(({ id, label, rows, steps, state }) => ({ id, label, rows, steps, state }));
  const cells = plan.cells.map(({ id, label, rows, state, run }) => ({ id, label, rows, state, run: run?.id ?? null }));
  if (json) {
    printJson({ missing: facts, runs, cells });
    return;
  }
  const lines = [
    ...runs.map(({ label, steps, state }) => [label, counted(steps, "step"), state]),
    ...cells.map(({ label, rows = 0, state }) => [label, counted(rows, "row"), state]),
  ];
  print(`${table(["", "", ""], lines)}\n\n${factsText(facts)} to do`);
}

/** What is in a grid's directory by now. */
export function resultsAt(directory: string, failures: Outcome["failures"] = []): GridResults {
  const store = new CellStore(directory);
  return gridResults(readIndex(directory), (id) => store.get(id), failures);
}

/** results.json, results.csv, results.md */
function write(output: string, results: GridResults): GridResults {
  const found = gridTable(results);
  writeFileAtomic(join(output, "results.json"), `${JSON.stringify(results, null, 2)}\n`);
  writeFileAtomic(join(output, "results.csv"), csvTable(found));
  writeFileAtomic(join(output, "results.md"), `${markdownTable(found)}\n`);
  return results;
}

export function show(results: GridResults, output: string, json: boolean | undefined): void {
  if (json) {
    printJson({ output, ...results });
    return;
  }
  const { columns, rows } = gridTable(results);
  const lines = rows.map((row) => columns.map((column) => valueText(row[column.key], column)));
  print(`${table(columns.map(({ title }) => title), lines)}\n`); // biome-ignore format: one line
  print(`${results.done} of ${counted(results.cells, "cell")}, in ${output}`);
}
