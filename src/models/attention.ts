/** @file Causal attention with rotary positions, in two forms: differentiable over whole sequences, and over a KV cache. */
import {
  add,
  addDims,
  and,
  cast,
  concat,
  cos,
  type Dim,
  dimScalar,
  equal,
  exp,
  expand,
  fusedMatmul,
  type Graph,
  gather,
  greater,
  greaterEqual,
  groupQueryAttention,
  hasOwnAttention,
  less,
  log,
  matmul,
  max,
  maximum,
  mul,
  mulDims,
  narrow,
  range,
  reshape,
  rotary,
  sin,
  slice,
  softmax,
  split,
  sub,
  tanh,
  transpose,
  unsqueeze,
  type Value,
  where,
  widen,
  zeros,
} from "../graph/index.ts";
import type { BackboneConfig } from "./config.ts";
import type { AttentionMode, AttentionPrefix, JoinedBatch, PackedRows } from "./forward.ts";
import { type LayerRope, ropeOfLayer, rotaryDimOf, type VaryingScaling, varyingScaling } from "./rope.ts";

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

/** Layers that compute alike: scores, window, rotation. */
interface LayerAttention {
  /** Factor on scores, where it is not 1 / √headDim. */
  readonly scale: number | undefined;
  readonly softcap: number | undefined;
  /** Tokens that a token sees, itself included; undefined: all before it. */
  readonly window: number | undefined;
  readonly rope: LayerRope;
}

function layerAttention(config: BackboneConfig, layer: number): LayerAttention {
  const { attentionScale: scale, attentionSoftcap: softcap, slidingWindow } = config;
  const window = slidingWindow?.layers.includes(layer) ? slidingWindow.size : undefined;
  return { scale, softcap, window, rope: ropeOfLayer(config, layer) };
}

/** Cosines and sines, and the rows of them at which tokens stand. */
interface Rotation {
  readonly cos: Value; // [positions, rotaryDim / 2]
  readonly sin: Value;
  readonly positions: Value; // int64 [B, T], or [1]: the first
}

/** x [B, heads, T, headDim], its first `rotaryDim` features rotated. */
function rotate(config: BackboneConfig, x: Value, { cos, sin, positions }: Rotation): Value {
  const n = rotaryDimOf(config);
  if (n === config.headDim) return rotary(x, positions, cos, sin);
  return concat([rotary(slice(x, 3, 0, n), positions, cos, sin), slice(x, 3, n)], 3);
}

/** Whole tables; LongRoPE's have the rows for long sequences after those for short ones. */
function tables(g: Graph, config: BackboneConfig, { rope, cos, sin }: LayerRope): { cos: Value; sin: Value } {
  const variants = varyingScaling(rope)?.kind === "longrope" ? 2 : 1;
  const shape = [variants * config.maxPositions, rotaryDimOf(config) / 2];
  return { cos: g.parameter(cos, "float32", shape), sin: g.parameter(sin, "float32", shape) };
}

/** How many rows further down the tables begin for sequences of this length: int64 []. */
function longOffset(g: Graph, config: BackboneConfig, length: Value, original: number): Value {
  return where(greater(length, original), g.scalar(config.maxPositions, "int64"), g.scalar(0, "int64"));
}

/**
 * Dynamic scaling, whose frequencies θ'^(-2i/n) follow from the length of the sequence, int64 [], by
 * θ' = θ (factor · length / original - (factor - 1))^(n/(n-2)): the tables' rows for `positions` int64 [R].
 */
function dynamicTables(
  config: BackboneConfig,
  theta: number,
  { factor, original }: VaryingScaling & { kind: "dynamic" },
  length: Value,
  positions: Value,
): { cos: Value; sin: Value } {
  const g = length.graph;
  const n = rotaryDimOf(config);
  const grown = sub(mul(maximum(cast(length, "float32"), original), factor / original), factor - 1);
  const logBase = add(mul(log(grown), n / (n - 2)), Math.log(theta)); // []
  const exponents = Array.from({ length: n / 2 }, (_, i) => (-2 * i) / n);
  const frequencies = exp(mul(g.constant("float32", [1, n / 2], exponents), logBase)); // [1, n / 2]
  const angles = mul(unsqueeze(cast(positions, "float32"), [1]), frequencies); // [R, n / 2]
  return { cos: cos(angles), sin: sin(angles) };
}

/** Rows 0 … P + T - 1 of the tables of sequences that are computed whole. */
function fullTables(g: Graph, config: BackboneConfig, layer: LayerRope, total: Dim, packed: PackedRows | undefined) {
  const scaling = varyingScaling(layer.rope);
  if (scaling === undefined) {
    const whole = tables(g, config, layer);
    // Only the rows in use. The gradient negates them: of a whole table the runtime would do that when it loads the
    // graph, for which it copies every weight into the session.
    return { cos: slice(whole.cos, 0, 0, total), sin: slice(whole.sin, 0, 0, total) }; // [P + T, rotaryDim / 2]
  }
  const T = packed?.positions.shape[1];
  const unused = packed && sub(dimScalar(g, T!), add(max(packed.positions, { axes: [0, 1], keepDims: false }), 1));
  const length = unused ? sub(dimScalar(g, total), unused) : dimScalar(g, total); // of the longest sequence
  const positions = range(g, 0, total);
  if (scaling.kind === "dynamic") return dynamicTables(config, layer.rope.theta, scaling, length, positions);
  const rows = add(positions, longOffset(g, config, length, scaling.original));
  const whole = tables(g, config, layer);
  return { cos: gather(whole.cos, rows, 0), sin: gather(whole.sin, rows, 0) };
}

/** Additive mask [T, P + T]: 0 where row t may look, which is the prefix and columns up to its own; -1e30 elsewhere. */
function causalMask(g: Graph, T: Dim, prefixLength: number, window: number | undefined): Value {
  const columns = unsqueeze(sub(range(g, 0, addDims(prefixLength, T)), prefixLength), [0]); // [1, P + T], own from 0 on
  const rows = unsqueeze(range(g, 0, T), [1]);
  const before = greaterEqual(rows, columns);
  const visible = window === undefined ? before : and(before, less(sub(rows, columns), window));
  return where(visible, g.scalar(0), -1e30);
}

/** The same for rows of several sequences, each of which sees itself and the prefix: [B, 1, T, P + T]. */
function packedMask(
  g: Graph,
  { segments, positions }: PackedRows,
  prefixLength: number,
  window: number | undefined,
): Value {
  const [B, T] = segments.shape as [Dim, Dim];
  const same = equal(unsqueeze(segments, [1, 3]), unsqueeze(segments, [1, 2])); // [B, 1, T, T]
  const own = add(where(same, g.scalar(0), -1e30), causalMask(g, T, 0, window));
  if (prefixLength === 0) return own;
  if (window === undefined) return concat([zeros(g, [B, 1, T, prefixLength]), own], 3);
  const columns = g.constant(
    "int64",
    [1, 1, 1, prefixLength],
    Array.from({ length: prefixLength }, (_, i) => i - prefixLength),
  );
  const near = less(sub(unsqueeze(positions, [1, 3]), columns), window); // [B, 1, T, P]
  return concat([where(near, g.scalar(0), -1e30), own], 3);
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
  const heads = (x: Value, count: number, length: Dim = T) =>
    transpose(reshape(x, [B, length, count, headDim]), [0, 2, 1, 3]);
  return (layer, q, k, v, prefix) => {
    const { scale = 1 / Math.sqrt(headDim), softcap, window, rope } = layerAttention(config, layer);
    const P = prefix?.length ?? 0;
    // Row i of a sequence stands at position P + i.
    const positions = packed ? add(packed.positions, P) : g.constant("int64", [1], [P]); // [B, T] or [1]
    const total = addDims(P, T);
    const rotation = { ...fullTables(g, config, rope, total, packed), positions };
    const mask = packed
      ? reshape(expand(packedMask(g, packed, P, window), [B, shared, T, total]), [B, 1, stacked, total])
      : reshape(expand(causalMask(g, T, P, window), [shared, T, total]), [stacked, total]);
    const before = (own: Value, given: Value | undefined) =>
      given === undefined ? own : concat([heads(expand(given, [B, P, given.shape[2]!]), numKvHeads, P), own], 2);
    const queries = rotate(config, heads(q, numHeads), rotation); // [B, H, T, dh]
    const keys = before(rotate(config, heads(k, numKvHeads), rotation), prefix?.key); // [B, Hkv, P + T, dh]
    const values = before(heads(v, numKvHeads), prefix?.value);
    const rows = reshape(queries, [B, numKvHeads, stacked, headDim]);
    const product = fusedMatmul(rows, keys, { transB: true, alpha: softcap === undefined ? scale : scale / softcap });
    const scores = softcap === undefined ? product : mul(tanh(product), softcap); // [B, Hkv, shared·T, P + T]
    const mixed = matmul(softmax(add(scores, mask), -1), values); // [B, Hkv, shared·T, dh]
    const perHead = reshape(mixed, [B, numHeads, T, headDim]);
    return reshape(transpose(perHead, [0, 2, 1, 3]), [q.shape[0]!, numHeads * headDim]);
  };
}

/** Width of a head in the KV cache: the runtime's attention takes multiples of 8, narrower heads are filled with zeros. */
function cacheHeadDim({ headDim }: BackboneConfig): number {
  return Math.ceil(headDim / 8) * 8;
}

/** Whether rotation is part of attention: the runtime's wants features in multiples of 16, and has one table for all lengths. */
function isFused(config: BackboneConfig, { rope }: LayerRope): boolean {
  const whole = config.headDim % 16 === 0 && rotaryDimOf(config) % 16 === 0;
  return whole && varyingScaling(rope) === undefined;
}

/** Whether attention of every layer may read a cache of float16 as it is, see `hasOwnAttention`; prefixes are another matter. */
export function readsHalves(config: BackboneConfig): boolean {
  return Array.from({ length: config.numLayers }, (_, layer) => layerAttention(config, layer)).every(
    ({ rope, softcap }) => isFused(config, rope) && softcap === undefined,
  );
}

/** Numbers that a position of a head takes in the KV cache, as float32: half as many where each holds two of float16. */
export function cacheWidth(config: BackboneConfig, halves: boolean): number {
  return cacheHeadDim(config) / (halves ? 2 : 1);
}

/** Fills heads up with zeros: [B, T, count · from] → [B, T, count · to]. */
function widened(g: Graph, x: Value, count: number, from: number, to: number): Value {
  if (from === to) return x;
  const [B, T] = x.shape as [Dim, Dim];
  const filling = zeros(g, [B, T, count, to - from]);
  return reshape(concat([reshape(x, [B, T, count, from]), filling], 3), [B, T, count * to]);
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
  const rows = (x: Value) => reshape(x, [B, T, x.shape[1]!]);
  const rotationOf = (layer: LayerRope): Rotation => {
    const scaling = varyingScaling(layer.rope);
    const first = sub(cast(mode.lastPositions, "int64"), dimScalar(g, addDims(T, -1)));
    const positions = add(unsqueeze(first, [1]), unsqueeze(range(g, 0, T), [0])); // int64 [B, T]
    const length = () => cast(mode.totalLength, "int64");
    if (scaling?.kind === "dynamic") {
      const all = mulDims(B, T);
      const own = dynamicTables(config, layer.rope.theta, scaling, length(), reshape(positions, [all]));
      return { ...own, positions: reshape(range(g, 0, all), [B, T]) };
    }
    const whole = tables(g, config, layer);
    if (scaling === undefined) return { ...whole, positions };
    return { ...whole, positions: add(positions, longOffset(g, config, length(), scaling.original)) };
  };
  const rotated = (x: Value, count: number, rotation: Rotation) => {
    const perHead = transpose(reshape(x, [B, T, count, headDim]), [0, 2, 1, 3]); // [B, heads, T, dh]
    return reshape(transpose(rotate(config, perHead, rotation), [0, 2, 1, 3]), [B, T, count * headDim]);
  };
  return (layer, q, k, v, prefix) => {
    const { scale, softcap, window, rope } = layerAttention(config, layer);
    const fused = prefix === undefined && isFused(config, rope);
    const rotation = fused ? undefined : rotationOf(rope);
    let query = rotation ? rotated(q, numHeads, rotation) : rows(q);
    let key = rotation ? rotated(k, numKvHeads, rotation) : rows(k);
    let value = rows(v);
    if (prefix) {
      const P = prefix.length;
      const first = (x: Value) => expand(x, [B, P, numKvHeads * headDim]);
      query = concat([zeros(g, [B, P, numHeads * headDim]), query], 1);
      key = concat([first(prefix.key), key], 1);
      value = concat([first(prefix.value), value], 1);
    }
    const width = cacheHeadDim(config);
    const { halves = false } = mode;
    const cacheShape = [B, numKvHeads, "S", cacheWidth(config, halves)];
    const fits = halves && hasOwnAttention(g, { rotated: fused, headDim: width, softcap });
    const [read, written] = halves && !fits ? [widen, narrow] : [(x: Value) => x, (x: Value) => x];
    const result = groupQueryAttention({
      query: widened(g, query, numHeads, headDim, width),
      key: widened(g, key, numKvHeads, headDim, width),
      value: widened(g, value, numKvHeads, headDim, width),
      pastKey: read(g.input(`past.${layer}.key`, "float32", cacheShape)),
      pastValue: read(g.input(`past.${layer}.value`, "float32", cacheShape)),
      halves: fits,
      seqlensK: mode.lastPositions,
      totalSequenceLength: mode.totalLength,
      ...(fused ? tables(g, config, rope) : {}),
      numHeads,
      kvNumHeads: numKvHeads,
      ...(scale === undefined && width === headDim ? {} : { scale: scale ?? 1 / Math.sqrt(headDim) }),
      ...(softcap !== undefined && { softcap }),
      ...(window !== undefined && { localWindowSize: window }),
    });
    g.output(`present.${layer}.key`, written(result.presentKey));
    g.output(`present.${layer}.value`, written(result.presentValue));
    const own = prefix ? slice(result.y, 1, prefix.length) : result.y; // [B, T, heads · width]
    if (width === headDim) return reshape(own, [q.shape[0]!, numHeads * headDim]);
    const heads = slice(reshape(own, [q.shape[0]!, numHeads, width]), 2, 0, headDim);
    return reshape(heads, [q.shape[0]!, numHeads * headDim]);
  };
}
