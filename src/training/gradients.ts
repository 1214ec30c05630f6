/** @file The session that runs forward and backward over a micro-batch and adds its gradients to flat buffers. */
import { Random, sum } from "../base/index.ts";
import { add, exportOnnx, Graph, grad, mul, type Recomputation } from "../graph/index.ts";
import { ADAPTER_INPUT, type Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { type Binding, type DeviceName, Session, type SessionOptions, Tensor } from "../runtime/index.ts";
import type { BatchInputs } from "./batches.ts";
import { copiesOf, setToZero, viewsOf } from "./device.ts";
import { buildObjectives, memberPrefix, type Objective } from "./objective.ts";
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
  "device" | "prepacking" | "memoryPattern" | "optimization" | "profile" | "config"
>;

/**
 * Neither packed copies of the weights nor memory plans. Measured on the 135M shape with batches of 8 × 128 tokens:
 * peak memory 3.5 GB instead of 4.1 GB with packing and 6.2 GB with both; no faster (0 % at 1,024 tokens, 6 % at 192).
 * Plans, besides, would be kept for every shape that ever occurs.
 */
export function sessionOptions(backbone: Backbone, tuning: SessionTuning): SessionOptions {
  return { initializers: backbone.initializers(), prepacking: false, memoryPattern: false, ...tuning };
}

/** What a graph takes and gives of one of its members (`buildObjectives`). */
export interface PassMember {
  /** Names of the method's losses, each an output `loss.<name>`. */
  readonly auxiliary: readonly string[];
  /** Names of outputs [B, layers, experts], e.g. `gates`. */
  readonly perSequence: readonly string[];
}

/** Runs a graph with a batch for each member: scalar outputs, and perhaps some for each sequence. */
export class PassSession implements Disposable {
  readonly session: Session;
  readonly members: readonly PassMember[];
  readonly #binding: Binding;
  /** Whether the session goes with this. */
  readonly #owner: boolean;
  readonly #asked: ReadonlySet<string>;
  readonly #members: readonly {
    readonly prefix: string;
    readonly crossEntropy: Tensor;
    readonly auxiliary: ReadonlyMap<string, Tensor>;
    readonly perSequence: readonly string[];
  }[];

  /** @param source a session; or passes for other adapters of the same shapes, which must outlive these */
  constructor(source: Session | PassSession, members: readonly PassMember[]) {
    const session = source instanceof PassSession ? source.session : source;
    this.session = session;
    this.members = members;
    this.#owner = session === source;
    this.#asked = new Set(session.inputs.map(({ name }) => name));
    this.#binding = session.bind();
    this.#members = members.map(({ auxiliary, perSequence }, i) => {
      const prefix = memberPrefix(i, members.length);
      const scalar = (name: string): Tensor => {
        const tensor = Tensor.scalar("float32", 0);
        this.#binding.output(prefix + name, tensor);
        return tensor;
      };
      for (const name of perSequence) this.#binding.outputOn(prefix + name, "cpu");
      const losses = new Map([...auxiliary].map((name) => [name, scalar(`loss.${name}`)]));
      return { prefix, crossEntropy: scalar("crossEntropy"), auxiliary: losses, perSequence };
    });
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

  /** @param batches one for each member */
  async run(batches: readonly BatchInputs[]): Promise<PassResult[]> {
    for (const [i, { prefix }] of this.#members.entries()) {
      for (const [name, tensor] of batches[i]!.inputs) this.input(prefix + name, tensor);
    }
    await this.session.runAsync(this.#binding);
    const copies = this.#copies();
    return this.#members.map(({ crossEntropy, auxiliary }, i) => {
      const perSequence = copies[i]!;
      const gates = perSequence.get("gates");
      return {
        crossEntropy: crossEntropy.data[0] as number,
        auxiliary: new Map([...auxiliary].map(([name, tensor]) => [name, tensor.data[0] as number])),
        active: gates && countActive(gates),
        perSequence,
      };
    });
  }

  #copies(): Map<string, PerSequence>[] {
    if (this.#members.every(({ perSequence }) => perSequence.length === 0)) return this.#members.map(() => new Map());
    const results = this.#binding.results();
    return this.#members.map(
      ({ prefix, perSequence }) =>
        new Map(
          perSequence.map((name) => {
            using tensor = results.get(prefix + name)!;
            return [name, { shape: tensor.shape, values: Float32Array.from(tensor.data as Float32Array) }];
          }),
        ),
    );
  }

  /** Stops profiling and gives the name of the file. */
  endProfiling(): string {
    return this.session.endProfiling();
  }

  [Symbol.dispose](): void {
    this.#binding.dispose();
    if (this.#owner) this.session.dispose();
    for (const { crossEntropy, auxiliary } of this.#members) {
      crossEntropy.dispose();
      for (const tensor of auxiliary.values()) tensor.dispose();
    }
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
    const total = sum(layer);
    return layer.map((count) => (total === 0 ? 0 : count / total));
  });
}

/** Where the gradients of one adapter add up. */
export class Accumulated implements Disposable {
  readonly adapter: Adapter;
  readonly device: DeviceName;
  /** By group, float32 [n], in the layout of the adapter's flat buffer. On the CPU the gradients are views of it. */
  readonly flat: ReadonlyMap<Group, Tensor>;
  /** Where passes read the parameters, by key: the adapter's tensors, or copies of them on another device. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** Where passes add, by key. */
  readonly gradients: ReadonlyMap<string, Tensor>;

  constructor(adapter: Adapter, device: DeviceName = "cpu") {
    this.adapter = adapter;
    this.device = device;
    const flat = new Map<Group, Tensor>();
    for (const group of GROUPS) {
      const parameters = adapter.flat(group);
      if (parameters) flat.set(group, Tensor.allocate("float32", parameters.shape));
    }
    this.flat = flat;
    const here = device === "cpu";
    this.parameters = here ? adapter.tensors : copiesOf(adapter.tensors, device);
    this.gradients = here ? viewsOf(adapter, flat) : copiesOf(adapter.tensors, device);
  }

  /** Sets all to zero. */
  clear(): void {
    if (this.device === "cpu") for (const { data } of this.flat.values()) (data as Float32Array).fill(0);
    else setToZero([...this.gradients.values()]);
  }

  [Symbol.dispose](): void {
    for (const tensor of [...this.flat.values(), ...this.gradients.values()]) tensor.dispose();
    if (this.device !== "cpu") for (const tensor of this.parameters.values()) tensor.dispose();
  }
}

/** One of the adapters whose gradients a session computes. */
export interface GradientMember {
  readonly accumulated: Accumulated;
  /** For `PackedBatch` instead of `Collated`. Default: false. */
  readonly packed?: boolean | undefined;
}

/** A micro-batch of one member. */
export interface GradientPass {
  readonly batch: BatchInputs;
  /** 1 / supervised tokens of the whole batch. */
  readonly inverseTokens: number;
  /** The micro-batch's share of the batch's sequences. */
  readonly promptShare: number;
}

/** What belongs to one member of a session. */
class MemberInputs implements Disposable {
  readonly inverseTokens = Tensor.scalar("float32", 0);
  readonly promptShare = Tensor.scalar("float32", 0);
  readonly progress = Tensor.scalar("float32", 0);
  /** By input. */
  readonly noise: ReadonlyMap<string, Tensor>;

  constructor(noise: Objective["noise"]) {
    this.noise = new Map([...noise].map(([name, shape]) => [name, Tensor.allocate("float32", shape)]));
  }

  [Symbol.dispose](): void {
    for (const tensor of this.noise.values()) tensor.dispose();
    for (const tensor of [this.inverseTokens, this.promptShare, this.progress]) tensor.dispose();
  }
}

/**
 * Forward and backward, for one adapter or several at once. The gradient that a pass adds is, for each of them, that of
 * `crossEntropy · inverseTokens + Σ auxiliary · promptShare`, so that after all micro-batches of a batch the buffers
 * hold the gradient of the mean over the supervised tokens of the whole batch, however unevenly they are spread.
 */
export class GradientSession implements Disposable {
  readonly #members: readonly MemberInputs[];
  readonly #pass: PassSession;
  /** Shapes of the noise that each member's method wants. */
  readonly #noise: readonly Objective["noise"][];

  /**
   * @param source the backbone; or a session for other adapters of the same methods and configs, whose graph serves for
   *   these too and which must outlive this one
   * @param recompute of each layer, in the backward pass; what comes out is the same
   */
  constructor(
    source: Backbone | GradientSession,
    members: readonly GradientMember[],
    tuning: SessionTuning = {},
    recompute: Recomputation = "nothing",
  ) {
    for (const { accumulated, packed } of members) if (packed) requirePackable(accumulated.adapter.method);
    if (source instanceof GradientSession) {
      this.#noise = source.#noise;
      this.#pass = new PassSession(source.#pass, source.#pass.members);
    } else {
      const { session, objectives } = GradientSession.#build(source, members, tuning, recompute);
      this.#noise = objectives.map(({ noise }) => noise);
      this.#pass = new PassSession(
        session,
        objectives.map(({ auxiliary, gates }) => ({
          auxiliary: [...auxiliary.keys()],
          perSequence: gates ? ["gates"] : [],
        })),
      );
    }
    this.#members = members.map(({ accumulated }, i) => {
      const prefix = memberPrefix(i, members.length);
      const inputs = new MemberInputs(this.#noise[i]!);
      const { inverseTokens, promptShare, progress } = inputs;
      const named = new Map([...Object.entries({ inverseTokens, promptShare, progress }), ...inputs.noise]);
      for (const [name, tensor] of named) this.#pass.input(prefix + name, tensor);
      for (const [key, gradient] of accumulated.gradients) {
        this.#pass
          .input(prefix + ADAPTER_INPUT + key, accumulated.parameters.get(key)!)
          .input(`${prefix}sum.${key}`, gradient)
          .output(`${prefix}gradient.${key}`, gradient);
      }
      return inputs;
    });
  }

  static #build(
    backbone: Backbone,
    members: readonly GradientMember[],
    tuning: SessionTuning,
    recompute: Recomputation,
  ): { session: Session; objectives: readonly Objective[] } {
    const graph = new Graph("gradients", tuning.device);
    const objectives = buildObjectives(
      graph,
      backbone,
      members.map(({ accumulated: { adapter }, packed }) => ({ adapter, packed })),
      { noise: true },
    );
    const losses = objectives.map((objective, i) => {
      const prefix = memberPrefix(i, members.length);
      const inverseTokens = graph.input(`${prefix}inverseTokens`, "float32", []);
      const promptShare = graph.input(`${prefix}promptShare`, "float32", []);
      let loss = mul(objective.crossEntropy, inverseTokens);
      for (const value of objective.auxiliary.values()) loss = add(loss, mul(value, promptShare));
      graph.output(`${prefix}crossEntropy`, objective.crossEntropy);
      for (const [name, value] of objective.auxiliary) graph.output(`${prefix}loss.${name}`, value);
      if (objective.gates) graph.output(`${prefix}gates`, objective.gates);
      return loss;
    });
    const gradients = grad(
      losses.reduce((a, b) => add(a, b)), // each parameter is in one of them only
      objectives.flatMap(({ parameters }) => [...parameters.values()]),
      recompute,
    );
    let at = 0;
    for (const [i, { accumulated }] of members.entries()) {
      const prefix = memberPrefix(i, members.length);
      for (const { key, shape } of accumulated.adapter.specs) {
        const sum = graph.input(`${prefix}sum.${key}`, "float32", shape);
        graph.output(`${prefix}gradient.${key}`, add(sum, gradients[at++]!), { replaces: sum });
      }
    }
    return { session: Session.create(exportOnnx(graph), sessionOptions(backbone, tuning)), objectives };
  }

  /**
   * Adds the gradients of a micro-batch of each member.
   * @param passes in the order of the members
   */
  async accumulate(passes: readonly GradientPass[]): Promise<PassResult[]> {
    for (const [i, { inverseTokens, promptShare }] of this.#members.entries()) {
      inverseTokens.data[0] = passes[i]!.inverseTokens;
      promptShare.data[0] = passes[i]!.promptShare;
    }
    return this.#pass.run(passes.map(({ batch }) => batch));
  }

  /**
   * For all micro-batches of a member that follow: draws its method's noise, uniform in (0, 1), by seed.
   * @param progress share of the updates that are done
   */
  prepare(member: number, seed: number, progress: number): void {
    const inputs = this.#members[member]!;
    inputs.progress.data[0] = progress;
    const random = new Random(seed);
    for (const { data } of inputs.noise.values()) {
      const values = data as Float32Array;
      for (let i = 0; i < values.length; i++) values[i] = 1e-6 + (1 - 2e-6) * random.uniform();
    }
  }

  endProfiling(): string {
    return this.#pass.endProfiling();
  }

  [Symbol.dispose](): void {
    this.#pass[Symbol.dispose]();
    for (const inputs of this.#members) inputs[Symbol.dispose]();
  }
}
