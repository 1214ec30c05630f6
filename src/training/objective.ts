/** @file What training minimises, as a graph: backbone and method over whole sequences, cross entropy where supervised. */
import { crossEntropy, type Graph, gather, mulDims, type Value } from "../graph/index.ts";
import { type Adapter, buildMethod } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";

export interface Objective {
  /** Sum of the negative log-likelihoods of the supervised tokens, float32 []. */
  readonly crossEntropy: Value;
  /** The method's own losses over the prompts of this pass, already weighted, float32 [] each. */
  readonly auxiliary: ReadonlyMap<string, Value>;
  /** Routed methods: how much each expert counts, 0 = not active, float32 [sequences, layers, experts]. */
  readonly gates: Value | undefined;
  /** Routed methods: the routers' probabilities, float32 [sequences, layers, experts]. */
  readonly probabilities: Value | undefined;
  /** The adapter's tensors, as graph inputs, by key. */
  readonly parameters: ReadonlyMap<string, Value>;
  /** Shapes of the noise that the method wants, by graph input. */
  readonly noise: ReadonlyMap<string, readonly number[]>;
}

export interface ObjectiveOptions {
  /** Whether the method gets noise and progress (training) or does what it does in use (evaluation). Default: false. */
  readonly noise?: boolean;
  /** For `PackedBatch` instead of `Collated`. Default: false. */
  readonly packed?: boolean;
}

/**
 * Cross entropy and the method's own losses over the inputs of a batch (`Collated`, `PackedBatch`).
 *
 * Only supervised positions pass the language-model head, which on small models is much of the work.
 */
export function buildObjective(
  graph: Graph,
  backbone: Backbone,
  adapter: Adapter,
  { noise: withNoise = false, packed = false }: ObjectiveOptions = {},
): Objective {
  const tokens = graph.input("tokens", "int64", ["B", "T"]);
  const promptMask = graph.input("promptMask", "float32", packed ? ["M", "P"] : ["B", "T"]);
  const positions = graph.input("positions", "int64", ["S"]); // rows of [B·T, d]
  const labels = graph.input("labels", "int64", ["S"]);
  const weights = graph.input("weights", "float32", ["S"]);
  const noise = new Map<string, readonly number[]>();
  const draw = (name: string, shape: readonly number[]): Value => {
    noise.set(`noise.${name}`, shape);
    return graph.input(`noise.${name}`, "float32", shape);
  };
  const packing = packed && {
    promptRows: graph.input("promptRows", "int64", ["M", "P"]),
    sampleOf: graph.input("sampleOf", "int64", [mulDims("B", "T")]),
  };
  const rows = packed && {
    segments: graph.input("segments", "int64", ["B", "T"]),
    positions: graph.input("tokenPositions", "int64", ["B", "T"]),
  };
  const training = withNoise && { noise: draw, progress: graph.input("progress", "float32", []) };
  const phase = { kind: "train", promptMask, ...(packing && { packing }), ...training } as const;
  const method = buildMethod(graph, adapter, phase, { derived: "inline" });
  const inputs = {
    tokens,
    attention: { kind: "full", ...(rows && { packed: rows }) },
    hooks: method.hooks,
    differentiable: true,
  } as const;
  const { hidden, logits } = backbone.forward(graph, inputs);
  const { routed } = adapter.method.properties;
  const supervised = gather(hidden, positions, 0); // [S, d]
  return {
    crossEntropy: crossEntropy(logits(supervised), labels, weights).sum,
    auxiliary: method.losses?.() ?? new Map(),
    gates: routed ? method.state?.().get("gates") : undefined,
    probabilities: routed ? method.reports?.().get("probabilities") : undefined,
    parameters: new Map(adapter.specs.map(({ key }) => [key, method.parameter(key)])),
    noise,
  };
}
