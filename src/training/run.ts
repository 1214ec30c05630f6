/** @file One run from its config: which rows each step takes, evaluations, early stopping, checkpoints, going on from one. */
import { deriveSeed } from "../base/index.ts";
import { Adapter, type Method } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { batchOfStep, countTokens, type ExampleOrder, Order, stepsPerEpoch } from "./batches.ts";
import {
  adapterFieldsOf,
  type CheckpointState,
  checkpointPath,
  loadTensors,
  readCheckpointState,
  requireSameRun,
  requireUndamaged,
  saveCheckpoint,
} from "./checkpoint.ts";
import { configDigest, decisiveFields, defaultFields, type TrainingConfig } from "./config.ts";
import { countSources, type DataSet, type Example, trainOrder } from "./data.ts";
import type { Evaluation } from "./evaluate.ts";
import type { TrainingEvent, TrainingResult } from "./events.ts";
import { shares } from "./gradients.ts";
import type { JointInput } from "./joint.ts";
import { type EvaluationMetrics, MetricsLog, type StepMetrics } from "./metrics.ts";
import type { AdamW, AdamWOptions } from "./optimizer.ts";
import { bestDirectory, metricsPath, type RunDirectory } from "./run-directory.ts";
import { scheduleFactor, warmupSteps } from "./schedule.ts";
import { EventLog } from "./tensorboard.ts";
import { type StepOutcome, Trainer } from "./trainer.ts";

export type ResolvedConfig = TrainingConfig & {
  readonly activation_lr: number;
  readonly weights: NonNullable<TrainingConfig["weights"]>;
};

/** Positions that are left for the tokens of a sequence. */
export function contextOf({ config }: Backbone, { prefixLength }: Method, adapterConfig: unknown): number {
  return config.maxPositions - (prefixLength?.(adapterConfig) ?? 0);
}

export function plannedSteps({ epochs, batch_size, max_steps }: TrainingConfig, rows: number): number {
  return Math.min(Math.ceil(epochs * stepsPerEpoch(rows, batch_size)), max_steps ?? Number.POSITIVE_INFINITY);
}

/** Padding is not counted; packed rows are as long as the longest sequence at least. */
function passTokens({ micro_batch_size, batch_size, packing }: TrainingConfig, examples: readonly Example[]): number {
  const longest = examples.reduce((most, { tokens }) => Math.max(most, tokens.length), 0);
  const row = packing ? longest : countTokens(examples) / examples.length;
  return Math.min(micro_batch_size, batch_size) * row;
}

function countParameters({ specs }: Adapter): number {
  return specs.reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);
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

/** What a run has of those that it is trained together with. */
export interface RunHost {
  /** Called before the trainer goes: nothing may hold its buffers any longer. */
  release(): void;
  /** The optimizer for such options; several runs may have one. */
  optimizer(options: AdamWOptions): AdamW;
  readonly onProgress?: ((event: TrainingEvent) => void) | undefined;
}

/**
 * One process's part of a run: when it evaluates, saves and ends, and what it writes. The steps themselves are taken by
 * whoever has the backbone (`trainTogether`), which asks for their inputs here and brings back what came of them.
 */
export class Run implements Disposable {
  readonly #config: ResolvedConfig;
  readonly #data: DataSet;
  readonly #backbone: Backbone;
  readonly #directory: RunDirectory;
  readonly #host: RunHost;
  readonly #identity: ReadonlyMap<string, string>;
  readonly #perEpoch: number;
  readonly #totalSteps: number;
  readonly #trainOrder: ExampleOrder;
  readonly #devOrder: Order;
  readonly #started = performance.now();
  /** The adapter that is trained now, and what trains it: others once it has found its structure. */
  #adapter: Adapter;
  #current: Trainer | undefined;
  #log: MetricsLog | undefined;
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
    host: RunHost,
  ) {
    this.#config = config;
    this.#data = data;
    this.#backbone = backbone;
    this.#adapter = adapter;
    this.#directory = directory;
    this.#host = host;
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

  /** Takes up the newest checkpoint, if there is one. All that can be refused is refused here; nothing is written. */
  prepare(): void {
    const { checkpoint, path } = this.#directory;
    if (checkpoint === undefined) return;
    const from = checkpointPath(path, checkpoint);
    const state = readCheckpointState(from);
    const then = adapterFieldsOf(from, this.#adapter.method);
    requireSameRun(from, state, this.#identity, defaultFields(this.#config, then));
    requireUndamaged(from, state);
    this.#state = state;
    this.#secondsBefore = state.seconds;
    this.#changed = false;
    this.#adapter.dispose();
    this.#adapter = Adapter.load(from, this.#backbone.config, { allowIdentity: true });
    loadTensors(from, this.trainer.tensors);
    this.trainer.push();
    const { groups, updates } = this.trainer;
    for (const group of groups.keys()) updates.set(group, this.#state.updates[group] ?? 0);
  }

  /** Writes the config, opens the log and says what is going to happen. */
  start(): void {
    const { path } = this.#directory;
    this.#directory.writeConfig(this.#config); // first: whoever finds the rest asks it how to go on
    this.#log = MetricsLog.open(metricsPath(path), this.#state.metrics_bytes);
    if (this.#config.tensorboard) this.#log.mirrorTo(EventLog.open(path, this.#config));
    this.#announce();
  }

  /** Saves what has happened since the newest checkpoint, and tells the result. Nothing more is to be done then. */
  async end(stoppedBecause: TrainingResult["stoppedBecause"]): Promise<TrainingResult> {
    if (this.#data.dev.length === 0 && stoppedBecause === "finished") {
      this.trainer.pull();
      await this.#adapter.save(bestDirectory(this.path));
    }
    if (this.#changed) await this.#checkpoint();
    return this.#result(stoppedBecause);
  }

  get path(): string {
    return this.#directory.path;
  }

  /** What trains the adapter as it is now. */
  get trainer(): Trainer {
    const { betas, eps, weight_decay, max_grad_norm, micro_batch_size, max_length, bilevel, packing, seed, device } =
      this.#config;
    const adamW = { betas, eps, weightDecay: weight_decay, maxGradNorm: max_grad_norm };
    this.#current ??= new Trainer(this.#backbone, this.#adapter, {
      ...adamW,
      passTokens: passTokens(this.#config, this.#data.train),
      optimizer: this.#host.optimizer(adamW),
      microBatchSize: micro_batch_size,
      maxLength: Math.min(max_length, this.#context),
      bilevel: bilevel && this.#data.dev.length > 0,
      packing,
      recompute: this.#config.activation_checkpointing ? "all" : "light",
      seed,
      device,
    });
    return this.#current;
  }

  /** Whether the adapter is not yet what the run is for. */
  get #interim(): boolean {
    const { method, config } = this.#adapter;
    return method.interim?.(config, this.#state.step / this.#totalSteps) ?? false;
  }

  /** Goes on with what the adapter becomes, if its structure changes now. */
  #succeed(): void {
    const { method, config, backbone } = this.#adapter;
    const { step } = this.#state;
    const values = (key: string) => {
      this.trainer.pull();
      return this.#adapter.values(key);
    };
    const next = method.successor?.(config, backbone, { step, totalSteps: this.#totalSteps, values });
    if (next === undefined) return;
    const succeeding = this.#adapter.succeededBy(next, deriveSeed(this.#config.seed, `init/${step}`), this.#backbone);
    this.#dropTrainer();
    this.#adapter.dispose();
    this.#adapter = succeeding;
    Object.assign(this.#state, { stage_start: step, updates: {}, best: null, evaluations_without_improvement: 0 });
    this.#host.onProgress?.({ type: "structure", step, trainableParameters: countParameters(succeeding) });
  }

  #dropTrainer(): void {
    this.#host.release();
    this.#current?.[Symbol.dispose]();
    this.#current = undefined;
  }

  /** The rows to evaluate on before the next step; undefined when no evaluation is due. */
  get evaluationDue(): readonly Example[] | undefined {
    const { step, last_evaluation } = this.#state;
    const due = step > 0 && (step % this.#config.eval_every === 0 || step >= this.#totalSteps);
    return this.#data.dev.length > 0 && due && last_evaluation !== step ? this.#data.dev : undefined;
  }

  /** Why no further step is to be taken; undefined as long as there is one. */
  get ended(): "finished" | "early_stopping" | undefined {
    const { patience } = this.#config;
    if (this.#state.step >= this.#totalSteps) return "finished";
    return patience > 0 && this.#state.evaluations_without_improvement >= patience ? "early_stopping" : undefined;
  }

  async checkpointIfDue(): Promise<void> {
    const { step } = this.#state;
    if (step > 0 && step % this.#config.checkpoint_every === 0 && this.#changed) await this.#checkpoint();
  }

  /** What the next step takes. */
  nextStep(): JointInput {
    const { batch_size, lr, activation_lr, schedule, warmup_ratio } = this.#config;
    const { step, stage_start } = this.#state;
    const stage = this.#totalSteps - stage_start;
    const factor = scheduleFactor(schedule, step - stage_start, stage, warmupSteps(stage, warmup_ratio));
    const { bilevel, updates } = this.trainer;
    return {
      batch: this.#trainBatch(),
      lr: lr * factor,
      number: step + 1,
      progress: step / this.#totalSteps,
      ...(bilevel && {
        activation: {
          batch: batchOfStep(this.#data.dev, this.#devOrder, updates.get("activation")!, batch_size),
          lr: activation_lr * factor,
        },
      }),
    };
  }

  #trainBatch(): Example[] {
    return batchOfStep(this.#data.train, this.#trainOrder, this.#state.step, this.#config.batch_size);
  }

  /** Records a step. Its adapter may have another structure afterwards. */
  finishStep(outcome: StepOutcome, seconds: number): void {
    const batch = this.#trainBatch();
    this.#changed = true;
    this.#state.step++;
    this.#stepsHere++;
    this.#state.updates = Object.fromEntries(this.trainer.updates);
    const metrics = this.#stepMetrics(outcome, batch, seconds);
    this.#log!.append(metrics);
    this.#succeed();
    const perStep = (performance.now() - this.#started) / 1000 / this.#stepsHere;
    const secondsLeft = perStep * (this.#totalSteps - this.#state.step);
    this.#host.onProgress?.({ type: "step", metrics, totalSteps: this.#totalSteps, secondsLeft });
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

  /** Records an evaluation, and saves the adapter if it is the best so far. */
  async finishEvaluation({ loss, perplexity, routing }: Evaluation, seconds: number): Promise<void> {
    const { step, best } = this.#state;
    const better = !this.#interim && (best === null ? Number.isFinite(loss) : loss < best.dev_loss);
    if (better) {
      this.trainer.pull();
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
      seconds,
    };
    this.#log!.append(metrics);
    this.#host.onProgress?.({ type: "evaluation", metrics });
  }

  async #checkpoint(): Promise<void> {
    const log = this.#log!;
    log.sync();
    this.#state.metrics_bytes = log.bytes;
    this.#state.seconds = this.#seconds();
    const { path } = this.#directory;
    const { keep_checkpoints } = this.#config;
    this.trainer.pull();
    const directory = await saveCheckpoint(path, this.#adapter, this.trainer.tensors, this.#state, keep_checkpoints);
    this.#changed = false;
    this.#host.onProgress?.({ type: "checkpoint", step: this.#state.step, directory });
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
    const { onProgress } = this.#host;
    if (!onProgress) return;
    const { max_length, bilevel } = this.#config;
    for (const message of this.#data.warnings) onProgress({ type: "warning", message });
    if (max_length > this.#context) {
      const message = `max_length ${max_length} is more than the backbone's context; sequences end at ${this.#context}`;
      onProgress({ type: "warning", message });
    }
    if (bilevel && this.#data.dev.length === 0 && this.trainer.groups.has("activation")) {
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

  [Symbol.dispose](): void {
    this.#dropTrainer();
    this.#log?.[Symbol.dispose]();
    this.#adapter.dispose();
  }
}
