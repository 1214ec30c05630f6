/** @file One optimizer step, whatever its batch comes from: accumulate gradients, clip, update; and the bi-level pair of steps. */
import { deriveSeed } from "../base/index.ts";
import type { Adapter, TrainingState } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Tensor } from "../runtime/index.ts";
import { Collated, countTokens, microBatches, supervisedTokens } from "./batches.ts";
import type { Example } from "./data.ts";
import { TrainingError } from "./errors.ts";
import { type Evaluation, EvaluationSession } from "./evaluate.ts";
import { addActive, GradientSession, type PassResult, type SessionTuning } from "./gradients.ts";
import type { StepLosses } from "./metrics.ts";
import { AdamW, type AdamWOptions, type Group, type OptimizerGroup } from "./optimizer.ts";
import { PackedBatch, packedBatches } from "./packing.ts";

export interface TrainerOptions extends AdamWOptions {
  /** Sequences that are in memory at once. */
  readonly microBatchSize: number;
  /** Tokens; padding never goes beyond it. */
  readonly maxLength: number;
  /** Θ is stepped on dev batches, apart from Ω. Without effect for methods that have no Θ. */
  readonly bilevel: boolean;
  /** Of the noise that some methods are trained with. */
  readonly seed?: number;
  /** Several sequences share a row; `microBatchSize` counts rows. Default: false. */
  readonly packing?: boolean;
  readonly tuning?: SessionTuning;
}

export interface StepInput {
  readonly lr: number;
  /** Batch and learning rate of the step on Θ; needed where `Trainer.bilevel` is true. */
  readonly activation?: { readonly batch: readonly Example[]; readonly lr: number };
  /** Aborting leaves the step undone, unless Ω has been updated already. */
  readonly signal?: AbortSignal | undefined;
  /** Share of the run's updates that are done, for methods whose training changes with it; default: 1. */
  readonly progress?: number | undefined;
  /** What messages call the step; default: by the number of updates. */
  readonly number?: number;
}

export interface StepOutcome {
  readonly losses: StepLosses;
  readonly activation?: StepLosses;
  /** Routed methods: how often each expert was active on the training batch, [layers][experts]. */
  readonly active?: readonly (readonly number[])[];
  readonly tokens: number;
  readonly supervisedTokens: number;
}

/** Trains one adapter in place. Backbone and adapter belong to the caller and must outlive it. */
export class Trainer implements Disposable {
  readonly backbone: Backbone;
  readonly adapter: Adapter;
  /** Whether each step takes a dev batch for Θ. */
  readonly bilevel: boolean;
  /** The flat buffers of each group. */
  readonly groups: ReadonlyMap<Group, OptimizerGroup>;
  /** Updates done, by group. */
  readonly updates: Map<Group, number>;
  /** What the method keeps and does beside the optimizer, if it does (AdaLoRA's rank allocation). */
  readonly methodState: TrainingState | undefined;
  readonly #options: TrainerOptions;
  readonly #gradients: GradientSession;
  readonly #optimizer: AdamW;
  #evaluation: EvaluationSession | undefined;
  #closed = false;

  constructor(backbone: Backbone, adapter: Adapter, options: TrainerOptions) {
    this.backbone = backbone;
    this.adapter = adapter;
    this.#options = options;
    this.#gradients = new GradientSession(backbone, adapter, options.tuning, options.packing);
    this.#optimizer = new AdamW(options);
    const groups = new Map<Group, OptimizerGroup>();
    for (const [group, gradient] of this.#gradients.accumulated) {
      const moment = (): Tensor => Tensor.allocate("float32", gradient.shape);
      groups.set(group, { parameter: adapter.flat(group)!, gradient, first: moment(), second: moment() });
    }
    this.groups = groups;
    this.updates = new Map([...groups.keys()].map((group) => [group, 0]));
    this.bilevel = options.bilevel && groups.has("activation") && groups.has("weights");
    const weights = groups.get("weights");
    this.methodState =
      weights &&
      adapter.method.trainingState?.({
        config: adapter.config,
        backbone: backbone.config,
        parameters: weights.parameter,
        gradients: weights.gradient,
        offsets: adapter.offsets("weights"),
      });
  }

  /** What a checkpoint holds beside the adapter, by name: both moments of each group, and what the method keeps. */
  get tensors(): ReadonlyMap<string, Tensor> {
    const tensors = new Map<string, Tensor>();
    for (const [group, { first, second }] of this.groups) {
      tensors.set(`${group}.exp_avg`, first).set(`${group}.exp_avg_sq`, second);
    }
    for (const [name, tensor] of this.methodState?.tensors ?? []) tensors.set(`method.${name}`, tensor);
    return tensors;
  }

  /**
   * One step on Ω (or on everything) with `batch`; where `bilevel`, then one on Θ with the dev batch, through the
   * updated Ω (appendix A of the paper). Gradients are those of the mean over all supervised tokens of a batch.
   * @returns undefined when the signal was aborted; parameters, moments and counts are then as before
   * @throws TrainingError TRAINING_NOT_FINITE; what was to be updated is then as before
   */
  async step(batch: readonly Example[], input: StepInput): Promise<StepOutcome | undefined> {
    this.#requireOpen();
    const first: readonly Group[] = this.bilevel ? ["weights"] : [...this.groups.keys()];
    if (this.bilevel && !input.activation) throw new TypeError("a bi-level step needs a dev batch");
    const done = await this.#update(first, batch, input.lr, input);
    if (done === undefined) return undefined;
    const { losses, active } = done;
    const outcome = {
      losses,
      ...(active === undefined ? {} : { active }),
      tokens: countTokens(batch),
      supervisedTokens: supervisedTokens(batch),
    };
    if (!this.bilevel || !input.activation) return outcome;
    const dev = input.activation.batch;
    const { number, progress } = input;
    const second = (await this.#update(["activation"], dev, input.activation.lr, { number, progress }))!;
    return { ...outcome, activation: second.losses, tokens: outcome.tokens + countTokens(dev) };
  }

  /** Perplexity on `examples`, without any update; undefined when the signal was aborted. */
  async evaluate(examples: readonly Example[], signal?: AbortSignal): Promise<Evaluation | undefined> {
    this.#requireOpen();
    const { microBatchSize, maxLength, tuning } = this.#options;
    const { profile: _, ...rest } = tuning ?? {};
    this.#evaluation ??= new EvaluationSession(this.backbone, this.adapter, rest);
    return this.#evaluation.evaluate(examples, { microBatchSize, maxLength, signal });
  }

  async #update(
    names: readonly Group[],
    batch: readonly Example[],
    lr: number,
    { signal, number, progress = 1 }: Pick<StepInput, "signal" | "progress"> & { number?: number | undefined },
  ): Promise<{ losses: StepLosses; active: number[][] | undefined } | undefined> {
    this.#gradients.clear(); // what an aborted or failed step, or the other step of a pair, left behind
    const tokens = supervisedTokens(batch);
    const step = this.updates.get(names[0]!)! + 1;
    this.#gradients.progress = progress;
    this.#gradients.draw(deriveSeed(this.#options.seed ?? 0, `noise/${names[0]}/${step}`));
    const passes: PassResult[] = [];
    const bad: Example[] = []; // of micro-batches whose own loss is not finite
    const auxiliary: Record<string, number> = {};
    let crossEntropy = 0;
    const { packing = false, microBatchSize, maxLength } = this.#options;
    const parts = packing
      ? packedBatches(batch, microBatchSize, maxLength).map((rows) => ({ part: rows.flat(), rows }))
      : microBatches(batch, microBatchSize).map((part) => ({ part, rows: undefined }));
    for (const { part, rows } of parts) {
      if (signal?.aborted) return undefined;
      using collated = rows ? new PackedBatch(rows, maxLength) : new Collated(part, maxLength);
      const share = part.length / batch.length;
      const pass = await this.#gradients.accumulate(collated, 1 / tokens, share);
      passes.push(pass);
      if (![pass.crossEntropy, ...pass.auxiliary.values()].every(Number.isFinite)) bad.push(...part);
      crossEntropy += pass.crossEntropy;
      for (const [name, value] of pass.auxiliary) auxiliary[name] = (auxiliary[name] ?? 0) + value * share;
    }
    const lmLoss = crossEntropy / tokens;
    const loss = Object.values(auxiliary).reduce((a, b) => a + b, lmLoss);
    if (!Number.isFinite(loss)) throw notFinite(number ?? step, "the loss", loss, names, bad);
    const groups = names.map((name) => this.groups.get(name)!);
    const norm = await this.#optimizer.norm(groups);
    if (!Number.isFinite(norm)) throw notFinite(number ?? step, "the norm of the gradients", norm, names, batch);
    for (const [i, group] of groups.entries()) {
      const updates = this.updates.get(names[i]!)! + 1;
      await this.#optimizer.update(group, norm, lr, updates);
      this.updates.set(names[i]!, updates);
    }
    if (names.includes("weights")) {
      await this.methodState?.afterUpdate(this.updates.get("weights")! - 1, this.#optimizer.clip(norm));
    }
    return { losses: { loss, lm_loss: lmLoss, auxiliary, lr, grad_norm: norm }, active: addActive(passes) };
  }

  #requireOpen(): void {
    if (this.#closed) throw new TrainingError("TRAINER_CLOSED", "the trainer was disposed; make a new one");
  }

  /** Stops profiling of the gradient session (see `tuning.profile`) and gives the name of the file. */
  endProfiling(): string {
    return this.#gradients.endProfiling();
  }

  /** Releases sessions, gradients and moments; not the adapter. */
  [Symbol.dispose](): void {
    this.#closed = true;
    this.methodState?.[Symbol.dispose]();
    this.#gradients[Symbol.dispose]();
    this.#evaluation?.[Symbol.dispose]();
    this.#optimizer[Symbol.dispose]();
    for (const { first, second } of this.groups.values()) {
      first.dispose();
      second.dispose();
    }
  }
}

/** @param rows those that it may be due to */
function notFinite(
  step: number,
  what: string,
  value: number,
  names: readonly Group[],
  rows: readonly Example[],
): TrainingError {
  const where = names.length === 1 && names[0] === "activation" ? " on the dev batch" : "";
  return new TrainingError(
    "TRAINING_NOT_FINITE",
    `step ${step}: ${what}${where} is ${value}; nothing was updated${rowsOf(rows)}. Lower the learning rate, or look for damaged weights`,
    { exitCode: 1 },
  );
}

/** `; rows: data/train.jsonl 3, 17; other.jsonl 5`, as far as the examples come from files. */
function rowsOf(examples: readonly Example[]): string {
  const byFile = new Map<string, number[]>();
  for (const { origin } of examples) {
    if (origin) byFile.set(origin.file, [...(byFile.get(origin.file) ?? []), origin.row]);
  }
  const files = [...byFile].map(([file, rows]) => `${file} ${rows.sort((a, b) => a - b).join(", ")}`);
  return files.length ? `; rows: ${files.join("; ")}` : "";
}
