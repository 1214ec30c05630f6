/** @file A plan done by workers: its parts become jobs, results come back as they are recorded, the rest is done here. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { MiloraError } from "../../base/index.ts";
import {
  type CellStore,
  type Failure,
  isPortable,
  type Outcome,
  openCells,
  type Part,
  type PlannedRun,
  partsOf,
  pieceOf,
  type RunEvent,
  runPlan,
  type Work,
  type WorkCell,
  type World,
  writeRecord,
} from "../../evaluation/index.ts";
import { DatabaseUnreachable } from "../store/url.ts";
import type { RetryPolicy } from "./jobs.ts";
import { portableSpec, type SweepSpec } from "./spec.ts";
import type { DeadJob, SweepFacts, SweepStatus } from "./status.ts";
import type { NewPart, Recorded, Sweeps } from "./sweeps.ts";

const POLL_MS = 1000;

export const RETRIES = 5;
export const RETRY_SECONDS = 10;

export interface GridOptions {
  readonly spec: SweepSpec;
  readonly policy?: RetryPolicy | undefined;
  /** A worker of this process ends leases, after it has renewed its own; otherwise they are ended here. */
  readonly worked?: boolean | undefined;
  /** Waiting ends; the jobs stay. */
  readonly signal?: AbortSignal | undefined;
  readonly onEvent?: ((event: RunEvent) => void) | undefined;
  /** How all of it stands, each second; undefined while the database does not answer. */
  readonly onStatus?: ((status: SweepStatus | undefined, workers: number) => void) | undefined;
}

/** Results of a sweep that the directory does not have yet; to be asked for before anything is planned. */
export async function adoptRecords(sweeps: Sweeps, { id, directory }: SweepFacts): Promise<void> {
  for (const { record } of await sweeps.records(id)) {
    if (!existsSync(join(directory, "cells", `${record.id}.json`))) writeRecord(directory, record);
  }
}

/** Makes jobs of what is open. @returns ids of all that workers are to do */
export async function submitGrid(
  sweeps: Sweeps,
  sweep: SweepFacts,
  plan: Work,
  { spec, policy = { retries: RETRIES, delaySeconds: RETRY_SECONDS } }: GridOptions,
): Promise<Map<string, PlannedRun | WorkCell>> {
  const portable = portableSpec(spec);
  const key = createHash("sha256").update(JSON.stringify(portable)).digest("hex").slice(0, 16);
  const parts = partsOf(plan);
  await sweeps.submit(sweep, { key, spec: portable, parts: parts.map(newPart) }, policy);
  return new Map(parts.flatMap(({ runs, cells }) => [...runs, ...cells].map((one) => [one.id, one] as const)));
}

function newPart({ label, runs, cells }: Part): NewPart {
  return {
    label,
    cells: [
      ...runs.map(({ id, label: text }) => ({ id, kind: "training", label: text, run: id })),
      ...cells.map(({ id, label: text, cell, run }) => ({ id, kind: cell.kind, label: text, run: run?.id })),
    ],
  };
}

/**
 * Has workers do what is open of the plan, and does here what cannot be done elsewhere: speed, which is that of one
 * machine, and what a judge rates, whose key is here.
 *
 * @throws the signal's reason
 */
export async function runGrid(
  plan: Work,
  world: World,
  sweeps: Sweeps,
  sweep: SweepFacts,
  options: GridOptions,
): Promise<Outcome> {
  const asked = await submitGrid(sweeps, sweep, plan, options);
  const far = await new Waiting(asked, world.store, sweeps, sweep, options).wait();
  const near = openCells(plan).filter((cell) => !isPortable(cell));
  // Of a training that failed no more is to be said than where it failed.
  const ready = near.filter(
    ({ run, problem }) => problem || !run || (world.store.get(run.id) && world.store.hasAdapter(run.id)),
  );
  const { signal, onEvent } = options;
  const here = await runPlan(pieceOf(plan, world.store, new Set(ready.map(({ id }) => id))).plan, world, {
    ...{ signal, onEvent },
  });
  return {
    trained: far.trained + here.trained,
    measured: far.measured + here.measured,
    failures: [...far.failures, ...here.failures],
  };
}

class Waiting {
  readonly #open: Map<string, PlannedRun | WorkCell>;
  readonly #store: CellStore;
  readonly #sweeps: Sweeps;
  readonly #sweep: SweepFacts;
  readonly #options: GridOptions;
  readonly #failures: Failure[] = [];
  #trained = 0;
  #measured = 0;

  constructor(
    asked: ReadonlyMap<string, PlannedRun | WorkCell>,
    store: CellStore,
    sweeps: Sweeps,
    sweep: SweepFacts,
    options: GridOptions,
  ) {
    this.#open = new Map(asked);
    this.#store = store;
    this.#sweeps = sweeps;
    this.#sweep = sweep;
    this.#options = options;
  }

  async wait(): Promise<Outcome> {
    const { signal, onStatus } = this.#options;
    for (;;) {
      signal?.throwIfAborted();
      try {
        await this.#look();
      } catch (error) {
        if (!(error instanceof DatabaseUnreachable)) throw error;
        onStatus?.(undefined, 0);
      }
      if (this.#open.size === 0) break;
      await sleep(POLL_MS, undefined, { signal }).catch(() => {});
    }
    return { trained: this.#trained, measured: this.#measured, failures: this.#failures };
  }

  async #look(): Promise<void> {
    const { id } = this.#sweep;
    if (!(await this.#sweeps.has(id))) {
      throw new MiloraError("SWEEP_NOT_FOUND", "the sweep was removed while it was waited for", { exitCode: 1 });
    }
    // The last worker's death is noticed too. After a pause of this process its own worker comes first.
    if (!this.#options.worked) await this.#sweeps.attempts.reap();
    for (const recorded of await this.#sweeps.records(id, [...this.#open.keys()])) this.#take(recorded);
    const status = await this.#sweeps.status(this.#sweep);
    for (const dead of status.dead) this.#give(dead);
    this.#options.onStatus?.(status, (await this.#sweeps.workers()).length);
  }

  #take({ record }: Recorded): void {
    const one = this.#open.get(record.id)!;
    this.#open.delete(record.id);
    writeRecord(this.#sweep.directory, record);
    this.#store.know(record);
    if ("cell" in one) {
      this.#measured++;
      this.#options.onEvent?.({ type: "measured", cell: one, value: record.value });
    } else {
      this.#trained++;
      this.#options.onEvent?.({ type: "trained", run: one, seconds: record.seconds });
    }
  }

  #give({ cells, label, code, reason }: DeadJob): void {
    const given = cells.filter((id) => this.#open.delete(id));
    if (given.length === 0) return;
    this.#failures.push({ label, code, reason });
    this.#options.onEvent?.({ type: "failed", label, reason });
  }
}
