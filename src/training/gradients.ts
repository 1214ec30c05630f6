/** @file The session that runs forward and backward over a micro-batch and adds its gradients to flat buffers. */
import { Random } from "../base/index.ts";
import { add, exportOnnx, Graph, grad, mul } from "../graph/index.ts";
import { ADAPTER_INPUT, type Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { type Binding, Session, type SessionOptions, Tensor } from "../runtime/index.ts";
import type { BatchInputs } from "./batches.ts";
import { buildObjective } from "./objective.ts";
import { GROUPS, type Group } from "./optimizer.ts";
import { requirePackable } from "./packing.ts";

/** What one pass over a micro-batch gave, besides the gradients. */
export interface PassResult {
  /** Sum of the negative log-likelihoods of its supervised tokens, nats. */
  readonly crossEntropy: number;
  /** The method's own losses of its prompts, already weighted, by name. */
  readonly auxiliary: ReadonlyMap<string, number>;
  /** Routed methods: how often each expert was active, [layers][experts]. */
  readonly active: readonly (readonly number[])[] | undefined;
  /** Routed methods, where asked for: values of each sequence, by name of the output. */
  readonly perSequence: ReadonlyMap<string, PerSequence>;
}

/** A small output float32 [B, layers, experts], copied out of the runtime. */
export interface PerSequence {
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/** How sessions are set up, where that is not the default below. For measurements. */
export type SessionTuning = Pick<
  SessionOptions,
  "prepacking" | "memoryPattern" | "optimization" | "profile" | "config"
>;

/**
 * Neither packed copies of the weights nor memory plans. Measured on the 135M shape with batches of 8 × 128 tokens:
 * peak memory 3.5 GB instead of 4.1 GB with packing and 6.2 GB with both; no faster (0 % at 1,024 tokens, 6 % at 192).
 * Plans, besides, would be kept for every shape that ever occurs.
 */
export function sessionOptions(backbone: Backbone, tuning: SessionTuning): SessionOptions {
  return { initializers: backbone.initializers(), prepacking: false, memoryPattern: false, ...tuning };
}

/** Runs a graph with the inputs of a batch, scalar outputs, and perhaps some for each sequence. */
export class PassSession implements Disposable {
  readonly #binding: Binding;
  readonly #session: Session;
  readonly #asked: ReadonlySet<string>;
  readonly #crossEntropy = Tensor.scalar("float32", 0);
  readonly #auxiliary: ReadonlyMap<string, Tensor>;
  readonly #perSequence: readonly string[];

  /**
   * @param auxiliary names of the method's losses, each an output `loss.<name>`
   * @param perSequence names of outputs [B, layers, experts], e.g. `gates`
   */
  constructor(session: Session, auxiliary: Iterable<string>, perSequence: readonly string[]) {
    this.#session = session;
    this.#asked = new Set(session.inputs.map(({ name }) => name));
    this.#binding = session.bind();
    this.#binding.output("crossEntropy", this.#crossEntropy);
    this.#auxiliary = new Map([...auxiliary].map((name) => [name, Tensor.scalar("float32", 0)]));
    for (const [name, tensor] of this.#auxiliary) this.#binding.output(`loss.${name}`, tensor);
    this.#perSequence = perSequence;
    for (const name of perSequence) this.#binding.outputOn(name, "cpu");
  }

  /** Binds an input, unless nothing in the graph depends on it (no prompt mask without a router, say). */
  input(name: string, tensor: Tensor): this {
    if (this.#asked.has(name)) this.#binding.input(name, tensor);
    return this;
  }

  output(name: string, tensor: Tensor): this {
    this.#binding.output(name, tensor);
    return this;
  }

  async run(batch: BatchInputs): Promise<PassResult> {
    for (const [name, tensor] of batch.inputs) this.input(name, tensor);
    await this.#session.runAsync(this.#binding);
    const perSequence = this.#copies();
    const gates = perSequence.get("gates");
    return {
      crossEntropy: this.#crossEntropy.data[0] as number,
      auxiliary: new Map([...this.#auxiliary].map(([name, tensor]) => [name, tensor.data[0] as number])),
      active: gates && countActive(gates),
      perSequence,
    };
  }

  #copies(): Map<string, PerSequence> {
    if (this.#perSequence.length === 0) return new Map();
    const results = this.#binding.results();
    return new Map(
      this.#perSequence.map((name) => {
        using tensor = results.get(name)!;
        return [name, { shape: tensor.shape, values: Float32Array.from(tensor.data as Float32Array) }];
      }),
    );
  }

  /** Stops profiling and gives the name of the file. */
  endProfiling(): string {
    return this.#session.endProfiling();
  }

  [Symbol.dispose](): void {
    this.#binding.dispose();
    this.#session.dispose();
    this.#crossEntropy.dispose();
    for (const tensor of this.#auxiliary.values()) tensor.dispose();
  }
}

function countActive({ shape, values }: PerSequence): number[][] {
  const [B, layers, experts] = shape as [number, number, number];
  const counts = Array.from({ length: layers }, () => new Array<number>(experts).fill(0));
  for (let b = 0; b < B; b++) {
    for (let l = 0; l < layers; l++) {
      for (let e = 0; e < experts; e++) if (values[(b * layers + l) * experts + e] !== 0) counts[l]![e]!++;
    }
  }
  return counts;
}

/** Adds the counts of several passes. */
export function addActive(results: readonly Pick<PassResult, "active">[]): number[][] | undefined {
  const [first, ...rest] = results.map(({ active }) => active).filter((active) => active !== undefined);
  return first?.map((layer, l) => layer.map((count, e) => rest.reduce((sum, other) => sum + other[l]![e]!, count)));
}

/** Counts of each layer as shares of their sum. */
export function shares(active: readonly (readonly number[])[]): number[][] {
  return active.map((layer) => {
    const total = layer.reduce((a, b) => a + b, 0);
    return layer.map((count) => (total === 0 ? 0 : count / total));
  });
}

/**
 * Forward and backward. The gradient that a pass adds is that of
 * `crossEntropy · inverseTokens + Σ auxiliary · promptShare`, so that after all micro-batches of a batch the buffers
 * hold the gradient of the mean over the supervised tokens of the whole batch, however unevenly they are spread.
 */
export class GradientSession implements Disposable {
  /** Accumulated gradients by group, float32 [n], in the layout of the adapter's flat buffer. */
  readonly accumulated: ReadonlyMap<Group, Tensor>;
  readonly #views: Tensor[] = [];
  readonly #noise: readonly Tensor[];
  readonly #pass: PassSession;
  readonly #inverseTokens = Tensor.scalar("float32", 0);
  readonly #promptShare = Tensor.scalar("float32", 0);
  readonly #progress = Tensor.scalar("float32", 0);

  /** @param packed for `PackedBatch` instead of `Collated` */
  constructor(backbone: Backbone, adapter: Adapter, tuning: SessionTuning = {}, packed = false) {
    if (packed) requirePackable(adapter.method);
    const graph = new Graph("gradients");
    const objective = buildObjective(graph, backbone, adapter, { noise: true, packed });
    const inverseTokens = graph.input("inverseTokens", "float32", []);
    const promptShare = graph.input("promptShare", "float32", []);
    let loss = mul(objective.crossEntropy, inverseTokens);
    for (const value of objective.auxiliary.values()) loss = add(loss, mul(value, promptShare));
    graph.output("crossEntropy", objective.crossEntropy);
    for (const [name, value] of objective.auxiliary) graph.output(`loss.${name}`, value);
    if (objective.gates) graph.output("gates", objective.gates);
    const gradients = grad(loss, [...objective.parameters.values()]);
    for (const [i, { key, shape }] of adapter.specs.entries()) {
      const sum = graph.input(`sum.${key}`, "float32", shape);
      graph.output(`gradient.${key}`, add(sum, gradients[i]!), { replaces: sum });
    }
    const session = Session.create(exportOnnx(graph), sessionOptions(backbone, tuning));
    this.#pass = new PassSession(session, objective.auxiliary.keys(), objective.gates ? ["gates"] : []);
    this.#pass.input("inverseTokens", this.#inverseTokens).input("promptShare", this.#promptShare);
    this.#pass.input("progress", this.#progress);
    this.#noise = [...objective.noise].map(([name, shape]) => {
      const tensor = Tensor.allocate("float32", shape);
      this.#pass.input(name, tensor);
      return tensor;
    });
    const accumulated = new Map<Group, Tensor>();
    for (const group of GROUPS) {
      const flat = adapter.flat(group);
      if (flat) accumulated.set(group, Tensor.allocate("float32", flat.shape));
    }
    this.accumulated = accumulated;
    for (const { key, shape, group } of adapter.specs) {
      const view = accumulated.get(group)!.view(adapter.offsets(group).get(key)!, shape);
      this.#views.push(view);
      this.#pass
        .input(ADAPTER_INPUT + key, adapter.tensors.get(key)!)
        .input(`sum.${key}`, view)
        .output(`gradient.${key}`, view);
    }
  }

  /**
   * Adds the gradients of a micro-batch.
   * @param inverseTokens 1 / supervised tokens of the whole batch
   * @param promptShare this micro-batch's share of the batch's sequences
   */
  async accumulate(batch: BatchInputs, inverseTokens: number, promptShare: number): Promise<PassResult> {
    this.#inverseTokens.data[0] = inverseTokens;
    this.#promptShare.data[0] = promptShare;
    return this.#pass.run(batch);
  }

  /** Share of the updates that are done, for all micro-batches that follow. */
  set progress(share: number) {
    this.#progress.data[0] = share;
  }

  /** Draws the method's noise, the same for all micro-batches that follow: uniform in (0, 1), by seed. */
  draw(seed: number): void {
    const random = new Random(seed);
    for (const { data } of this.#noise) {
      const values = data as Float32Array;
      for (let i = 0; i < values.length; i++) values[i] = 1e-6 + (1 - 2e-6) * random.uniform();
    }
  }

  /** Sets the accumulated gradients of some groups, or of all, to zero. */
  clear(groups: readonly Group[] = GROUPS): void {
    for (const group of groups) (this.accumulated.get(group)?.data as Float32Array | undefined)?.fill(0);
  }

  endProfiling(): string {
    return this.#pass.endProfiling();
  }

  [Symbol.dispose](): void {
    this.#pass[Symbol.dispose]();
    for (const tensor of [...this.#views, ...this.#noise]) tensor.dispose();
    for (const tensor of this.accumulated.values()) tensor.dispose();
    this.#inverseTokens.dispose();
    this.#promptShare.dispose();
    this.#progress.dispose();
  }
}
