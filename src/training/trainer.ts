/** @file What training an adapter takes beside the passes through the backbone: its gradients, moments, counts and updates. */
import type { Recomputation } from "../graph/index.ts";
import type { Adapter, TrainingState } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { type DeviceName, Tensor } from "../runtime/index.ts";
import type { Example } from "./data.ts";
import { DeviceState } from "./device.ts";
import { TrainingError } from "./errors.ts";
import type { Evaluation } from "./evaluate.ts";
import { Accumulated, type SessionTuning } from "./gradients.ts";
import { JointTrainer } from "./joint.ts";
import type { StepLosses } from "./metrics.ts";
import { AdamW, type AdamWOptions, type Group, type OptimizerGroup } from "./optimizer.ts";
import { requirePackable } from "./packing.ts";

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
  /** What the backward pass computes again instead of keeping it; the numbers are the same. Default: light. */
  readonly recompute?: Recomputation;
  /**
   * Tokens that a pass usually has: whether it pays to let those of several adapters pass together. Default: it does.
   */
  readonly passTokens?: number;
  /** Where the passes and the optimizer run, and what they work on is. Default: cpu. */
  readonly device?: DeviceName | undefined;
  readonly tuning?: SessionTuning;
  /** One made with the same options and for the same device, to be shared with other trainers; it stays the caller's. Default: one of its own. */
  readonly optimizer?: AdamW;
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

/**
 * Trains one adapter in place; several can be stepped together by a `JointTrainer`. Backbone and adapter belong to the
 * caller and must outlive it.
 */
export class Trainer implements Disposable {
  readonly backbone: Backbone;
  readonly adapter: Adapter;
  readonly options: TrainerOptions;
  /** Whether each step takes a dev batch for Θ. */
  readonly bilevel: boolean;
  /** The flat buffers of each group; on another device than the CPU they hold what `pull` has brought. */
  readonly groups: ReadonlyMap<Group, OptimizerGroup>;
  readonly accumulated: Accumulated;
  /** Updates done, by group. */
  readonly updates: Map<Group, number>;
  /** What the method keeps and does beside the optimizer, if it does (AdaLoRA's rank allocation). */
  readonly methodState: TrainingState | undefined;
  readonly #optimizer: AdamW;
  /** Where it is not on the CPU. */
  readonly #state: DeviceState | undefined;
  /** For steps of this adapter alone. */
  #alone: JointTrainer | undefined;
  #closed = false;

  constructor(backbone: Backbone, adapter: Adapter, options: TrainerOptions) {
    if (options.packing) requirePackable(adapter.method);
    this.backbone = backbone;
    this.adapter = adapter;
    const { device = "cpu" } = options;
    this.options = { recompute: "light", ...options, tuning: { ...options.tuning, device } };
    this.#optimizer = options.optimizer ?? new AdamW(options, device);
    this.accumulated = new Accumulated(adapter, device);
    const groups = new Map<Group, OptimizerGroup>();
    for (const [group, gradient] of this.accumulated.flat) {
      const moment = (): Tensor => Tensor.allocate("float32", gradient.shape);
      groups.set(group, { parameter: adapter.flat(group)!, gradient, first: moment(), second: moment() });
    }
    this.groups = groups;
    this.#state = device === "cpu" ? undefined : new DeviceState(this.accumulated, groups);
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
    const results = await this.#joint.step([{ ...input, batch }], input.signal);
    const [result] = results ?? [];
    if (result?.status === "rejected") throw result.reason;
    return result?.value;
  }

  /** Perplexity on `examples`, without any update; undefined when the signal was aborted. */
  async evaluate(examples: readonly Example[], signal?: AbortSignal): Promise<Evaluation | undefined> {
    return (await this.#joint.evaluate([examples], signal))?.[0];
  }

  /**
   * Steps groups with the gradients that have been accumulated; `Update` is who calls it.
   * @param refuse makes the error for a norm that is not finite; nothing is then updated
   * @returns the global norm of the gradients, before clipping
   */
  async update(names: readonly Group[], lr: number, refuse: (norm: number) => TrainingError): Promise<number> {
    const groups = names.map((name) => this.#state?.parts(name) ?? [this.groups.get(name)!]);
    const norm = await this.#optimizer.norm(groups.flat());
    if (!Number.isFinite(norm)) throw refuse(norm);
    for (const [i, parts] of groups.entries()) {
      const updates = this.updates.get(names[i]!)! + 1;
      await this.#optimizer.update(parts, norm, lr, updates);
      this.updates.set(names[i]!, updates);
      this.#state?.changed();
    }
    if (this.methodState && names.includes("weights")) {
      // It works on the flat buffers.
      this.#state?.pull();
      this.#state?.pullGradients();
      await this.methodState.afterUpdate(this.updates.get("weights")! - 1, this.#optimizer.clip(norm));
      this.#state?.push();
    }
    return norm;
  }

  /** Brings parameters and moments to the adapter's tensors and to `tensors`, where steps are not made on these. */
  pull(): void {
    this.#state?.pull();
  }

  /** Takes them from there, after they have been changed. */
  push(): void {
    this.#state?.push();
  }

  get #joint(): JointTrainer {
    if (this.#closed) throw new TrainingError("TRAINER_CLOSED", "the trainer was disposed; make a new one");
    this.#alone ??= new JointTrainer([this]);
    return this.#alone;
  }

  /** Stops profiling of the gradient session (see `tuning.profile`) and gives the name of the file. */
  endProfiling(): string {
    return this.#joint.endProfiling();
  }

  /** Releases gradients and moments, and the sessions of steps alone; not the adapter. */
  [Symbol.dispose](): void {
    this.#closed = true;
    this.#alone?.[Symbol.dispose]();
    this.methodState?.[Symbol.dispose]();
    this.#state?.[Symbol.dispose]();
    this.accumulated[Symbol.dispose]();
    if (this.options.optimizer === undefined) this.#optimizer[Symbol.dispose]();
    for (const { first, second } of this.groups.values()) {
      first.dispose();
      second.dispose();
    }
  }
}
