/** @file From tables and figures to what has to be done: trainings and cells, each known by what decides it, each once. */
import { basename } from "node:path";
import { MiloraError, sum } from "../../base/index.ts";
import { methodOf } from "../../methods/index.ts";
import {
  decisiveFields,
  renderRow,
  resolveTrainingConfig,
  stepsPerEpoch,
  type TrainingConfigInput,
} from "../../training/index.ts";
import { formOf, loadTasks } from "../registry.ts";
import { digestOf } from "../store.ts";
import { type Data, protocolOf, type Source } from "./data.ts";
import { JUDGED, judgedCell } from "./judging.ts";
import { measureCell } from "./measure.ts";
import type { Holding, ModelFacts, Models } from "./models.ts";
import { TABLE6, TITLES, taskTitle } from "./paper.ts";
import type { Preset } from "./presets.ts";
import { machineName } from "./store.ts";
import { type Cell, canonical, type Scope, type Study, type Training } from "./study.ts";
import { type PlannedRun, runState, type State, type Work, type WorkCell, type World } from "./work.ts";

export interface PlannedCell extends WorkCell {
  readonly cell: Cell;
}

export interface Plan extends Work {
  readonly scope: Scope;
  readonly studies: readonly Study[];
  readonly cells: readonly PlannedCell[];
  /** Cells of each study, by its name. */
  readonly needs: ReadonlyMap<string, readonly PlannedCell[]>;
  /** The cell that a study's cell became, by its `canonical` text. */
  readonly byKey: ReadonlyMap<string, PlannedCell>;
}

/** Goes up when the same settings would give other numbers. */
const VERSION = 1;

const problemOf = (error: unknown): MiloraError => {
  if (error instanceof MiloraError) return error;
  throw error;
};

/** The preset with what its names stand for. */
export async function scopeOf(preset: Preset, models: Models): Promise<Scope> {
  const tasks = await loadTasks();
  const { config } = await models.facts(preset.model, { device: preset.device });
  return {
    ...preset,
    backbone: config,
    tasksOf(name) {
      if (tasks.has(name)) return [name];
      return [...tasks.values()].filter(({ groups }) => groups?.includes(name)).map((task) => task.name);
    },
  };
}

function labelOf({ method, data, seed, adapter, model }: Training): string {
  const settings = Object.entries(adapter ?? {}).map(([key, value]) => {
    const text = Array.isArray(value) ? [...new Set(value)].join("/") : String(value);
    return `${key} ${text}`;
  });
  const parts = [TITLES[method] ?? method, ...settings, data.map(taskTitle).join(" + "), `seed ${seed}`];
  return [...parts, ...(model === undefined ? [] : [basename(model)])].join(" · ");
}

/**
 * Makes each thing once. What is asked for in the same words is known by its `canonical` text; two ways to ask for the
 * same thing, e.g. with a default written out, meet in its id.
 */
class Once<Asked, Made extends { readonly id: string }> {
  readonly byKey = new Map<string, Made>();
  readonly #byId = new Map<string, Made>();
  readonly #make: (asked: Asked) => Promise<Made>;

  constructor(make: (asked: Asked) => Promise<Made>) {
    this.#make = make;
  }

  async of(asked: Asked): Promise<Made> {
    const key = canonical(asked);
    const known = this.byKey.get(key);
    if (known) return known;
    const made = await this.#make(asked);
    const one = this.#byId.get(made.id) ?? made;
    this.#byId.set(one.id, one);
    this.byKey.set(key, one);
    return one;
  }

  all(): Made[] {
    return [...this.#byId.values()];
  }
}

export class Planner {
  readonly #scope: Scope;
  readonly #world: World;
  readonly #holding: Holding;
  readonly #runs = new Once((training: Training) => this.#newRun(training));
  readonly #cells = new Once((cell: Cell) => this.#newCell(cell));
  readonly #lengths = new Map<string, number | undefined>();

  constructor(scope: Scope, world: World) {
    this.#scope = scope;
    this.#world = world;
    this.#holding = { device: scope.device };
  }

  async plan(studies: readonly Study[]): Promise<Plan> {
    const needs = new Map<string, readonly PlannedCell[]>();
    for (const study of studies) {
      const cells = new Set<PlannedCell>();
      for (const cell of study.cells(this.#scope)) cells.add(await this.#cells.of(cell));
      needs.set(study.name, [...cells]);
    }
    const [runs, cells] = [this.#runs.all(), this.#cells.all()];
    const scope = this.#scope;
    return {
      ...{ scope, studies, runs, cells, needs, byKey: this.#cells.byKey, together: scope.together },
      measure: (planned, context) => measureCell(planned as PlannedCell, { ...context, scope }),
    };
  }

  async #newCell(cell: Cell): Promise<PlannedCell> {
    const model = ("training" in cell ? cell.training.model : undefined) ?? this.#scope.model;
    const run = "training" in cell ? await this.#runs.of(cell.training) : undefined;
    const about = { cell, run, model, holding: this.#holding };
    const finish = (decided: unknown, label: string, more: Partial<PlannedCell> = {}): PlannedCell => {
      const id = digestOf([VERSION, cell.kind, run?.id ?? null, decided]).slice(0, 16);
      const state = this.#world.store.get(id) ? "done" : "missing";
      return {
        id,
        label,
        state,
        rows: undefined,
        ...(run?.problems[0] && { problem: run.problems[0] }),
        ...more,
        ...about,
      };
    };
    if (cell.kind === "judged") {
      const label = `${run!.label} → ${taskTitle(JUDGED)}`;
      const { judge } = this.#world;
      if (!judge) return finish(JUDGED, label, { skipped: "needs a judge: --judge-url and --judge-model" });
      try {
        const { decided, turns } = await judgedCell(this.#scope, this.#world.data, judge);
        return finish(decided, label, { rows: 2 * turns }); // answered, then judged
      } catch (error) {
        return finish(JUDGED, label, { problem: problemOf(error) });
      }
    }
    if (cell.kind === "speed") {
      const { speedTokens, speedRounds } = this.#scope;
      const decided = [cell.beams, speedTokens, speedRounds, machineName()];
      return finish(decided, `${run!.label} → speed, ${cell.beams === 1 ? "greedy" : `${cell.beams} beams`}`, {
        rows: speedRounds + 1,
      });
    }
    if (cell.kind === "rows") return finish(await this.#counted(cell.source), `rows of ${taskTitle(cell.source)}`);
    const label = `${run!.label} → ${cell.kind === "routes" ? "routes on " : ""}${taskTitle(cell.task)}`;
    const { beams, limit, maxNewTokens } = this.#scope;
    try {
      const task = (await loadTasks()).get(cell.task)!;
      const protocol = protocolOf(task);
      const { digest, documents } = await this.#world.data.test(task);
      const rows = Math.min(limit ?? documents.length, documents.length);
      const decided = [task.name, protocol, formOf(task, protocol).version, digest, limit, beams, maxNewTokens];
      return finish(cell.kind === "routes" ? decided.slice(0, 5) : decided, label, { rows });
    } catch (error) {
      return finish([cell.task, limit, beams], label, { problem: problemOf(error) });
    }
  }

  /** Digests of the rows that are counted. */
  async #counted(name: string): Promise<unknown> {
    const { data } = this.#world;
    const tasks = await loadTasks();
    const digests: unknown[] = [name];
    for (const task of this.#scope.tasksOf(name).map((found) => tasks.get(found)!)) {
      const { train, dev } = await data.available(task).catch(() => ({ train: undefined, dev: undefined }));
      digests.push(
        await data.test(task).then(({ digest }) => digest, String),
        train?.digest ?? null,
        dev?.digest ?? null,
      );
    }
    if (digests.length > 1) return digests;
    // Whatever is wrong with a corpus is told when it is counted.
    return [...digests, await data.training(name).then(({ train }) => train.digest, String)];
  }

  async #newRun(training: Training): Promise<PlannedRun> {
    const { method, data, seed } = training;
    const model = training.model ?? this.#scope.model;
    const facts = await this.#world.models.facts(model, this.#holding);
    const common = { label: labelOf(training), training, model, holding: this.#holding };
    const papers = sum(data.map((name) => TABLE6[name]?.train ?? 0));
    let sources: Awaited<ReturnType<Data["training"]>>[] = [];
    const problems: MiloraError[] = facts.problem ? [facts.problem] : [];
    try {
      for (const name of data) sources.push(await this.#world.data.training(name));
    } catch (error) {
      problems.push(problemOf(error));
      sources = [];
    }
    const rows = sources.length ? sum(sources.map(({ train }) => train.rows)) : papers;
    const settings = this.#scope.settings(method, rows, data);
    const adapter = { ...settings.adapter, ...training.adapter };
    const devs = this.#scope.dev ? sources.map(({ dev }) => dev) : [];
    const whole = devs.length > 0 && devs.every((dev) => dev !== undefined);
    const trains = sources.map(({ train }) => train);
    const config: TrainingConfigInput = {
      ...settings,
      model,
      weights: facts.weights ?? "float32",
      ...this.#holding,
      method,
      adapter,
      data: {
        train: "unknown",
        dev: this.#scope.dev ? 0.05 : 0,
        template: "alpaca",
      },
      seed,
      output_dir: "unknown",
    };
    try {
      const resolved = resolveTrainingConfig({
        ...config,
        adapter: facts.config
          ? (methodOf(method).newConfig(adapter, facts.config) as Record<string, unknown>)
          : adapter,
      });
      const decided = [
        [...decisiveFields(resolved)].sort(([a], [b]) => (a < b ? -1 : 1)),
        [
          facts.digest ?? model,
          trains.length ? trains.map(({ digest }) => digest) : data,
          devs.map((dev) => (whole ? dev!.digest : null)),
        ],
      ];
      const id = digestOf([VERSION, ...decided]).slice(0, 16);
      const { epochs, batch_size, max_steps } = resolved;
      const planned = Math.ceil(epochs * stepsPerEpoch(Math.max(1, this.#learned(rows, whole)), batch_size));
      const steps = Math.min(planned, max_steps ?? planned);
      const perRow = this.#tokensPerRow(model, trains, facts, resolved.max_length);
      return {
        id,
        ...common,
        config: problems.length
          ? undefined
          : withFiles(config, trains, whole ? (devs as Source[]) : undefined, this.#out(id)),
        write: () => {
          for (const source of [...trains, ...(whole ? (devs as Source[]) : [])]) source.write();
        },
        rows,
        steps,
        tokens: perRow === undefined ? undefined : Math.round(steps * Math.min(batch_size, rows) * perRow),
        parameters: facts.config && countOf(method, resolved.adapter, facts),
        state: this.#stateOf(id),
        problems,
      };
    } catch (error) {
      const id = digestOf([VERSION, canonical(training)]).slice(0, 16);
      const nothing = { config: undefined, write: () => {}, steps: 0, tokens: undefined, parameters: undefined };
      return { id, ...common, ...nothing, rows, state: "missing", problems: [...problems, problemOf(error)] };
    }
  }

  #tokensPerRow(model: string, trains: readonly Source[], facts: ModelFacts, longest: number): number | undefined {
    const key = canonical([model, trains.map(({ digest }) => digest), longest]);
    if (!this.#lengths.has(key)) this.#lengths.set(key, tokensPerRow(trains, facts, longest));
    return this.#lengths.get(key);
  }

  /** Rows that remain when some are split off. */
  #learned(rows: number, whole: boolean): number {
    return this.#scope.dev && !whole ? rows - Math.max(1, Math.round(rows * 0.05)) : rows;
  }

  #out(id: string): string {
    return this.#world.store.runDirectory(id);
  }

  #stateOf(id: string): State {
    return runState(this.#world.store, id);
  }
}

function withFiles(
  config: TrainingConfigInput,
  trains: readonly Source[],
  devs: readonly Source[] | undefined,
  output: string,
): TrainingConfigInput {
  const named = (sources: readonly Source[]) => sources.map((source) => ({ path: source.path, name: source.name }));
  const one = trains.length === 1;
  const dev = devs === undefined ? config.data.dev! : one ? devs[0]!.path : named(devs);
  return { ...config, data: { ...config.data, train: one ? trains[0]!.path : named(trains), dev }, output_dir: output };
}

function tokensPerRow(trains: readonly Source[], { tokenizer }: ModelFacts, maxLength: number): number | undefined {
  if (!tokenizer || trains.length === 0) return undefined;
  let [tokens, rows] = [0, 0];
  for (const { sample, rows: all } of trains) {
    const own = sample.reduce((sum, row) => {
      const { prompt, response } = renderRow(row, tokenizer, { template: "alpaca" });
      return sum + Math.min(maxLength, prompt.length + response.length);
    }, 0);
    tokens += (own / sample.length) * all;
    rows += all;
  }
  return tokens / rows;
}

function countOf(method: string, adapter: unknown, { config }: ModelFacts): number {
  const { tunable } = methodOf(method).countParameters(adapter, config!);
  return sum(Object.values(tunable));
}
