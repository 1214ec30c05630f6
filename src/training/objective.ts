/** @file What training minimises, as a graph: backbone and method over whole sequences, cross entropy where supervised. */
import {
  add,
  addDims,
  concat,
  crossEntropy,
  type Dim,
  dimScalar,
  type Graph,
  gather,
  headCrossEntropy,
  mul,
  mulDims,
  reshape,
  split,
  sum,
  unsqueeze,
  type Value,
} from "../graph/index.ts";
import { type Adapter, buildMethod, joinHooks } from "../methods/index.ts";
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
  /** Shapes of the noise that the method wants, by graph input without the prefix of the member. */
  readonly noise: ReadonlyMap<string, readonly number[]>;
}

/** One of the adapters that pass through the backbone together, each with a batch of its own. */
export interface ObjectiveMember {
  readonly adapter: Adapter;
  /** For `PackedBatch` instead of `Collated`. Default: false. */
  readonly packed?: boolean | undefined;
}

export interface ObjectiveOptions {
  /** Whether methods get noise and progress (training) or do what they do in use (evaluation). Default: false. */
  readonly noise?: boolean;
  /** Whether a gradient will be taken. Default: true. */
  readonly differentiable?: boolean;
}

/** Before the names of all that belongs to member `index` of `count`; an adapter alone needs no names of its own. */
export const memberPrefix = (index: number, count: number): string => (count === 1 ? "" : `${index}.`);

/** The inputs of a member's batch (`Collated`, `PackedBatch`), with symbols of its own. */
function batchInputs(graph: Graph, packed: boolean, prefix: string) {
  const suffix = prefix.slice(0, -1);
  const input = (name: string, dtype: "int64" | "float32", dims: string) =>
    graph.input(
      prefix + name,
      dtype,
      [...dims].map((dim) => dim + suffix),
    );
  const tokens = input("tokens", "int64", "BT");
  const rows = mulDims(...tokens.shape);
  return {
    tokens,
    rows,
    promptMask: input("promptMask", "float32", packed ? "MP" : "BT"),
    positions: input("positions", "int64", "S"), // rows of [B·T, d]
    labels: input("labels", "int64", "S"),
    weights: input("weights", "float32", "S"),
    packing: packed && {
      promptRows: input("promptRows", "int64", "MP"),
      sampleOf: graph.input(`${prefix}sampleOf`, "int64", [rows]),
    },
    packedRows: packed && {
      segments: input("segments", "int64", "BT"),
      positions: input("tokenPositions", "int64", "BT"),
    },
  };
}

/**
 * Cross entropy and the methods' own losses over the inputs of a batch for each member. All rows pass the backbone
 * together; each adapter sees its own only.
 *
 * Only supervised positions pass the language-model head, which on small models is much of the work.
 */
export function buildObjectives(
  graph: Graph,
  backbone: Backbone,
  members: readonly ObjectiveMember[],
  { noise: withNoise = false, differentiable = true }: ObjectiveOptions = {},
): Objective[] {
  const built = members.map(({ adapter, packed = false }, i) => {
    const prefix = memberPrefix(i, members.length);
    const batch = batchInputs(graph, packed, prefix);
    const noise = new Map<string, readonly number[]>();
    const draw = (name: string, shape: readonly number[]): Value => {
      noise.set(`noise.${name}`, shape);
      return graph.input(`${prefix}noise.${name}`, "float32", shape);
    };
    const { promptMask, packing } = batch;
    const training = withNoise && { noise: draw, progress: graph.input(`${prefix}progress`, "float32", []) };
    const phase = { kind: "train", promptMask, ...(packing && { packing }), ...training } as const;
    return { adapter, batch, noise, method: buildMethod(graph, adapter, phase, { derived: "inline", prefix }) };
  });
  const batches = built.map(({ batch: { tokens, packedRows } }) => ({
    tokens,
    ...(packedRows && { packed: packedRows }),
  }));
  const flat = (values: readonly Value[]): Value =>
    concat(
      values.map((value) => reshape(value, [-1])),
      0,
    );
  const { hidden, logits } = backbone.forward(graph, {
    ...(batches.length === 1
      ? { tokens: batches[0]!.tokens, attention: { kind: "full", ...batches[0]! } }
      : { tokens: unsqueeze(flat(batches.map(({ tokens }) => tokens)), [1]), attention: { kind: "joined", batches } }),
    hooks: joinHooks(built.map(({ method: { hooks }, batch: { rows } }) => ({ hooks, rows }))),
    differentiable: true, // an evaluation computes as training does
  });
  let start: Dim = 0;
  const positions = built.map(({ batch }) => {
    const own = start === 0 ? batch.positions : add(batch.positions, dimScalar(graph, start));
    start = addDims(start, batch.rows);
    return own;
  });
  const all = (name: "labels" | "weights"): Value =>
    concat(
      built.map(({ batch }) => batch[name]),
      0,
    );
  const supervised = gather(hidden, concat(positions, 0), 0); // [S, d]
  const learnsHead = differentiable && members.some(({ adapter }) => adapter.method.changesHead);
  const [labels, weights] = [all("labels"), all("weights")];
  const rows = learnsHead
    ? crossEntropy(logits(supervised), labels, weights).rows
    : mul(headCrossEntropy(supervised, logits, labels, { differentiable }), weights);
  const ofMember = split(
    rows,
    0,
    built.map(({ batch }) => batch.labels.shape[0]!),
  ); // [S] each
  return built.map(({ adapter, method, noise }, i) => {
    const { routed } = adapter.method.properties;
    return {
      crossEntropy: sum(ofMember[i]!),
      auxiliary: method.losses?.() ?? new Map(),
      gates: routed ? method.state?.().get("gates") : undefined,
      probabilities: routed ? method.reports?.().get("probabilities") : undefined,
      parameters: new Map(adapter.specs.map(({ key }) => [key, method.parameter(key)])),
      noise,
    };
  });
}
