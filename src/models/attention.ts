/** @file Causal attention with rotary positions, in two forms: differentiable over whole sequences, and over a KV cache. */
import {
  add,
  addDims,
  cast,
  concat,
  type Dim,
  dimScalar,
  equal,
  expand,
  fusedMatmul,
  type Graph,
  greaterEqual,
  groupQueryAttention,
  matmul,
  mulDims,
  range,
  reshape,
  rotary,
  slice,
  softmax,
  split,
  sub,
  transpose,
  unsqueeze,
  type Value,
  where,
  zeros,
} from "../graph/index.ts";
import type { BackboneConfig } from "./config.ts";
import type { AttentionMode, AttentionPrefix, JoinedBatch, PackedRows } from "./forward.ts";

const COS = "rope.cos";
const SIN = "rope.sin";

/**
 * Cosines and sines of rotary embeddings, float32 [maxPositions, headDim / 2], rounded where transformers rounds
 * (inverse frequencies and angles are float32), so that logits agree at long positions too.
 */
export function ropeTables(config: BackboneConfig): Map<string, { shape: readonly number[]; values: Float32Array }> {
  const half = config.headDim / 2;
  const shape = [config.maxPositions, half];
  const cos = new Float32Array(config.maxPositions * half);
  const sin = new Float32Array(config.maxPositions * half);
  for (let i = 0; i < half; i++) {
    const frequency = Math.fround(1 / Math.fround(config.ropeTheta ** ((2 * i) / config.headDim)));
    for (let position = 0; position < config.maxPositions; position++) {
      const angle = Math.fround(position * frequency);
      cos[position * half + i] = Math.cos(angle);
      sin[position * half + i] = Math.sin(angle);
    }
  }
  return new Map([
    [COS, { shape, values: cos }],
    [SIN, { shape, values: sin }],
  ]);
}

/** Attention of one layer: q [N, heads · headDim], k and v [N, kvHeads · headDim] → [N, heads · headDim]. */
type OneAttention = (layer: number, q: Value, k: Value, v: Value, prefix: AttentionPrefix | undefined) => Value;

/** The same with a prefix for each batch, of which there are several only where they are joined. */
export type Attention = (
  layer: number,
  q: Value,
  k: Value,
  v: Value,
  prefixes: readonly (AttentionPrefix | undefined)[],
) => Value;

export function attentionOf(g: Graph, config: BackboneConfig, tokens: Value, mode: AttentionMode): Attention {
  if (mode.kind === "joined") return joinedAttention(g, config, mode.batches);
  const attend =
    mode.kind === "full" ? fullAttention(g, config, tokens, mode.packed) : cachedAttention(g, config, tokens, mode);
  return (layer, q, k, v, [prefix]) => attend(layer, q, k, v, prefix);
}

/** Each batch by itself: there is no weight in it to be shared, and batches differ in length and prefix. */
function joinedAttention(g: Graph, config: BackboneConfig, batches: readonly JoinedBatch[]): Attention {
  const each = batches.map(({ tokens, packed }) => fullAttention(g, config, tokens, packed));
  const sizes = batches.map(({ tokens }) => mulDims(...tokens.shape));
  return (layer, q, k, v, prefixes) => {
    const [queries, keys, values] = [q, k, v].map((x) => split(x, 0, sizes)) as [Value[], Value[], Value[]];
    return concat(
      each.map((attend, i) => attend(layer, queries[i]!, keys[i]!, values[i]!, prefixes[i])),
      0,
    );
  };
}

function tables(g: Graph, { maxPositions, headDim }: BackboneConfig): { cos: Value; sin: Value } {
  const shape = [maxPositions, headDim / 2];
  return { cos: g.parameter(COS, "float32", shape), sin: g.parameter(SIN, "float32", shape) };
}

/** Additive mask [T, P + T]: 0 where row t may look, which is the prefix and columns up to its own; -1e30 elsewhere. */
function causalMask(g: Graph, T: Dim, prefixLength: number): Value {
  const columns = sub(range(g, 0, addDims(prefixLength, T)), prefixLength); // int64 [P + T], own tokens from 0 on
  const visible = greaterEqual(unsqueeze(range(g, 0, T), [1]), unsqueeze(columns, [0]));
  return where(visible, g.scalar(0), -1e30);
}

/** The same for rows of several sequences, each of which sees itself and the prefix: [B, 1, T, P + T]. */
function packedMask(g: Graph, { segments }: PackedRows, prefixLength: number): Value {
  const [B, T] = segments.shape as [Dim, Dim];
  const same = equal(unsqueeze(segments, [1, 3]), unsqueeze(segments, [1, 2])); // [B, 1, T, T]
  const own = add(where(same, g.scalar(0), -1e30), causalMask(g, T, 0));
  return prefixLength === 0 ? own : concat([zeros(g, [B, 1, T, prefixLength]), own], 3);
}

/**
 * Over whole sequences, from differentiable operations. The query heads that share a key-value head are stacked along
 * the sequence, so that keys and values are never repeated. A prefix stands before position 0, its tokens shift.
 */
function fullAttention(g: Graph, config: BackboneConfig, tokens: Value, packed: PackedRows | undefined): OneAttention {
  const { numHeads, numKvHeads, headDim } = config;
  const [B, T] = tokens.shape as [Dim, Dim];
  const shared = numHeads / numKvHeads;
  const stacked = mulDims(shared, T);
  const { cos: allCos, sin: allSin } = tables(g, config);
  const heads = (x: Value, count: number, length: Dim = T) =>
    transpose(reshape(x, [B, length, count, headDim]), [0, 2, 1, 3]);
  return (_, q, k, v, prefix) => {
    const P = prefix?.length ?? 0;
    // Row i of a sequence stands at position P + i.
    const start = packed ? add(packed.positions, P) : g.constant("int64", [1], [P]); // [B, T] or [1]
    const total = addDims(P, T);
    // Only the rows in use. The gradient negates them: of a whole table the runtime would do that when it loads the
    // graph, for which it copies every weight into the session.
    const [cos, sin] = [slice(allCos, 0, 0, total), slice(allSin, 0, 0, total)]; // [P + T, dh / 2]
    const mask = packed
      ? reshape(expand(packedMask(g, packed, P), [B, shared, T, total]), [B, 1, stacked, total])
      : reshape(expand(causalMask(g, T, P), [shared, T, total]), [stacked, total]);
    const before = (own: Value, given: Value | undefined) =>
      given === undefined ? own : concat([heads(expand(given, [B, P, given.shape[2]!]), numKvHeads, P), own], 2);
    const queries = rotary(heads(q, numHeads), start, cos, sin); // [B, H, T, dh]
    const keys = before(rotary(heads(k, numKvHeads), start, cos, sin), prefix?.key); // [B, Hkv, P + T, dh]
    const values = before(heads(v, numKvHeads), prefix?.value);
    const rows = reshape(queries, [B, numKvHeads, stacked, headDim]);
    const scores = fusedMatmul(rows, keys, { transB: true, alpha: 1 / Math.sqrt(headDim) }); // [B, Hkv, shared·T, P + T]
    const mixed = matmul(softmax(add(scores, mask), -1), values); // [B, Hkv, shared·T, dh]
    const perHead = reshape(mixed, [B, numHeads, T, headDim]);
    return reshape(transpose(perHead, [0, 2, 1, 3]), [q.shape[0]!, numHeads * headDim]);
  };
}

/**
 * Appends to a KV cache in place. A prefix fills the first places of the cache when the prompt passes: its rows go in
 * before the prompt's with queries of zeros, whose results are dropped.
 */
function cachedAttention(
  g: Graph,
  config: BackboneConfig,
  tokens: Value,
  mode: Extract<AttentionMode, { kind: "cached" }>,
): OneAttention {
  const { numHeads, numKvHeads, headDim } = config;
  const [B, T] = tokens.shape as [Dim, Dim];
  const { cos, sin } = tables(g, config);
  const rows = (x: Value) => reshape(x, [B, T, x.shape[1]!]);
  const positions = () => {
    const first = sub(cast(mode.lastPositions, "int64"), dimScalar(g, addDims(T, -1)));
    return add(unsqueeze(first, [1]), unsqueeze(range(g, 0, T), [0])); // int64 [B, T]
  };
  const rotated = (x: Value, count: number) => {
    const perHead = transpose(reshape(x, [B, T, count, headDim]), [0, 2, 1, 3]); // [B, heads, T, dh]
    return reshape(transpose(rotary(perHead, positions(), cos, sin), [0, 2, 1, 3]), [B, T, count * headDim]);
  };
  return (layer, q, k, v, prefix) => {
    // ONNX Runtime's fused rotation wants head sizes in multiples of 16, and would rotate a prefix too.
    const fused = headDim % 16 === 0 && prefix === undefined;
    let query = fused ? rows(q) : rotated(q, numHeads);
    let key = fused ? rows(k) : rotated(k, numKvHeads);
    let value = rows(v);
    if (prefix) {
      const P = prefix.length;
      const first = (x: Value) => expand(x, [B, P, numKvHeads * headDim]);
      query = concat([zeros(g, [B, P, numHeads * headDim]), query], 1);
      key = concat([first(prefix.key), key], 1);
      value = concat([first(prefix.value), value], 1);
    }
    const cacheShape = [B, numKvHeads, "S", headDim];
    const result = groupQueryAttention({
      query,
      key,
      value,
      pastKey: g.input(`past.${layer}.key`, "float32", cacheShape),
      pastValue: g.input(`past.${layer}.value`, "float32", cacheShape),
      seqlensK: mode.lastPositions,
      totalSequenceLength: mode.totalLength,
      ...(fused ? { cos, sin } : {}),
      numHeads,
      kvNumHeads: numKvHeads,
    });
    g.output(`present.${layer}.key`, result.presentKey);
    g.output(`present.${layer}.value`, result.presentValue);
    const own = prefix ? slice(result.y, 1, prefix.length) : result.y; // [B, T, heads · headDim]
    return reshape(own, [q.shape[0]!, numHeads * headDim]);
  };
}
