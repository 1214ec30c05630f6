/** @file A training run from its config: data, steps, evaluations, early stopping, checkpoints, and going on from one. */
import { deriveSeed, InputError } from "../base/index.ts";
import { Adapter, type Method, methodOf } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { batchOfStep, type ExampleOrder, Order, stepsPerEpoch } from "./batches.ts";
import {
  type CheckpointState,
  checkpointPath,
  loadTensors,
  readCheckpointState,
  requireSameRun,
  saveCheckpoint,
  withCheckpoint,
} from "./checkpoint.ts";
import {
  configDigest,
  decisiveFields,
  defaultFields,
  resolveTrainingConfig,
  type TrainingConfig,
  type TrainingConfigInput,
} from "./config.ts";
import { countSources, type DataSet, type Example, loadData, trainOrder } from "./data.ts";
import type { TrainingResult, TrainOptions } from "./events.ts";
import { shares } from "./gradients.ts";
import { type EvaluationMetrics, MetricsLog, type StepMetrics } from "./metrics.ts";
import { requirePackable } from "./packing.ts";
import { asUnwritable, bestDirectory, metricsPath, RunDirectory } from "./run-directory.ts";
import { scheduleFactor, warmupSteps } from "./schedule.ts";
import { EventLog } from "./tensorboard.ts";
import { type StepOutcome, Trainer } from "./trainer.ts";

/**
 * Trains an adapter as `config` says and writes `output_dir` (config.json, metrics.jsonl, checkpoints/, best/).
 * Equal config, data and machine give equal bytes, also when the run was interrupted and resumed in between.
 * @throws InputError for a bad config or bad files; TrainingError
 */
export async function train(config: TrainingConfigInput, options: TrainOptions = {}): Promise<TrainingResult> {
  const given = resolveTrainingConfig(config);
  const method = methodOf(given.method);
  using loaded =
    options.backbone === undefined ? await Backbone.load(given.model, { weights: given.weights }) : undefined;
  const backbone = options.backbone ?? loaded!;
  const settings = { base_model_name_or_path: given.model, ...given.adapter };
  const preview = method.newConfig(settings, backbone.config); // refuses bad settings before the data is read
  if (given.packing) requirePackable(method);
  const data = await loadData(backbone.tokenizer, {
    ...given.data,
    maxLength: Math.min(given.max_length, contextOf(backbone, method, preview)),
    seed: given.seed,
    signal: options.signal,
  });
  requireKnownTokens(data, backbone.config.vocabSize);
  const run = { totalSteps: plannedSteps(given, data.train.length) };
  const seed = deriveSeed(given.seed, "init");
  using adapter = Adapter.create(method, settings, backbone.config, seed, backbone, run);
  const resolved: ResolvedConfig = {
    ...given,
    activation_lr: given.activation_lr ?? method.activationLr ?? ACTIVATION_LR,
    adapter: adapter.config as Record<string, unknown>,
  };
  using directory = RunDirectory.open(given.output_dir, options.resume ?? false);
  try {
    return await new Run(resolved, data, backbone, adapter, directory, options).run();
  } catch (error) {
    throw asUnwritable(directory.path, error);
  }
}

/** The paper's learning rate of learned activation functions. */
const ACTIVATION_LR = 1e-6;

type ResolvedConfig = TrainingConfig & { readonly activation_lr: number };

/** Positions that are left for the tokens of a sequence. */
function contextOf({ config }: Backbone, { prefixLength }: Method, adapterConfig: unknown): number {
  return config.maxPositions - (prefixLength?.(adapterConfig) ?? 0);
}

function plannedSteps({ epochs, batch_size, max_steps }: TrainingConfig, rows: number): number {
  return Math.min(Math.ceil(epochs * stepsPerEpoch(rows, batch_size)), max_steps ?? Number.POSITIVE_INFINITY);
}

function countParameters({ specs }: Adapter): number {
  return specs.reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);
}

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

const NEW_STATE = {
  format: 1,
  step: 0,
  stage_start: 0,
  updates: {},
  best: null,
  evaluations_without_improvement: 0,
  last_evaluation: -1,
  metrics_bytes: 0,
  seconds: 0,
} as const;

/** One process's part of a run. */
class Run {
  readonly #config: ResolvedConfig;
  readonly #data: DataSet;
  readonly #backbone: Backbone;
  readonly #directory: RunDirectory;
  readonly #options: TrainOptions;
  readonly #identity: ReadonlyMap<string, string>;
  readonly #perEpoch: number;
  readonly #totalSteps: number;
  readonly #trainOrder: ExampleOrder;
  readonly #devOrder: Order;
  readonly #started = performance.now();
  /** The adapter that is trained now, and what trains it: others once it has found its structure. */
  #adapter: Adapter;
  #current: Trainer | undefined;
  /** All that changes, as the next checkpoint will hold it. */
  #state: CheckpointState;
  /** Seconds of earlier processes. */
  #secondsBefore = 0;
  #stepsHere = 0;
  /** Whether something has happened since the newest checkpoint. */
  #changed = true;

  constructor(
    config: ResolvedConfig,
    data: DataSet,
    backbone: Backbone,
    adapter: Adapter,
    directory: RunDirectory,
    options: TrainOptions,
  ) {
    this.#config = config;
    this.#data = data;
    this.#backbone = backbone;
    this.#adapter = adapter;
    this.#directory = directory;
    this.#options = options;
    this.#identity = new Map([
      ...decisiveFields(config),
      ["backbone digest", backbone.digest],
      ["data digest", data.digest],
    ]);
    this.#perEpoch = stepsPerEpoch(data.train.length, config.batch_size);
    this.#totalSteps = plannedSteps(config, data.train.length);
    this.#trainOrder = trainOrder(data, config.seed);
    this.#devOrder = new Order(data.dev.length, config.seed, "dev order");
    this.#state = {
      ...NEW_STATE,
      identity: Object.fromEntries(this.#identity),
      identity_digest: configDigest(this.#identity),
    };
  }

  async run(): Promise<TrainingResult> {
    const { checkpoint, path } = this.#directory;
    // Everything that can be refused is refused before anything is written.
    const from = checkpoint === undefined ? undefined : checkpointPath(path, checkpoint);
    if (from !== undefined) {
      const state = readCheckpointState(from);
      const unset = this.#adapter.method.newConfig({}, this.#backbone.config);
      requireSameRun(from, state, this.#identity, defaultFields(this.#config, unset));
      this.#state = state;
      this.#secondsBefore = state.seconds;
      this.#changed = false;
      this.#adapter.dispose();
      this.#adapter = Adapter.load(from, this.#backbone.config, { allowIdentity: true });
    }
    try {
      if (from !== undefined) {
        loadTensors(from, this.#trainer.tensors);
        const { groups, updates } = this.#trainer;
        for (const group of groups.keys()) updates.set(group, this.#state.updates[group] ?? 0);
      }
      using log = MetricsLog.open(metricsPath(path), this.#state.metrics_bytes);
      if (this.#config.tensorboard) log.mirrorTo(EventLog.open(path, this.#config));
      this.#directory.writeConfig(this.#config);
      this.#announce();
      const stoppedBecause = await this.#loop(log).catch((error: unknown) => {
        throw withCheckpoint(error, path);
      });
      if (this.#data.dev.length === 0 && stoppedBecause === "finished") await this.#adapter.save(bestDirectory(path));
      if (this.#changed) await this.#checkpoint(log);
      return this.#result(stoppedBecause);
    } finally {
      this.#current?.[Symbol.dispose]();
      this.#adapter.dispose();
    }
  }

  get #trainer(): Trainer {
    const { betas, eps, weight_decay, max_grad_norm, micro_batch_size, max_length, bilevel, packing, seed } =
      this.#config;
    this.#current ??= new Trainer(this.#backbone, this.#adapter, {
      betas,
      eps,
      weightDecay: weight_decay,
      maxGradNorm: max_grad_norm,
      microBatchSize: micro_batch_size,
      maxLength: Math.min(max_length, this.#context),
      bilevel: bilevel && this.#data.dev.length > 0,
      packing,
      seed,
    });
    return this.#current;
  }

  /** Whether the adapter is still searching for its structure. */
  get #interim(): boolean {
    return this.#adapter.method.interim?.(this.#adapter.config) ?? false;
  }

  /** Goes on with what the adapter becomes, if its structure changes now. */
  #succeed(): void {
    const { method, config, backbone } = this.#adapter;
    const { step } = this.#state;
    const values = (key: string) => this.#adapter.values(key);
    const next = method.successor?.(config, backbone, { step, totalSteps: this.#totalSteps, values });
    if (next === undefined) return;
    const succeeding = this.#adapter.succeededBy(next, deriveSeed(this.#config.seed, `init/${step}`), this.#backbone);
    this.#current?.[Symbol.dispose]();
    this.#current = undefined;
    this.#adapter.dispose();
    this.#adapter = succeeding;
    Object.assign(this.#state, { stage_start: step, updates: {}, best: null, evaluations_without_improvement: 0 });
    this.#options.onProgress?.({ type: "structure", step, trainableParameters: countParameters(succeeding) });
  }

  async #loop(log: MetricsLog): Promise<TrainingResult["stoppedBecause"]> {
    const { eval_every, patience, checkpoint_every } = this.#config;
    const { signal } = this.#options;
    while (true) {
      const { step, last_evaluation } = this.#state;
      const finished = step >= this.#totalSteps;
      const evaluationDue = this.#data.dev.length > 0 && step > 0 && (step % eval_every === 0 || finished);
      if (evaluationDue && last_evaluation !== step && !(await this.#evaluate(log))) return "interrupted";
      const checkpointDue = step > 0 && step % checkpoint_every === 0;
      if (checkpointDue && this.#changed) await this.#checkpoint(log);
      if (finished) return "finished";
      if (patience > 0 && this.#state.evaluations_without_improvement >= patience) return "early_stopping";
      if (signal?.aborted || !(await this.#step(log))) return "interrupted";
    }
  }

  /** False when it was interrupted; the step is then undone. */
  async #step(log: MetricsLog): Promise<boolean> {
    const { batch_size, lr, activation_lr, schedule, warmup_ratio } = this.#config;
    const { step, stage_start } = this.#state;
    const stage = this.#totalSteps - stage_start;
    const factor = scheduleFactor(schedule, step - stage_start, stage, warmupSteps(stage, warmup_ratio));
    const trainer = this.#trainer;
    const started = performance.now();
    const batch = batchOfStep(this.#data.train, this.#trainOrder, step, batch_size);
    const outcome = await trainer.step(batch, {
      lr: lr * factor,
      number: step + 1,
      progress: step / this.#totalSteps,
      signal: this.#options.signal,
      ...(trainer.bilevel && {
        activation: {
          batch: batchOfStep(this.#data.dev, this.#devOrder, trainer.updates.get("activation")!, batch_size),
          lr: activation_lr * factor,
        },
      }),
    });
    if (outcome === undefined) return false;
    this.#changed = true;
    this.#state.step++;
    this.#stepsHere++;
    this.#state.updates = Object.fromEntries(trainer.updates);
    const metrics = this.#stepMetrics(outcome, batch, (performance.now() - started) / 1000);
    log.append(metrics);
    this.#succeed();
    const perStep = (performance.now() - this.#started) / 1000 / this.#stepsHere;
    const secondsLeft = perStep * (this.#totalSteps - this.#state.step);
    this.#options.onProgress?.({ type: "step", metrics, totalSteps: this.#totalSteps, secondsLeft });
    return true;
  }

  #stepMetrics(outcome: StepOutcome, batch: readonly Example[], seconds: number): StepMetrics {
    const sources = countSources(this.#data, batch);
    const { losses, activation, active, tokens, supervisedTokens } = outcome;
    return {
      type: "step",
      step: this.#state.step,
      epoch: this.#epoch(),
      ...losses,
      ...(activation && { activation }),
      ...(active && { expert_shares: shares(active).map((layer) => layer.map((x) => Number(x.toFixed(4)))) }),
      ...(sources && { sources }),
      tokens,
      supervised_tokens: supervisedTokens,
      seconds,
      tokens_per_second: tokens / seconds,
    };
  }

  /** False when it was interrupted; it is then still due. */
  async #evaluate(log: MetricsLog): Promise<boolean> {
    const started = performance.now();
    const evaluation = await this.#trainer.evaluate(this.#data.dev, this.#options.signal);
    if (evaluation === undefined) return false;
    const { loss, perplexity, routing } = evaluation;
    const { step, best } = this.#state;
    const better = !this.#interim && (best === null ? Number.isFinite(loss) : loss < best.dev_loss);
    if (better) {
      await this.#adapter.save(bestDirectory(this.#directory.path));
      this.#state.best = { step, dev_loss: loss, dev_perplexity: perplexity };
    }
    const worse = better || this.#interim ? 0 : this.#state.evaluations_without_improvement + 1;
    this.#state.evaluations_without_improvement = worse;
    this.#state.last_evaluation = step;
    this.#changed = true;
    const metrics: EvaluationMetrics = {
      type: "evaluation",
      step,
      epoch: this.#epoch(),
      dev_loss: loss,
      dev_perplexity: perplexity,
      best: better,
      ...(routing && { routing }),
      seconds: (performance.now() - started) / 1000,
    };
    log.append(metrics);
    this.#options.onProgress?.({ type: "evaluation", metrics });
    return true;
  }

  async #checkpoint(log: MetricsLog): Promise<void> {
    log.sync();
    this.#state.metrics_bytes = log.bytes;
    this.#state.seconds = this.#seconds();
    const { path } = this.#directory;
    const { keep_checkpoints } = this.#config;
    const directory = await saveCheckpoint(path, this.#adapter, this.#trainer.tensors, this.#state, keep_checkpoints);
    this.#changed = false;
    this.#options.onProgress?.({ type: "checkpoint", step: this.#state.step, directory });
  }

  get #context(): number {
    return contextOf(this.#backbone, this.#adapter.method, this.#adapter.config);
  }

  #epoch(): number {
    return Number((this.#state.step / this.#perEpoch).toFixed(4));
  }

  #seconds(): number {
    return this.#secondsBefore + (performance.now() - this.#started) / 1000;
  }

  #announce(): void {
    const { onProgress } = this.#options;
    if (!onProgress) return;
    const { max_length, bilevel } = this.#config;
    for (const message of this.#data.warnings) onProgress({ type: "warning", message });
    if (max_length > this.#context) {
      const message = `max_length ${max_length} is more than the backbone's context; sequences end at ${this.#context}`;
      onProgress({ type: "warning", message });
    }
    if (bilevel && this.#data.dev.length === 0 && this.#trainer.groups.has("activation")) {
      onProgress({ type: "warning", message: "no dev rows: learned activations are trained with everything else" });
    }
    onProgress({
      type: "start",
      directory: this.#directory.path,
      trainExamples: this.#data.train.length,
      devExamples: this.#data.dev.length,
      trainableParameters: countParameters(this.#adapter),
      totalSteps: this.#totalSteps,
      firstStep: this.#state.step,
    });
  }

  #result(stoppedBecause: TrainingResult["stoppedBecause"]): TrainingResult {
    const { path } = this.#directory;
    const { step, best } = this.#state;
    const saved = best !== null || (this.#data.dev.length === 0 && stoppedBecause === "finished");
    return {
      directory: path,
      bestDirectory: saved ? bestDirectory(path) : undefined,
      best: best ? { step: best.step, devLoss: best.dev_loss, devPerplexity: best.dev_perplexity } : undefined,
      steps: step,
      totalSteps: this.#totalSteps,
      stoppedBecause,
      seconds: this.#seconds(),
    };
  }
}
