/** @file All runs, reproductions and grids below some folders: found again and again, read once, kept up to date by what is appended. */
import { statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { MiloraError } from "../../../base/index.ts";
import { CURVE_RANGE, gelu } from "../../../methods/index.ts";
import { metricsPath } from "../../../training/index.ts";
import { ServingError } from "../../errors.ts";
import type {
  GridDetail,
  GridSummary,
  Reproduction,
  ReproductionSummary,
  RunActivations,
  RunDetail,
  RunExperts,
  RunSeries,
  RunSummary,
} from "../types.ts";
import { discover, type Found } from "./discover.ts";
import {
  activationsOf,
  configFile,
  environmentFile,
  expertsOf,
  newestCheckpoint,
  plannedSteps,
  type RunConfig,
  rankOf,
  stateOf,
  type Watched,
} from "./files.ts";
import { GridFolder } from "./grids.ts";
import { MetricsIndex } from "./metrics-index.ts";
import { reproductionFile, summaryOf } from "./reproductions.ts";

/** Runs of which there is more than the totals in memory. */
const MOST_LOADED = 16;
/** Folders are looked through again when that was longer ago; large ones, for which it takes long, less often. */
const FOUND_MS = 2000;
const FOUND_TIMES = 20;
/** How long an answer waits for files to be read; what has been read by then is told. */
const WAIT_MS = 1500;
/** Files that are read at a time. */
const MOST_READING = 4;
const CURVE_POINTS = 61;
/** Numbers of an answer on experts. */
const MOST_SHARES = 100_000;

class Run {
  readonly id: string;
  readonly directory: string;
  readonly config: Watched<RunConfig>;
  readonly environment: ReturnType<typeof environmentFile>;
  readonly checkpoint: ReturnType<typeof newestCheckpoint>;
  readonly index: MetricsIndex;
  /** When somebody has looked at it by itself. */
  looked = 0;

  constructor({ id, directory }: Found, signal: AbortSignal) {
    this.id = id;
    this.directory = directory;
    this.config = configFile(directory);
    this.environment = environmentFile(directory);
    this.checkpoint = newestCheckpoint(directory);
    this.index = new MetricsIndex(metricsPath(directory), signal);
  }

  summary(): RunSummary {
    const { index, id } = this;
    const { totals } = index;
    const name = basename(id);
    const updatedAt = new Date(index.modified || this.#changed).toISOString();
    const common = { id, name, updatedAt, indexed: index.indexed, damagedLines: totals.damagedLines };
    let config: RunConfig;
    try {
      config = this.config.value;
      if (index.problem !== undefined) throw new MiloraError("FILE_UNREADABLE", `metrics.jsonl: ${index.problem}`);
    } catch (error) {
      const problem = error instanceof MiloraError ? error.message : "its files cannot be read";
      return { ...common, ...NOTHING, problem };
    }
    const { steps, tokens, seconds, epoch, loss, best, lastStep } = totals;
    return {
      ...common,
      state: stateOf(this.directory, config, totals, this.checkpoint.value),
      method: config.method,
      model: basename(config.model),
      rank: rankOf(config),
      routed: index.expertShape !== undefined || expertsOf(config) !== undefined,
      ...{ step: lastStep, plannedSteps: plannedSteps(config, totals), epoch, loss },
      ...{ bestPerplexity: best?.perplexity ?? null, bestStep: best?.step ?? null },
      ...{ tokens, tokensPerSecond: steps && seconds > 0 ? tokens / seconds : null, seconds },
      startedAt: this.environment.value?.started ?? null,
      problem: null,
    };
  }

  get #changed(): number {
    return statSync(join(this.directory, "config.json"), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  }
}

const NOTHING = {
  state: "stopped",
  ...{ method: "", model: "", rank: null, routed: false, step: 0, plannedSteps: null, epoch: 0 },
  ...{ loss: null, bestPerplexity: null, bestStep: null, tokens: 0, tokensPerSecond: null, seconds: 0 },
  startedAt: null,
} as const;

/** Ids are looked up among what was found; no path is ever made of one. */
export class RunLibrary implements Disposable {
  readonly #folders: readonly string[];
  readonly #stop = new AbortController();
  readonly #runs = new Map<string, Run>();
  readonly #reports = new Map<string, { directory: string; report: Watched<Reproduction | undefined> }>();
  readonly #grids = new Map<string, GridFolder>();
  /** When the folders are to be looked through again. */
  #due = Number.NEGATIVE_INFINITY;
  #finding: Promise<void> | undefined;

  /** @param folders in which runs lie at any depth; a run may be one of them itself */
  constructor(folders: readonly string[]) {
    this.#folders = folders;
  }

  async list(): Promise<RunSummary[]> {
    await this.#look();
    const runs = [...this.#runs.values()];
    await this.#within(this.#refreshAll(runs));
    this.#trim();
    return runs.map((run) => run.summary()).sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  /** What runs in these directories are called; undefined for what is not below the folders. */
  async idsOf(directories: readonly string[]): Promise<(string | undefined)[]> {
    await this.#look();
    const ids = new Map([...this.#runs.values()].map(({ id, directory }) => [resolve(directory), id]));
    return directories.map((directory) => ids.get(resolve(directory)));
  }

  /** @throws ServingError RUN_NOT_FOUND */
  async detail(id: string): Promise<RunDetail> {
    const run = await this.#run(id);
    const summary = run.summary();
    const empty = { config: {}, environment: null, evaluations: [] };
    if (summary.problem !== null) return { ...summary, ...empty };
    const { evaluations } = run.index.totals;
    return { ...summary, config: run.config.value, environment: run.environment.value, evaluations };
  }

  /** @throws ServingError RUN_NOT_FOUND */
  async series(id: string, { from = 1, to = Number.MAX_SAFE_INTEGER, points = 600 } = {}): Promise<RunSeries> {
    const { index } = await this.#run(id);
    return await index.series(from, to, points);
  }

  /** @throws ServingError RUN_NOT_FOUND, RUN_NOT_ROUTED */
  async experts(id: string, points = 120): Promise<RunExperts> {
    const { index, config } = await this.#run(id);
    const shape = index.expertShape;
    if (shape === undefined) {
      throw new ServingError(
        "RUN_NOT_ROUTED",
        404,
        `the run ${id} has no steps in which prompts were routed to experts`,
      );
    }
    const [layers, count] = shape;
    const most = Math.max(1, Math.min(points, Math.floor(MOST_SHARES / (layers * count))));
    const named = [index.totals.experts, expertsOf(config.value)].find((names) => names?.length === count);
    const experts = named ?? Array.from({ length: count }, (_, i) => String(i));
    return { experts, layers, indexed: index.indexed, ...index.shares(most)! };
  }

  /** @throws ServingError RUN_NOT_FOUND; InputError where the best adapter is damaged */
  async activations(id: string): Promise<RunActivations> {
    const { directory } = await this.#run(id);
    const [from, to] = CURVE_RANGE;
    const x = Array.from({ length: CURVE_POINTS }, (_, i) => from + ((to - from) * i) / (CURVE_POINTS - 1));
    const curves = activationsOf(directory).map(({ layer, block, deviation, f }) => ({
      ...{ layer, block: block ?? null, deviation },
      y: x.map(f),
    }));
    return { x, gelu: x.map(gelu), curves };
  }

  /** Newest first. */
  async reproductions(): Promise<ReproductionSummary[]> {
    await this.#look();
    const reports = [...this.#reports.values()].flatMap(({ report }) => report.value ?? []);
    return reports.map(summaryOf).sort((a, b) => (a.made < b.made ? 1 : -1));
  }

  /** @throws ServingError REPRODUCTION_NOT_FOUND */
  async reproduction(id: string): Promise<Reproduction> {
    await this.#look();
    const report = this.#reports.get(id)?.report.value;
    if (report) return report;
    throw new ServingError(
      "REPRODUCTION_NOT_FOUND",
      404,
      `there is no reproduction ${JSON.stringify(id.slice(0, 200))}`,
    );
  }

  /** Those in which something was finished last come first. */
  async grids(): Promise<GridSummary[]> {
    await this.#look();
    const grids = await Promise.all([...this.#grids.values()].map((grid) => grid.summary()));
    return grids.flatMap((grid) => grid ?? []).sort((a, b) => (a.updatedAt < b.updatedAt ? 1 : -1));
  }

  /** @throws ServingError GRID_NOT_FOUND */
  async grid(id: string): Promise<GridDetail> {
    await this.#look();
    const found = await this.#grids.get(id)?.detail((work) => this.#within(work));
    if (!found) {
      throw new ServingError("GRID_NOT_FOUND", 404, `there is no grid ${JSON.stringify(id.slice(0, 200))}`);
    }
    const { lines, ...rest } = found;
    const runs = await this.idsOf(lines.map(({ directory }) => directory ?? ""));
    const points = lines.map(({ directory, ...line }, i) => ({
      ...line,
      run: (directory === undefined ? undefined : runs[i]) ?? null,
    }));
    return { ...rest, points };
  }

  /** Ends what is being read. */
  [Symbol.dispose](): void {
    this.#stop.abort();
  }

  /** A run, with all of it in memory, or as much as could be read in the time that an answer may take. */
  async #run(id: string): Promise<Run> {
    if (!this.#runs.has(id)) await this.#look();
    const run = this.#runs.get(id);
    if (run === undefined) {
      throw new ServingError(
        "RUN_NOT_FOUND",
        404,
        `there is no run ${JSON.stringify(id.slice(0, 200))}; it may have been removed`,
      );
    }
    run.looked = performance.now();
    await this.#within(run.index.load());
    this.#trim();
    return run;
  }

  async #within(work: Promise<void>): Promise<void> {
    const done = new AbortController();
    await Promise.race([work, sleep(WAIT_MS, undefined, { signal: done.signal, ref: false }).catch(() => {})]);
    done.abort();
  }

  /** All that changed, a few files at a time; new ones come last. */
  async #refreshAll(runs: readonly Run[]): Promise<void> {
    const queue = runs.toSorted((a, b) => b.index.version - a.index.version).values();
    const work = async () => {
      for (const { index } of queue) await index.refresh();
    };
    await Promise.all(Array.from({ length: MOST_READING }, work));
  }

  /** Keeps those that were looked at last. */
  #trim(): void {
    const loaded = [...this.#runs.values()].filter(({ index }) => index.loaded && index.indexed === 1);
    const rest = loaded.sort((a, b) => b.looked - a.looked).slice(MOST_LOADED);
    for (const { index } of rest) index.forget();
  }

  /** Looks through the folders, if that was not just now. */
  async #look(): Promise<void> {
    if (performance.now() < this.#due) return;
    this.#finding ??= this.#find().finally(() => {
      this.#finding = undefined;
    });
    await this.#finding;
  }

  async #find(): Promise<void> {
    const started = performance.now();
    const { runs, results, grids } = await discover(this.#folders);
    keep(this.#runs, runs, (found) => new Run(found, this.#stop.signal));
    keep(this.#reports, results, ({ id, directory }) => ({ directory, report: reproductionFile(id, directory) }));
    keep(this.#grids, grids, (found) => new GridFolder(found));
    const now = performance.now();
    this.#due = now + Math.max(FOUND_MS, FOUND_TIMES * (now - started));
  }
}

/** Brings a map to what was found; what is there stays as it is. */
function keep<T extends { readonly directory: string }>(
  known: Map<string, T>,
  found: readonly Found[],
  make: (found: Found) => T,
): void {
  const ids = new Set(found.map(({ id }) => id));
  for (const id of [...known.keys()]) if (!ids.has(id)) known.delete(id);
  for (const one of found) if (known.get(one.id)?.directory !== one.directory) known.set(one.id, make(one));
}
