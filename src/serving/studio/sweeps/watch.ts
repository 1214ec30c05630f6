/** @file Sweeps of a database as pages show them: opened when the first page asks, again when the database was away. */
import { basename, join } from "node:path";
import { InputError } from "../../../base/index.ts";
import { ServingError } from "../../errors.ts";
import { DatabaseUnreachable } from "../../store/url.ts";
import {
  type CellQuery,
  type CellStatus,
  findSweeps,
  RETRIES,
  type SweepOverview,
  type Sweeps,
} from "../../sweeps/index.ts";
import type { RunLibrary } from "../runs/index.ts";
import type { SweepCell, SweepDetail, SweepList, SweepSummary } from "../types.ts";

/** Where there were none, it is looked again after this. */
const ABSENT_MS = 3000;

export class SweepWatch implements AsyncDisposable {
  readonly #url: string;
  readonly #runs: RunLibrary | undefined;
  #opening: Promise<Sweeps | undefined> | undefined;
  #absentUntil = 0;

  /** @param url of a PostgreSQL @param runs to which cells are led */
  constructor(url: string, runs: RunLibrary | undefined) {
    this.#url = url;
    this.#runs = runs;
  }

  async list(): Promise<SweepList> {
    const sweeps = await this.#sweeps();
    if (!sweeps) return { sweeps: [], workers: [] };
    const workers = await sweeps.workers();
    return {
      sweeps: (await sweeps.overview()).map(summaryOf),
      workers: workers.map(({ host, pid, slots, version, begun, silent, shunned }) => ({
        ...{ host, pid, slots, version, startedAt: begun.toISOString() },
        heardAt: new Date(Date.now() - 1000 * silent).toISOString(),
        shunned: Object.entries(shunned).map(([sweep, reason]) => ({ sweep, reason })),
      })),
    };
  }

  /** @throws ServingError SWEEP_NOT_FOUND */
  async detail(id: string, query: CellQuery): Promise<SweepDetail> {
    const { sweeps, overview } = await this.#one(id);
    const pace = await sweeps.pace(id);
    const { states, total, cells } = await sweeps.cells(id, query);
    const directories = cells.map(({ run }) => join(overview.directory, "runs", run ?? ""));
    const runs = this.#runs ? await this.#runs.idsOf(directories) : [];
    return {
      ...{ ...summaryOf(overview), ...pace, states, matching: total, from: query.offset ?? 0 },
      list: cells.map((cell, i) => shown(cell, cell.run === null ? undefined : runs[i])),
    };
  }

  /**
   * Tries again what was given up.
   * @param jobs these only
   * @returns how many jobs wait again
   * @throws ServingError SWEEP_NOT_FOUND
   */
  async retry(id: string, jobs: readonly string[] | undefined): Promise<number> {
    const { sweeps } = await this.#one(id);
    return await sweeps.retry(id, RETRIES, jobs);
  }

  async #one(id: string): Promise<{ readonly sweeps: Sweeps; readonly overview: SweepOverview }> {
    const sweeps = await this.#sweeps();
    const [overview] = (await sweeps?.overview(id)) ?? [];
    if (sweeps && overview) return { sweeps, overview };
    const name = JSON.stringify(id.slice(0, 200));
    throw new ServingError("SWEEP_NOT_FOUND", 404, `there is no sweep ${name}; it may have been removed`);
  }

  async #sweeps(): Promise<Sweeps | undefined> {
    if (performance.now() < this.#absentUntil) return undefined;
    this.#opening ??= findSweeps(this.#url);
    try {
      const sweeps = await this.#opening;
      if (sweeps) return sweeps;
      this.#absentUntil = performance.now() + ABSENT_MS;
      this.#opening = undefined;
      return undefined;
    } catch (error) {
      this.#opening = undefined;
      if (error instanceof InputError && error.code === "DATABASE_UNREACHABLE") throw new DatabaseUnreachable(error);
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const sweeps = await this.#opening?.catch(() => undefined);
    await sweeps?.[Symbol.asyncDispose]();
  }
}

function summaryOf({ id, directory, created, trainings, cells, jobs }: SweepOverview): SweepSummary {
  return { id, name: basename(directory), directory, createdAt: created.toISOString(), trainings, cells, jobs };
}

function shown(cell: CellStatus, run: string | undefined): SweepCell {
  const { id, kind, label, state, job, attempts, worker, progress, reason, code, after, metric, score, seconds } = cell;
  return {
    ...{ id, kind, label, state, job, run: run ?? null, attempts, reason, code, metric, score, seconds },
    worker: worker && { host: worker.host, pid: worker.pid, heardAt: worker.heard.toISOString() },
    progress: progress && { done: progress.done, total: progress.total },
    retryAt: after?.toISOString() ?? null,
    finishedAt: cell.recorded?.toISOString() ?? null,
  };
}
