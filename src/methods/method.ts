/** @file The one seam through which training, generation and evaluation see a PEFT method. */
import type { z } from "zod";
import type { Graph, Value } from "../graph/index.ts";
import type { BackboneConfig, Hooks, Site } from "../models/index.ts";
import type { Tensor } from "../runtime/index.ts";

/** How a fresh parameter is filled; all draws come from one seeded generator, in the order of the specs. */
export type Init =
  | { readonly kind: "zeros" }
  /** Uniform in ±sqrt(6 / ((1 + 5) · fanIn)): PyTorch's `kaiming_uniform_(a=√5)`, PEFT's choice for lora_A. */
  | { readonly kind: "kaimingUniform"; readonly fanIn: number }
  | { readonly kind: "normal"; readonly std: number }
  | { readonly kind: "values"; readonly values: readonly number[] }
  /** The L2 norm of each row of the frozen weight of `site`. */
  | { readonly kind: "rowNorms"; readonly site: Site };

/** A trainable float32 tensor of a method. */
export interface ParameterSpec {
  /** Its key in adapter_model.safetensors. */
  readonly key: string;
  readonly shape: readonly number[];
  readonly init: Init;
  /** `activation` parameters are Θ of the bi-level loop (learned activation functions), the rest is Ω. */
  readonly group: "weights" | "activation";
}

/** Where the M sequences of a batch are when several share a row; `promptMask` is then [M, P], a row for each. */
export interface Packing {
  /** The row of the [N, …] activations at which each prompt token stands; filling is masked. */
  readonly promptRows: Value; // int64 [M, P]
  /** The sequence that each of the N rows belongs to. */
  readonly sampleOf: Value; // int64 [N]
}

/** Which part of a sequence's life a graph is built for. */
export type Phase =
  /**
   * Whole sequences with gradients; `promptMask` float32 [B, T] is 1 on prompt tokens, 0 on response and padding.
   * `noise` gives uniform numbers in (0, 1), float32, drawn anew for each update; it is missing where a method should do
   * what it does on average, as in an evaluation. `progress` is the share of the updates that are done, float32 [] in
   * [0, 1]; it is missing where a method should be as it is in use.
   */
  | {
      readonly kind: "train";
      readonly promptMask: Value;
      readonly packing?: Packing;
      readonly progress?: Value;
      noise?(name: string, shape: readonly number[]): Value;
    }
  /** The prompt's pass that fills the KV cache; mask as above (0 on padding). */
  | { readonly kind: "prefill"; readonly promptMask: Value }
  /**
   * New tokens, one per row (N = B). `state` gives what the method's prefill graph returned for each sequence.
   * Where all sequences share one route it is given as `route`, and modules that are not in it are left out of the graph.
   */
  | { readonly kind: "decode"; state(name: string, shape: readonly number[]): Value; readonly route?: Route };

/** For each layer the indices of its active experts, ascending. */
export type Route = readonly (readonly number[])[];

export interface BuildContext<C> {
  readonly graph: Graph;
  readonly config: C;
  readonly backbone: BackboneConfig;
  readonly phase: Phase;
  /** The graph value of a parameter of this method, by its key. */
  parameter(key: string): Value;
  /** A tensor that `make` computes from parameters and frozen weights alone: generation does so once per adapter. */
  derived(name: string, shape: readonly number[], make: () => Value): Value;
}

/** What a method adds to the graph of a forward pass. The getters may be read once the pass is built. */
export interface MethodGraph {
  readonly hooks: Hooks;
  /** Auxiliary losses, already weighted, to be added to the cross entropy: float32 scalars, by name. */
  losses?(): ReadonlyMap<string, Value>;
  /**
   * Prefill only: per-sequence tensors [B, layers, …] that decoding needs, by the name `Phase.state` asks for. A graph may
   * have only some of the layers, whose parts are then put together.
   */
  state?(): ReadonlyMap<string, Value>;
  /** Things worth reporting, [B, layers, …] each, by name (router probabilities). */
  reports?(): ReadonlyMap<string, Value>;
}

/** What `Method.merge` computes with: a graph of its own, float32. */
export interface MergeContext<C> {
  readonly config: C;
  readonly backbone: BackboneConfig;
  /** The graph value of a parameter of this method, by its key. */
  parameter(key: string): Value;
}

/** The paper's two columns, each by part of the method: what is left at the end of training, where a method prunes. */
export interface ParameterCount {
  readonly tunable: Readonly<Record<string, number>>;
  /** The most that one token can use. */
  readonly activated: Readonly<Record<string, number>>;
}

/** What a routed method knows about its routes. */
export interface Routing {
  /** Expert names, e.g. `["q_proj", …]`, in the order of the gate's columns. */
  readonly experts: readonly string[];
  /** How many experts a layer activates. */
  readonly active: number;
  /** How a router makes one vector of the prompt's tokens, e.g. `self_attention`. */
  readonly pooler: string;
}

/** Where it is shown what routers look at, in a graph over prompts that need not be built by the method itself. */
export interface AttentionContext<C> extends Pick<BuildContext<C>, "config" | "parameter"> {
  /** 1 on prompt tokens, float32 [B, T]. */
  readonly promptMask: Value;
}

/** The weights, of sum 1, with which a layer's router pools the tokens of each prompt: [B · T, d] → [B, T]. */
export type Attention = (layer: number, hidden: Value) => Value;

/** What is known of the training run that a new adapter is made for. */
export interface PlannedRun {
  readonly totalSteps: number;
}

/** What a method's training works on: flat float32 [n] buffers of the group `weights`, which outlive it. */
export interface TrainingContext<C> {
  readonly config: C;
  readonly backbone: BackboneConfig;
  readonly parameters: Tensor;
  /** As accumulated for the update, before clipping. */
  readonly gradients: Tensor;
  /** Where each parameter starts in both, in elements. */
  readonly offsets: ReadonlyMap<string, number>;
}

/** What a method keeps beside its parameters while it is trained, and what it does between updates. */
export interface TrainingState extends Disposable {
  /** All that it keeps, by name: written to checkpoints, and filled from them before training goes on. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  /**
   * After each update of the group `weights`, with its gradients still there.
   * @param step number of the update, from 0
   * @param clip what the gradients were multiplied with in the update
   */
  afterUpdate(step: number, clip: number): Promise<void>;
}

/** Where a run stands after an update. */
export interface RunProgress {
  /** Updates done. */
  readonly step: number;
  readonly totalSteps: number;
  /** The numbers of a parameter, by its key. */
  values(key: string): Float32Array;
}

/** What an adapter becomes when its structure changes in training. */
export interface Successor<C> {
  readonly config: C;
  /** Numbers to go on with, by key; a parameter for which there are none is drawn as in a new adapter. */
  values?(key: string): Float32Array | undefined;
}

/** An adapter as it is saved for use. */
export interface ExportedAdapter<C> {
  readonly config: C;
  /** By key on disk; whoever asked for them disposes them. */
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** A module's change as a product of two small matrices: y' = y + scaling · (x Aᵀ) Bᵀ. */
export interface LowRankChange {
  readonly site: Site;
  /** Key of A, [r, in]. */
  readonly a: string;
  /** Key of B, [out, r]. */
  readonly b: string;
  readonly scaling: number;
}

/**
 * What an adapter does to one module, in numbers: y' = scale ∘ (W x + b + scaling · (x Aᵀ) Bᵀ) + bias,
 * or, without A and B, with W (inputScale ∘ x). What is missing is not there. Arrays are live: parameters themselves
 * where they are as needed.
 */
export interface LoweredModule {
  readonly site: Site;
  readonly low?: {
    readonly a: Float32Array; // [r, in]
    readonly b: Float32Array; // [out, r]
    readonly rank: number;
    readonly scaling: number;
    /** Factor of each rank. */
    readonly ranks?: Float32Array; // [r]
  };
  readonly scale?: Float32Array; // [out]
  /** The frozen bias b is not scaled. */
  readonly keepsBias?: true;
  readonly bias?: Float32Array; // [out]
  readonly inputScale?: Float32Array; // [in]
  /** Its expert in its layer: the whole change is weighted by that gate of the sequence, and is not there at 0. */
  readonly expert?: number;
}

/** A router of one layer of a method that chooses experts per prompt, in numbers; arrays are live. */
export interface LoweredRouter {
  readonly pooling: "self_attention" | "mean" | "last" | "max";
  /** Of self-attention pooling. */
  readonly pooler?: Float32Array; // [d]
  readonly activation: "rational" | "gelu" | "relu" | "identity";
  /** Of a rational activation: numerator [7] and denominator [5]. */
  readonly coefficients?: readonly [numerator: Float32Array, denominator: Float32Array];
  /** Whether the pooled vector is RMS-normalised. */
  readonly normalized: boolean;
  readonly gate: Float32Array; // [experts, d]
  readonly experts: number;
  readonly topK: number;
  /** Weight of an active expert: 1, its probability, or its share among the active ones. */
  readonly weighting: "straight_through" | "probability" | "renormalized";
}

export interface LowerContext<C> {
  readonly config: C;
  readonly backbone: BackboneConfig;
  /** The numbers of a parameter, by its key. */
  values(key: string): Float32Array;
  /** The numbers of a derived tensor, see `BuildContext.derived`. */
  derived(name: string): Float32Array;
}

export interface Method<C = unknown> {
  /** As on the command line, e.g. `milora`. */
  readonly name: string;
  /** `peft_type` of adapter_config.json. */
  readonly peftType: string;
  /** Which files of `peftType` are this method's, where several methods share one; default all. */
  claims?(config: Readonly<Record<string, unknown>>): boolean;
  /** adapter_config.json of this method; fills defaults, refuses what is not supported. */
  readonly configSchema: z.ZodType<C>;
  readonly properties: {
    /** Chooses experts per prompt: prefill returns the state `gates` float32 [B, layers, experts], 0 = not active. */
    readonly routed: boolean;
    /** Its change can be folded into the backbone's weights: there is `merge`. */
    readonly mergeable: boolean;
    /** A new adapter leaves the backbone as it is; such an adapter is refused where one is to be used. */
    readonly startsAsIdentity: boolean;
    /**
     * It can be trained with several sequences in one row (`Packing`): what it does to a token depends on that token,
     * on its sequence's prompt as `Phase` gives it, or on the parameters alone. Default: false.
     */
    readonly packable?: boolean;
    /**
     * What it does to a token of a prompt depends on that token, those before it and the parameters alone: prompts may be
     * read in parts, and what was read of one serves another that begins alike. Default: false, as for all that pools
     * the prompt.
     */
    readonly causal?: boolean;
  };
  /** The config of a new adapter: `options` over the paper's setting for this backbone. */
  newConfig(options: Readonly<Record<string, unknown>>, backbone: BackboneConfig, run?: PlannedRun): C;
  routing?(config: C): Routing;
  /**
   * Beside `routing`: what routers attend to. Undefined where they do not pool by a weighted mean of the tokens. Of the
   * config it depends on `Routing.pooler` alone.
   */
  attention?(context: AttentionContext<C>): Attention | undefined;
  /** Its hooks change the language-model head too: then the head is not one that all adapters share. */
  readonly changesHead?: boolean;
  /** Positions that its attention prefix (`Hooks.prefix`) takes before every sequence; they are missing from the context. */
  prefixLength?(config: C): number;
  /** All parameters, in file order. Throws `InputError` when the config does not fit the backbone. */
  parameters(config: C, backbone: BackboneConfig): readonly ParameterSpec[];
  /** Numbers of trainable parameters by part, e.g. `experts`, `routers`. The totals are the sums. */
  countParameters(config: C, backbone: BackboneConfig): ParameterCount;
  /** True when these values leave the backbone as it is; `values(key)` reads a parameter. */
  isIdentity(config: C, backbone: BackboneConfig, values: (key: string) => Float32Array): boolean;
  build(context: BuildContext<C>): MethodGraph;
  /**
   * What it does, but for an attention prefix, in the form that all such methods share, so that sequences of different
   * adapters are one batch; modules it leaves alone are not listed. Undefined, or no such function, where it does not have
   * that form.
   */
  lower?(context: LowerContext<C>): readonly LoweredModule[] | undefined;
  /** Beside `lower`, where `properties.routed`: the router of each layer, whose gates are those of `LoweredModule.expert`. */
  lowerRouters?(context: LowerContext<C>): readonly LoweredRouter[];
  /** What a search or a pruning has found: for module or sub-layer paths, a word or two. Undefined before it is known. */
  structure?(config: C, backbone: BackboneConfig): ReadonlyMap<string, string> | undefined;
  /**
   * The form for use of an adapter in a form of its own for training (reparameterised, or not pruned yet), from its
   * parameters by key; undefined when it is in the form for use. Checkpoints keep the form for training.
   */
  export?(config: C, backbone: BackboneConfig, tensors: ReadonlyMap<string, Tensor>): ExportedAdapter<C> | undefined;
  /** Default peak learning rate of the group `activation`, where it holds something else than activation functions. */
  readonly activationLr?: number;
  /**
   * True while an adapter is searching for its structure, or trained otherwise than it is used: it is neither the best
   * of a run nor a reason to end it. `progress` is the share of the updates that are done.
   */
  interim?(config: C, progress: number): boolean;
  /**
   * After each update: what the adapter becomes if its structure changes now. Training goes on with that, its schedule,
   * the optimizer's moments and the search for the best adapter beginning anew.
   */
  successor?(config: C, backbone: BackboneConfig, progress: RunProgress): Successor<C> | undefined;
  /** For methods that do more in training than minimise their losses. */
  trainingState?(context: TrainingContext<C>): TrainingState;
  /**
   * Where it is LoRA and nothing else: its change of each module, for formats that know LoRA only.
   */
  lowRank?(config: C, backbone: BackboneConfig): readonly LowRankChange[];
  /**
   * Where `properties.mergeable`: what to add to a weight of the checkpoint, in its shape; undefined where the adapter
   * leaves it alone. `weight` is the frozen one, `site` its module where it belongs to a linear one.
   */
  merge?(context: MergeContext<C>, name: string, weight: Value, site: Site | undefined): Value | undefined;
}
