/** @file The LLaMA family: the decoder's forward pass as one graph, read top to bottom. */
import {
  add,
  addDims,
  cast,
  type Dim,
  dimScalar,
  expand,
  fusedMatmul,
  type Graph,
  gather,
  gemm,
  greaterEqual,
  groupQueryAttention,
  matmul,
  matmulNBits,
  mul,
  mulDims,
  range,
  reshape,
  rmsNorm,
  rotary,
  silu,
  skipRmsNorm,
  softmax,
  sub,
  transpose,
  unsqueeze,
  type Value,
  where,
} from "../graph/index.ts";
import type { BackboneConfig } from "./config.ts";
import type { ForwardInputs, ForwardOutputs, Site, WeightForm } from "./forward.ts";

/** The seven linear modules of a layer, in the order of the paper's experts. */
export function llamaSites(config: BackboneConfig): Site[] {
  const { hiddenSize: d, intermediateSize: ffn, headDim } = config;
  const q = config.numHeads * headDim;
  const kv = config.numKvHeads * headDim;
  const modules: [string, string, number, number][] = [
    ["self_attn", "q_proj", d, q],
    ["self_attn", "k_proj", d, kv],
    ["self_attn", "v_proj", d, kv],
    ["self_attn", "o_proj", q, d],
    ["mlp", "gate_proj", d, ffn],
    ["mlp", "up_proj", d, ffn],
    ["mlp", "down_proj", ffn, d],
  ];
  return Array.from({ length: config.numLayers }, (_, layer) =>
    modules.map(([block, module, inFeatures, outFeatures]) => ({
      path: `model.layers.${layer}.${block}.${module}`,
      layer,
      module,
      inFeatures,
      outFeatures,
    })),
  ).flat();
}

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

/** x [N, in] times the frozen weight `name` [out, in], transposed, in whatever form it is stored. */
function project(g: Graph, form: WeightForm, name: string, x: Value, inFeatures: number, outFeatures: number): Value {
  if (form.kind === "float32")
    return gemm(x, g.parameter(name, "float32", [outFeatures, inFeatures]), { transB: true });
  const blocks = Math.ceil(inFeatures / form.blockSize);
  return matmulNBits(x, {
    quantized: g.parameter(`${name}.q4`, "uint8", [outFeatures, blocks, form.blockSize / 2]),
    scales: g.parameter(`${name}.scales`, "float32", [outFeatures * blocks]),
    K: inFeatures,
    N: outFeatures,
    bits: 4,
    blockSize: form.blockSize,
    accuracyLevel: 4,
  });
}

type Attention = (layer: number, q: Value, k: Value, v: Value) => Value; // [N, heads · headDim] each

/**
 * Causal attention over whole sequences from differentiable operations. The query heads that share a key-value head
 * are stacked along the sequence, so that keys and values are never repeated.
 */
function fullAttention(g: Graph, config: BackboneConfig, tokens: Value): Attention {
  const { numHeads, numKvHeads, headDim, maxPositions } = config;
  const [B, T] = tokens.shape as [Dim, Dim];
  const shared = numHeads / numKvHeads;
  const stacked = mulDims(shared, T);
  const cos = g.parameter(COS, "float32", [maxPositions, headDim / 2]);
  const sin = g.parameter(SIN, "float32", [maxPositions, headDim / 2]);
  const start = g.constant("int64", [1], [0]); // row i of a sequence stands at position i
  const positions = range(g, 0, T); // int64 [T]
  const visible = greaterEqual(unsqueeze(positions, [1]), unsqueeze(positions, [0])); // [T, T]
  const mask = reshape(expand(where(visible, g.scalar(0), -1e30), [shared, T, T]), [stacked, T]);
  const heads = (x: Value, count: number) => transpose(reshape(x, [B, T, count, headDim]), [0, 2, 1, 3]);
  return (_, q, k, v) => {
    const queries = rotary(heads(q, numHeads), start, cos, sin); // [B, H, T, dh]
    const keys = rotary(heads(k, numKvHeads), start, cos, sin); // [B, Hkv, T, dh]
    const rows = reshape(queries, [B, numKvHeads, stacked, headDim]);
    const scores = fusedMatmul(rows, keys, { transB: true, alpha: 1 / Math.sqrt(headDim) }); // [B, Hkv, shared·T, T]
    const mixed = matmul(softmax(add(scores, mask), -1), heads(v, numKvHeads)); // [B, Hkv, shared·T, dh]
    const perHead = reshape(mixed, [B, numHeads, T, headDim]);
    return reshape(transpose(perHead, [0, 2, 1, 3]), [q.shape[0]!, numHeads * headDim]);
  };
}

/** Attention that appends to a KV cache in place. */
function cachedAttention(
  g: Graph,
  config: BackboneConfig,
  tokens: Value,
  mode: Extract<ForwardInputs["attention"], { kind: "cached" }>,
): Attention {
  const { numHeads, numKvHeads, headDim, maxPositions } = config;
  const [B, T] = tokens.shape as [Dim, Dim];
  const cos = g.parameter(COS, "float32", [maxPositions, headDim / 2]);
  const sin = g.parameter(SIN, "float32", [maxPositions, headDim / 2]);
  const rows = (x: Value) => reshape(x, [B, T, x.shape[1]!]);
  // ONNX Runtime's fused rotation wants head sizes in multiples of 16; others are rotated before.
  const fused = headDim % 16 === 0;
  const positions = () => {
    const first = sub(cast(mode.lastPositions, "int64"), dimScalar(g, addDims(T, -1)));
    return add(unsqueeze(first, [1]), unsqueeze(range(g, 0, T), [0])); // int64 [B, T]
  };
  const rotated = (x: Value, heads: number) => {
    if (fused) return rows(x);
    const perHead = transpose(reshape(x, [B, T, heads, headDim]), [0, 2, 1, 3]); // [B, heads, T, dh]
    return reshape(transpose(rotary(perHead, positions(), cos, sin), [0, 2, 1, 3]), [B, T, heads * headDim]);
  };
  return (layer, q, k, v) => {
    const cacheShape = [B, numKvHeads, "S", headDim];
    const result = groupQueryAttention({
      query: rotated(q, numHeads),
      key: rotated(k, numKvHeads),
      value: rows(v),
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
    return reshape(result.y, [q.shape[0]!, numHeads * headDim]);
  };
}

/** The decoder: embeddings, layers of attention and gated feed-forward with pre-norms, final norm, head. */
export function llamaForward(
  g: Graph,
  config: BackboneConfig,
  form: WeightForm,
  { tokens, attention: mode, hooks = {} }: ForwardInputs,
): ForwardOutputs {
  const { hiddenSize: d, vocabSize, rmsNormEps } = config;
  const [B, T] = tokens.shape as [Dim, Dim];
  const embeddings = () => g.parameter("model.embed_tokens.weight", "float32", [vocabSize, d]);
  const normWeight = (name: string) => g.parameter(`${name}.weight`, "float32", [d]);
  /** Adds a block's output to the residual stream and normalises the sum: one node where no gradient is needed. */
  const addNorm = (name: string, residual: Value, delta: Value): { sum: Value; y: Value } => {
    if (mode.kind === "cached") return skipRmsNorm(delta, residual, normWeight(name), rmsNormEps);
    const sum = add(residual, delta);
    return { sum, y: rmsNorm(sum, normWeight(name), rmsNormEps) };
  };
  const attend = mode.kind === "full" ? fullAttention(g, config, tokens) : cachedAttention(g, config, tokens, mode);
  const sites = new Map(llamaSites(config).map((site) => [site.path, site]));
  const linear = (path: string, x: Value): Value =>
    g.scope(path, () => {
      const site = sites.get(path)!;
      const y = project(g, form, `${path}.weight`, x, site.inFeatures, site.outFeatures);
      return hooks.linear?.(site, x, y) ?? y;
    });

  let hidden = reshape(gather(embeddings(), tokens, 0), [mulDims(B, T), d]); // [N, d], the residual stream
  let x = rmsNorm(hidden, normWeight("model.layers.0.input_layernorm"), rmsNormEps);
  for (let layer = 0; layer < config.numLayers; layer++) {
    const at = `model.layers.${layer}`;
    const next = layer + 1 < config.numLayers ? `model.layers.${layer + 1}.input_layernorm` : "model.norm";
    g.scope(at, () => hooks.beforeLayer?.(layer, hidden));
    const q = linear(`${at}.self_attn.q_proj`, x);
    const k = linear(`${at}.self_attn.k_proj`, x);
    const v = linear(`${at}.self_attn.v_proj`, x);
    const mixed = g.scope(`${at}.self_attn`, () => attend(layer, q, k, v));
    const attended = addNorm(`${at}.post_attention_layernorm`, hidden, linear(`${at}.self_attn.o_proj`, mixed));
    const gate = silu(linear(`${at}.mlp.gate_proj`, attended.y));
    const gated = mul(gate, linear(`${at}.mlp.up_proj`, attended.y)); // [N, ffn]
    ({ sum: hidden, y: x } = addNorm(next, attended.sum, linear(`${at}.mlp.down_proj`, gated)));
  }

  return {
    hidden: x,
    logits: (rows) => {
      const name = form.kind === "float32" && config.tieWordEmbeddings ? "model.embed_tokens.weight" : "lm_head.weight";
      return project(g, form, name, rows, d, vocabSize);
    },
  };
}
