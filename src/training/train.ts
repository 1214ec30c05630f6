/** @file Training runs from their configs, one or several together: data, a backbone, and the steps that all runs share. */
import { deriveSeed, InputError } from "../base/index.ts";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { type DeviceName, requireDevice } from "../runtime/index.ts";
import { withCheckpoint } from "./checkpoint.ts";
import { resolveTrainingConfig, type TrainingConfig, type TrainingConfigInput } from "./config.ts";
import { type DataSet, loadData } from "./data.ts";
import type { TogetherOptions, TrainingResult, TrainOptions } from "./events.ts";
import { JointTrainer, requireJoinable } from "./joint.ts";
import { AdamW, type AdamWOptions } from "./optimizer.ts";
import { requirePackable } from "./packing.ts";
import { contextOf, plannedSteps, type ResolvedConfig, Run, type RunHost } from "./run.ts";
import { asUnwritable, RunDirectory } from "./run-directory.ts";

/**
 * Trains an adapter as `config` says and writes `output_dir` (config.json, metrics.jsonl, checkpoints/, best/).
 * Equal config, data and machine give equal bytes, also when the run was interrupted and resumed in between.
 * @throws InputError for a bad config or bad files; TrainingError
 */
export async function train(config: TrainingConfigInput, options: TrainOptions = {}): Promise<TrainingResult> {
  const [result] = await trainTogether([config], options);
  if (result!.status === "rejected") throw result!.reason;
  return result!.value;
}

/**
 * Trains several adapters at once on one backbone, which each step reads once for all of them. Every run is as `train`
 * makes it alone, but for the rounding of the last bits. A run that ends or fails leaves the others to go on.
 * @param configs of one model and one form of weights; anything else may differ
 * @returns what came of each run, in the order of the configs
 * @throws InputError, TrainingError for what can be seen before the first step: then no run is begun
 */
export async function trainTogether(
  configs: readonly TrainingConfigInput[],
  options: TogetherOptions = {},
): Promise<PromiseSettledResult<TrainingResult>[]> {
  const given = configs.map((config) => resolveTrainingConfig(config));
  const methods = given.map(({ method }) => methodOf(method));
  requireOneBackbone(given);
  requireDevice(given[0]!.device);
  requireJoinable(methods);
  const [{ model, weights }] = given as [TrainingConfig];
  using loaded = options.backbone === undefined ? await Backbone.load(model, weights ? { weights } : {}) : undefined;
  const backbone = options.backbone ?? loaded!;
  const known = new Map<string, DataSet>();
  using runs = new Runs(backbone, options);
  // Bad settings of any run are refused before data is read.
  const maxLengths = given.map((config, i) => {
    const preview = methods[i]!.newConfig(settingsOf(config), backbone.config);
    if (config.packing) requirePackable(methods[i]!);
    return Math.min(config.max_length, contextOf(backbone, methods[i]!, preview));
  });
  for (const [i, config] of given.entries()) {
    const data = await dataOf(backbone, config, maxLengths[i]!, known, options.signal);
    runs.add(config, data);
  }
  return await runs.train();
}

function requireOneBackbone(configs: readonly TrainingConfig[]): void {
  const [{ model, device }] = configs as [TrainingConfig];
  const formOf = ({ weights = "float32" }: TrainingConfig) => weights; // what a prepared model is, is known when it is open
  const form = formOf(configs[0]!);
  const problems = configs.flatMap((config, i) => {
    const at = `config ${i + 1}`;
    const twice = configs.findIndex(({ output_dir }) => output_dir === config.output_dir);
    return [
      ...(config.model === model ? [] : [`${at}: model is ${config.model}, that of the first is ${model}`]),
      ...(formOf(config) === form ? [] : [`${at}: weights is ${formOf(config)}, that of the first is ${form}`]),
      ...(config.device === device ? [] : [`${at}: device is ${config.device}, that of the first is ${device}`]),
      ...(twice === i ? [] : [`${at}: output_dir ${config.output_dir} is that of config ${twice + 1}, too`]),
    ];
  });
  if (problems.length) throw new InputError("CONFIG_INVALID", "training together", problems);
}

function settingsOf({ model, adapter }: TrainingConfig): Record<string, unknown> {
  return { base_model_name_or_path: model, ...adapter };
}

/** Equal data is read and tokenised once. */
async function dataOf(
  backbone: Backbone,
  { data, seed }: TrainingConfig,
  maxLength: number,
  known: Map<string, DataSet>,
  signal: AbortSignal | undefined,
): Promise<DataSet> {
  const splits = typeof data.dev === "number" && data.dev > 0;
  const key = JSON.stringify([data, maxLength, splits ? seed : undefined]);
  const found = known.get(key) ?? (await loadData(backbone.tokenizer, { ...data, maxLength, seed, signal }));
  requireKnownTokens(found, backbone.config.vocabSize);
  known.set(key, found);
  return found;
}

/** The paper's learning rate of learned activation functions. */
const ACTIVATION_LR = 1e-6;

/** A tokenizer may know more tokens than the model has embeddings for. */
function requireKnownTokens({ train, dev }: DataSet, vocabSize: number): void {
  const highest = [...train, ...dev].reduce((most, { tokens }) => tokens.reduce((a, b) => Math.max(a, b), most), 0);
  if (highest < vocabSize) return;
  throw new InputError(
    "DATA_INVALID",
    "data",
    `token ${highest} is beyond the model's vocabulary of ${vocabSize}: tokenizer and model do not belong together`,
  );
}

/** Runs on one backbone, those that are going on stepped together. */
class Runs implements Disposable {
  readonly #backbone: Backbone;
  readonly #options: TogetherOptions;
  readonly #runs: Run[] = [];
  readonly #directories: RunDirectory[] = [];
  readonly #optimizers = new Map<string, AdamW>();
  readonly #results = new Map<Run, PromiseSettledResult<TrainingResult>>();
  #joint: JointTrainer | undefined;

  constructor(backbone: Backbone, options: TogetherOptions) {
    this.#backbone = backbone;
    this.#options = options;
  }

  /** Makes or reopens the run of a config. */
  add(config: TrainingConfig, data: DataSet): void {
    const { onProgress, resume = false } = this.#options;
    const index = this.#runs.length;
    const method = methodOf(config.method);
    const planned = { totalSteps: plannedSteps(config, data.train.length) };
    const seed = deriveSeed(config.seed, "init");
    const frozen = this.#backbone;
    const adapter = Adapter.create(method, settingsOf(config), frozen.config, seed, frozen, planned);
    let directory: RunDirectory;
    try {
      directory = RunDirectory.open(config.output_dir, resume);
    } catch (error) {
      adapter.dispose();
      throw error;
    }
    this.#directories.push(directory);
    const resolved: ResolvedConfig = {
      ...config,
      weights: config.weights ?? frozen.weights.kind,
      activation_lr: config.activation_lr ?? method.activationLr ?? ACTIVATION_LR,
      adapter: adapter.config as Record<string, unknown>,
    };
    const host: RunHost = {
      release: () => this.#release(),
      optimizer: (options) => this.#optimizer(options, config.device),
      onProgress: onProgress && ((event) => onProgress(event, index)),
    };
    this.#runs.push(new Run(resolved, data, frozen, adapter, directory, host));
  }

  /** All runs to their ends. */
  async train(): Promise<PromiseSettledResult<TrainingResult>[]> {
    for (const run of this.#runs) run.prepare();
    await this.#each((run) => run.start());
    while (!(await this.#interrupted())) {
      if (this.#active.length === 0) return this.#runs.map((run) => this.#results.get(run)!);
    }
    await this.#each(async (run) => this.#end(run, (run.evaluationDue ? undefined : run.ended) ?? "interrupted"));
    return this.#runs.map((run) => this.#results.get(run)!);
  }

  get #active(): Run[] {
    return this.#runs.filter((run) => !this.#results.has(run));
  }

  /** What is due before a step, and the step. True when the signal came first; what was begun is then undone. */
  async #interrupted(): Promise<boolean> {
    const { signal } = this.#options;
    if (!(await this.#evaluate())) return true;
    await this.#each((run) => run.checkpointIfDue());
    await this.#each(async (run) => run.ended && this.#end(run, run.ended));
    const active = this.#active;
    if (active.length === 0) return false;
    if (signal?.aborted) return true;
    const joint = this.#joined();
    const started = performance.now();
    const results = await joint.step(
      active.map((run) => run.nextStep()),
      signal,
    );
    if (results === undefined) return true;
    const seconds = (performance.now() - started) / 1000;
    await this.#each((run) => {
      const result = results[active.indexOf(run)]!;
      if (result.status === "rejected") throw result.reason;
      run.finishStep(result.value, seconds);
    });
    return false;
  }

  /** Evaluations that are due; false when the signal came first, and they still are. */
  async #evaluate(): Promise<boolean> {
    const active = this.#active;
    const examples = active.map((run) => run.evaluationDue);
    if (examples.every((rows) => rows === undefined)) return true;
    const started = performance.now();
    const evaluations = await this.#joined().evaluate(examples, this.#options.signal);
    if (evaluations === undefined) return false;
    const seconds = (performance.now() - started) / 1000;
    await this.#each(async (run) => {
      const evaluation = evaluations[active.indexOf(run)];
      if (evaluation) await run.finishEvaluation(evaluation, seconds);
    });
    return true;
  }

  /** Something for each run that is going on; one that fails at it has ended, the others have not. */
  async #each(work: (run: Run) => unknown): Promise<void> {
    for (const run of this.#active) {
      try {
        await work(run);
      } catch (error) {
        this.#close(run, { status: "rejected", reason: asUnwritable(run.path, withCheckpoint(error, run.path)) });
      }
    }
  }

  async #end(run: Run, stoppedBecause: TrainingResult["stoppedBecause"]): Promise<void> {
    this.#close(run, { status: "fulfilled", value: await run.end(stoppedBecause) });
  }

  #close(run: Run, result: PromiseSettledResult<TrainingResult>): void {
    this.#results.set(run, result);
    run[Symbol.dispose]();
    this.#directories[this.#runs.indexOf(run)]![Symbol.dispose]();
  }

  /** The sessions over the adapters as they are now. */
  #joined(): JointTrainer {
    const trainers = this.#active.map((run) => run.trainer);
    const same = this.#joint?.trainers.length === trainers.length;
    if (!same || this.#joint?.trainers.some((trainer, i) => trainer !== trainers[i])) this.#release();
    this.#joint ??= new JointTrainer(trainers);
    return this.#joint;
  }

  #release(): void {
    this.#joint?.[Symbol.dispose]();
    this.#joint = undefined;
  }

  #optimizer(options: AdamWOptions, device: DeviceName): AdamW {
    const key = JSON.stringify(options);
    const known = this.#optimizers.get(key) ?? new AdamW(options, device);
    this.#optimizers.set(key, known);
    return known;
  }

  [Symbol.dispose](): void {
    this.#release();
    for (const run of this.#runs) run[Symbol.dispose]();
    for (const directory of this.#directories) directory[Symbol.dispose]();
    for (const optimizer of this.#optimizers.values()) optimizer[Symbol.dispose]();
  }
}
