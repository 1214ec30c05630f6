/** @file From a grid to what has to be done: a training for each point, a cell for each evaluation, each known by what decides it. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { basename } from "node:path";
import { MiloraError } from "../../base/index.ts";
import { Adapter, methodOf } from "../../methods/index.ts";
import {
  assign,
  countRows,
  decisiveFields,
  filesOf,
  merge,
  PromptTemplate,
  presetSettings,
  resolveTrainingConfig,
  type Settings,
  settingPath,
  stepsPerEpoch,
  type TrainingConfig,
  type TrainingConfigInput,
  templateOf,
  unknownSettings,
  withoutNulls,
} from "../../training/index.ts";
import { loadSplit } from "../load.ts";
import { type PlannedRun, runState, type Work, type WorkCell, type World } from "../paper/work.ts";
import { findTasks, formOf, rowFormOf } from "../registry.ts";
import { digestOf } from "../store.ts";
import { measureScore, type ScoreCell, templateFor } from "./measure.ts";
import { checkSize, type Evaluation, type Grid, nameOf, type Point, pointsOf } from "./schema.ts";

/** One line of the grid's table. */
export interface PlannedPoint {
  /** What is tried, by the names of the axes; `adapter` of a grid without trainings. */
  readonly settings: Point;
  readonly run: PlannedRun | undefined;
  /** In the order of the evaluations. */
  readonly cells: readonly WorkCell[];
}

export interface GridPlan extends Work {
  readonly grid: Grid;
  readonly points: readonly PlannedPoint[];
}

/** Goes up when the same settings would give other numbers. */
const VERSION = 1;
/** What each run has of its own. */
const LATER = "unknown";

const shown = (value: unknown): string => {
  if (typeof value === "string") return value.includes("/") ? basename(value) : value;
  return JSON.stringify(value);
};
const labelOf = (point: Point): string =>
  Object.entries(point)
    .map(([axis, value]) => `${axis} ${shown(value)}`)
    .join(" · ");

/** What the grid needs, and what of it is there already. */
export async function planGrid(grid: Grid, world: World): Promise<GridPlan> {
  checkSize(grid);
  return await new GridPlanner(grid, world).plan();
}

class GridPlanner {
  readonly #grid: Grid;
  readonly #world: World;
  readonly #runs = new Map<string, PlannedRun>();
  readonly #cells = new Map<string, WorkCell>();
  readonly #known = new Map<string, Promise<unknown>>();

  constructor(grid: Grid, world: World) {
    this.#grid = grid;
    this.#world = world;
  }

  async plan(): Promise<GridPlan> {
    const { adapters } = this.#grid;
    const points: PlannedPoint[] = [];
    if (adapters) for (const adapter of adapters) points.push(await this.#adapterPoint(adapter));
    else for (const point of pointsOf(this.#grid)) points.push(await this.#trainedPoint(point));
    return {
      ...{ grid: this.#grid, points, together: false },
      ...{ runs: [...this.#runs.values()], cells: [...this.#cells.values()] },
      measure: (planned, context) => measureScore(planned as ScoreCell, context),
    };
  }

  /** Files are read once. */
  async #once<T>(key: string, make: () => Promise<T>): Promise<T> {
    const found = (this.#known.get(key) ?? make()) as Promise<T>;
    this.#known.set(key, found);
    return await found;
  }

  async #trainedPoint(point: Point): Promise<PlannedPoint> {
    const run = await this.#runOf(point);
    const template = run.config?.data.template;
    const cells: WorkCell[] = [];
    for (const evaluation of this.#grid.evaluate) {
      const decided = await this.#decided(evaluation, templateFor(evaluation, undefined, template));
      const label = `${run.label} → ${nameOf(evaluation)}`;
      const { model, holding } = run;
      const problem = run.problems[0] ?? decided.problem;
      cells.push(
        this.#cellOf({
          ...{ run, model, label, rows: decided.rows, cell: { kind: "score", evaluation, adapter: undefined } },
          ...(holding && { holding }),
          ...(problem && { problem }),
          id: digestOf([VERSION, "score", run.id, decided.by]).slice(0, 16),
        }),
      );
    }
    return { settings: point, run, cells };
  }

  async #adapterPoint(adapter: string | null): Promise<PlannedPoint> {
    const { model: named, weights, device, evaluate } = this.#grid;
    const [model, holding] = [named!, { weights, device }];
    const facts = await this.#world.models.facts(model, holding);
    const [digest, bad] = await settled(async () => {
      if (facts.problem) throw facts.problem;
      if (adapter === null) return null;
      using loaded = Adapter.load(adapter, facts.config!);
      return loaded.digest;
    });
    const cells: WorkCell[] = [];
    for (const evaluation of evaluate) {
      const decided = await this.#decided(evaluation, templateFor(evaluation, adapter ?? undefined));
      const problem = bad ?? decided.problem;
      const by = [facts.digest ?? model, facts.weights ?? null, device ?? "cpu", digest ?? adapter, decided.by];
      cells.push(
        this.#cellOf({
          ...{ run: undefined, model, holding, rows: decided.rows, cell: { kind: "score", evaluation, adapter } },
          label: `${adapter ?? "bare backbone"} → ${nameOf(evaluation)}`,
          ...(problem && { problem }),
          id: digestOf([VERSION, "score", ...by]).slice(0, 16),
        }),
      );
    }
    return { settings: { adapter: adapter ?? "none" }, run: undefined, cells };
  }

  #cellOf(cell: Omit<ScoreCell, "state">): WorkCell {
    const known = this.#cells.get(cell.id);
    if (known) return known;
    const planned = { ...cell, state: this.#world.store.get(cell.id) ? ("done" as const) : ("missing" as const) };
    this.#cells.set(cell.id, planned);
    return planned;
  }

  /** All but the model that decides an evaluation's numbers, and how many rows it has. */
  async #decided(evaluation: Evaluation, named: string) {
    const {
      task: name,
      data,
      metric,
      protocol,
      num_fewshot,
      data_dir,
      limit,
      beams,
      max_new_tokens,
      seed,
    } = evaluation;
    const asked = [metric, limit ?? null, beams, max_new_tokens ?? null];
    const [found, problem] = await settled(() =>
      this.#once(`evaluate ${nameOf(evaluation)} ${named}`, async () => {
        const template = textOfTemplate(named);
        if (name === undefined) {
          const rows = await this.#rows(data!, named);
          return { rows, by: [await this.#digest(data!), template, ...asked] };
        }
        const [task, ...more] = await findTasks([name], protocol);
        if (more.length) throw new MiloraError("TASK_UNKNOWN", `${name} is a group; name each of its tasks`);
        const { split } = rowFormOf(task!, protocol);
        const { documents, digest } = await loadSplit(task!, split, { directory: data_dir });
        const { version } = formOf(task!, protocol);
        const by = [task!.name, protocol, version, digest, num_fewshot ?? null, seed, template, ...asked];
        return { rows: documents.length, by };
      }),
    );
    const rows = found && Math.min(limit ?? found.rows, found.rows);
    return { rows, problem, by: found?.by ?? [name ?? data, named, ...asked] };
  }

  #rows(path: string, template: string): Promise<number> {
    return this.#once(`rows ${path} ${template}`, () => countRows({ train: path, template }));
  }

  /** sha256 of the files that a path names. */
  #digest(path: string): Promise<string> {
    return this.#once(`digest ${path}`, async () => {
      const hash = createHash("sha256");
      for (const file of await filesOf(path))
        for await (const part of createReadStream(file)) hash.update(part as Buffer);
      return hash.digest("hex");
    });
  }

  async #runOf(point: Point): Promise<PlannedRun> {
    const label = labelOf(point) || "training";
    const [config, problem] = await settled(() => this.#configOf(point));
    const training = { method: config?.method ?? "", data: [], seed: config?.seed ?? 0, adapter: point };
    const nothing = { write: () => {}, tokens: undefined, parameters: undefined };
    const broken = (problems: readonly MiloraError[], model = ""): PlannedRun => ({
      ...{ id: digestOf([VERSION, label, point]).slice(0, 16), label, training, model, config: undefined, ...nothing },
      ...{ rows: 0, steps: 0, state: "missing", problems },
    });
    if (!config) return broken([problem!]);
    const { model, weights, device, method, adapter, data } = config;
    const holding = { weights, device };
    const facts = await this.#world.models.facts(model, holding);
    if (facts.problem) return broken([facts.problem], model);
    const [made, bad] = await settled(async () => {
      const whole: TrainingConfig = {
        ...{ ...config, weights: facts.weights },
        adapter: methodOf(method).newConfig(adapter, facts.config!) as Record<string, unknown>,
      };
      const fields = [...decisiveFields(whole)].sort(([a], [b]) => (a < b ? -1 : 1));
      const digests = [
        await this.#filesOf(data.train),
        typeof data.dev === "number" ? null : await this.#filesOf(data.dev),
      ];
      const id = digestOf([VERSION, fields, facts.digest, textOfTemplate(data.template), digests]).slice(0, 16);
      return { id, rows: await this.#counted(data) };
    });
    if (!made) return broken([bad!], model);
    const known = this.#runs.get(made.id);
    if (known) return known;
    const { store } = this.#world;
    const learned = typeof data.dev === "number" ? made.rows - Math.round(made.rows * data.dev) : made.rows;
    const planned = Math.ceil(config.epochs * stepsPerEpoch(Math.max(1, learned), config.batch_size));
    const run: PlannedRun = {
      ...{ id: made.id, label, training, model, holding, ...nothing, rows: made.rows, problems: [] },
      config: { ...config, weights: facts.weights, output_dir: store.runDirectory(made.id) } as TrainingConfigInput,
      steps: Math.min(planned, config.max_steps ?? planned),
      state: runState(store, made.id),
    };
    this.#runs.set(run.id, run);
    return run;
  }

  #counted(data: TrainingConfig["data"]): Promise<number> {
    return this.#once(`count ${JSON.stringify(data)}`, () => countRows(data));
  }

  /** Digests of sources, with all that is said of each but where it lies. */
  async #filesOf(
    sources: string | readonly (string | { readonly path: string; readonly template?: string | undefined })[],
  ) {
    const list = typeof sources === "string" ? [sources] : sources;
    const digests: unknown[] = [];
    for (const source of list) {
      const { path, template, ...rest } = typeof source === "string" ? { path: source } : source;
      digests.push([await this.#digest(path), template === undefined ? null : textOfTemplate(template), rest]);
    }
    return digests;
  }

  /** As `milora train` makes it: the preset, then what all share, then the point. */
  async #configOf(point: Point): Promise<TrainingConfig> {
    const { train, preset } = this.#grid;
    let settings = structuredClone(train) as Settings;
    for (const [axis, value] of Object.entries(point)) {
      const own: Settings = {};
      assign(own, settingPath(axis)!, value);
      settings = merge(settings, own);
    }
    settings = withoutNulls({ ...settings, output_dir: LATER });
    const bare = resolveTrainingConfig(settings, "the grid's train");
    const rows = preset === "paper" ? await this.#counted(bare.data) : 0;
    const begun = preset ? (presetSettings(preset, bare.method, rows) as Settings) : {};
    const config = resolveTrainingConfig(merge(begun, settings), "the grid's train");
    const unknown = unknownSettings(methodOf(config.method), config.adapter);
    if (unknown.length) throw new MiloraError("CONFIG_INVALID", `the grid's train: ${unknown.join("; ")}`);
    return config;
  }
}

/** What a template says: a file may have changed. */
function textOfTemplate(named: string): string {
  const template = templateOf(named);
  return template instanceof PromptTemplate ? template.source : template;
}

/** A value, or the known reason why there is none. */
async function settled<T>(make: () => Promise<T>): Promise<[T, undefined] | [undefined, MiloraError]> {
  try {
    return [await make(), undefined];
  } catch (error) {
    if (error instanceof MiloraError) return [undefined, error];
    throw error;
  }
}
