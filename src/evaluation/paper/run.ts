/** @file Does what a plan lacks: trains, measures, keeps what is finished, and goes on past what fails. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { MiloraError, reasonOf, sum } from "../../base/index.ts";
import { readMetrics, type TrainingEvent, type TrainingResult, trainTogether } from "../../training/index.ts";
import { canonical } from "./study.ts";
import type { PlannedRun, Work, WorkCell, World } from "./work.ts";

export type RunEvent =
  | { readonly type: "training"; readonly runs: readonly PlannedRun[] }
  | { readonly type: "step"; readonly step: number; readonly totalSteps: number; readonly loss: number }
  | { readonly type: "trained"; readonly run: PlannedRun; readonly seconds: number }
  | { readonly type: "measuring"; readonly cell: WorkCell }
  | { readonly type: "row"; readonly done: number; readonly total: number }
  | { readonly type: "measured"; readonly cell: WorkCell; readonly value: unknown }
  | { readonly type: "failed"; readonly label: string; readonly reason: string };

export interface Failure {
  readonly label: string;
  readonly code: string;
  readonly reason: string;
}

export interface RunOptions {
  /** Ctrl-C: what runs is saved, and the signal's reason thrown. */
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: ((event: RunEvent) => void) | undefined;
}

export interface Outcome {
  readonly trained: number;
  readonly measured: number;
  readonly failures: readonly Failure[];
}

/** Cells that are to be measured. */
export const openCells = <C extends WorkCell>({ cells }: { readonly cells: readonly C[] }): C[] =>
  cells.filter(({ state, skipped }) => state !== "done" && skipped === undefined);

/** Trainings that these cells need, and that are not finished. */
export const openRuns = (plan: Work): PlannedRun[] => [
  ...new Set(openCells(plan).flatMap(({ run }) => (run && run.state !== "done" ? [run] : []))),
];

/**
 * Runs a plan to its end; what fails is told in the outcome.
 * @param trainings are finished though no cell that is to be measured needs them
 */
export async function runPlan(
  plan: Work,
  world: World,
  options: RunOptions = {},
  trainings: readonly PlannedRun[] = [],
): Promise<Outcome> {
  return await new Runner(plan, world, options).run(trainings);
}

/** What is trained in one go: seeds of one adapter, or each run by itself. */
export function trainingGroups({ together }: Pick<Work, "together">, runs: readonly PlannedRun[]): PlannedRun[][] {
  const groups = new Map<string, PlannedRun[]>();
  for (const run of runs) {
    const { seed, ...rest } = run.training;
    const key = canonical(together ? rest : { seed, ...rest });
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  return [...groups.values()];
}

const isUnusable = (error: unknown): boolean => error instanceof MiloraError && error.code.startsWith("CHECKPOINT_");

class Runner {
  readonly #plan: Work;
  readonly #world: World;
  readonly #options: RunOptions;
  readonly #failures: Failure[] = [];
  readonly #failed = new Set<PlannedRun>();
  #trained = 0;
  #measured = 0;

  constructor(plan: Work, world: World, options: RunOptions) {
    this.#plan = plan;
    this.#world = world;
    this.#options = options;
  }

  async run(trainings: readonly PlannedRun[]): Promise<Outcome> {
    const cells = openCells(this.#plan);
    await this.#measure(cells.filter(({ run }) => run === undefined));
    const runs = [...new Set([...cells.flatMap(({ run }) => run ?? []), ...trainings])];
    const models = [...new Set(runs.map(({ model }) => model))];
    for (const model of models) {
      for (const group of trainingGroups(
        this.#plan,
        runs.filter((run) => run.model === model),
      )) {
        const missing = group.filter(({ state }) => state !== "done");
        // Runs of which there is a part go on together, new ones begin together: each is asked to resume or not.
        for (const state of ["begun", "missing"]) await this.#train(missing.filter((run) => run.state === state));
        await this.#measure(cells.filter(({ run }) => run !== undefined && group.includes(run)));
        this.#world.models.closeEngine(); // the next group's adapters need other sessions
      }
    }
    return { trained: this.#trained, measured: this.#measured, failures: this.#failures };
  }

  #fail(label: string, error: unknown): void {
    const reason = reasonOf(error);
    this.#failures.push({ label, code: error instanceof MiloraError ? error.code : "UNEXPECTED", reason });
    this.#options.onEvent?.({ type: "failed", label, reason });
  }

  async #train(runs: readonly PlannedRun[]): Promise<void> {
    const ready = runs.filter((run) => {
      const [problem] = run.problems;
      if (problem) {
        this.#failed.add(run);
        this.#fail(run.label, problem);
      }
      return problem === undefined;
    });
    if (ready.length === 0) return;
    this.#options.signal?.throwIfAborted();
    this.#options.onEvent?.({ type: "training", runs: ready });
    let results: PromiseSettledResult<TrainingResult>[];
    try {
      results = await this.#together(ready, ready[0]!.state === "begun");
    } catch (error) {
      this.#options.signal?.throwIfAborted();
      results = ready.map(() => ({ status: "rejected", reason: error }));
    }
    for (const [i, result] of results.entries()) this.#settle(ready[i]!, result, ready.length);
    if (results.some((result) => result.status === "fulfilled" && result.value.stoppedBecause === "interrupted")) {
      throw this.#options.signal!.reason;
    }
  }

  async #together(runs: readonly PlannedRun[], resume: boolean): Promise<PromiseSettledResult<TrainingResult>[]> {
    for (const run of runs) run.write();
    const results = await this.#start(runs, resume).catch((reason: unknown) => {
      if (!isUnusable(reason)) throw reason;
      return runs.map(() => ({ status: "rejected", reason }) as const);
    });
    // Begun by another version of the program, or cut off before anything could be gone on from.
    const anew = runs.filter((_, i) => results[i]!.status === "rejected" && isUnusable(results[i]!.reason));
    if (anew.length === 0) return results;
    for (const { config } of anew) rmSync(config!.output_dir, { recursive: true, force: true });
    const again = await this.#start(anew, false);
    return results.map((result, i) => again[anew.indexOf(runs[i]!)] ?? result);
  }

  async #start(runs: readonly PlannedRun[], resume: boolean): Promise<PromiseSettledResult<TrainingResult>[]> {
    const backbone = await this.#world.models.backbone(runs[0]!.model, runs[0]!.holding);
    return await trainTogether(
      runs.map(({ config }) => config!),
      {
        ...{ backbone, resume, signal: this.#options.signal },
        onProgress: (event, run) => this.#progress(event, run),
      },
    );
  }

  #progress(event: TrainingEvent, run: number): void {
    if (event.type !== "step" || run > 0) return; // all of a group step together
    const { step, lm_loss } = event.metrics;
    this.#options.onEvent?.({ type: "step", step, totalSteps: event.totalSteps, loss: lm_loss });
  }

  #settle(run: PlannedRun, result: PromiseSettledResult<TrainingResult>, company: number): void {
    if (result.status === "rejected") {
      this.#failed.add(run);
      this.#fail(run.label, result.reason);
      return;
    }
    const { stoppedBecause, seconds, steps, best } = result.value;
    if (stoppedBecause === "interrupted") return;
    const { store } = this.#world;
    const share = seconds / company;
    const metrics = readMetrics(join(store.runDirectory(run.id), "metrics.jsonl"));
    const tokens = sum(metrics.map((line) => (line.type === "step" ? line.tokens : 0)));
    const value = { steps, stoppedBecause, devPerplexity: best?.devPerplexity ?? null };
    // Checkpoints were there to go on from; what is finished needs none.
    rmSync(join(store.runDirectory(run.id), "checkpoints"), { recursive: true, force: true });
    store.put({ id: run.id, kind: "training", label: run.label, value, seconds: share, amount: tokens });
    this.#trained++;
    this.#options.onEvent?.({ type: "trained", run, seconds: share });
  }

  async #measure(cells: readonly WorkCell[]): Promise<void> {
    const { signal, onEvent } = this.#options;
    const { store } = this.#world;
    for (const cell of cells) {
      if (cell.run && this.#failed.has(cell.run)) continue; // said where it failed
      signal?.throwIfAborted();
      onEvent?.({ type: "measuring", cell });
      const started = performance.now();
      let rows = cell.rows ?? 0;
      try {
        if (cell.problem) throw cell.problem;
        const value = await this.#plan.measure(cell, {
          ...this.#world,
          signal,
          onProgress: (done, total) => {
            rows = total;
            onEvent?.({ type: "row", done, total });
          },
        });
        const seconds = (performance.now() - started) / 1000;
        const { id, label } = cell;
        store.put({ id, kind: cell.cell.kind, label, value, seconds, amount: rows });
        this.#measured++;
        onEvent?.({ type: "measured", cell, value });
      } catch (error) {
        signal?.throwIfAborted();
        this.#fail(cell.label, error);
      }
    }
  }
}
