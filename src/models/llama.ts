/** @file The LLaMA family: the decoder's forward pass as one graph, read top to bottom. */
import {
  add,
  type Dim,
  type Graph,
  gather,
  gemm,
  matmulNBits,
  mul,
  mulDims,
  reshape,
  rmsNorm,
  silu,
  skipRmsNorm,
  split,
  type Value,
} from "../graph/index.ts";
import { attentionOf } from "./attention.ts";
import type { BackboneConfig } from "./config.ts";
import {
  type ForwardInputs,
  type ForwardOutputs,
  type FrozenWeights,
  type KeyValueOf,
  quantizedNames,
  type Site,
  type SiteWeight,
  type WeightForm,
} from "./forward.ts";
import type { FusedWeight } from "./fuse.ts";

/** The seven linear modules of a layer, in the order of the paper's experts. */
export function llamaSites(config: BackboneConfig): Site[] {
  const { hiddenSize: d, intermediateSize: ffn, headDim } = config;
  const q = config.numHeads * headDim;
  const kv = config.numKvHeads * headDim;
  const modules: [string, string, number, number, boolean][] = [
    ["self_attn", "q_proj", d, q, true],
    ["self_attn", "k_proj", d, kv, true],
    ["self_attn", "v_proj", d, kv, true],
    ["self_attn", "o_proj", q, d, false],
    ["mlp", "gate_proj", d, ffn, true],
    ["mlp", "up_proj", d, ffn, true],
    ["mlp", "down_proj", ffn, d, false],
  ];
  return Array.from({ length: config.numLayers }, (_, layer) =>
    modules.map(([block, module, inFeatures, outFeatures, readsBlockInput]) => ({
      path: `model.layers.${layer}.${block}.${module}`,
      layer,
      module,
      inFeatures,
      outFeatures,
      readsBlockInput,
    })),
  ).flat();
}

function fusedOf(layer: number): [qkv: FusedWeight, gateUp: FusedWeight] {
  const of = (block: string, name: string, modules: readonly string[]): FusedWeight => {
    const weight = (module: string) => `model.layers.${layer}.${block}.${module}.weight`;
    return { name: weight(name), parts: modules.map(weight) };
  };
  return [
    of("self_attn", "qkv_proj", ["q_proj", "k_proj", "v_proj"]),
    of("mlp", "gate_up_proj", ["gate_proj", "up_proj"]),
  ];
}

/** Weights that decoding wants put together. */
export function llamaFused(config: BackboneConfig): FusedWeight[] {
  return Array.from({ length: config.numLayers }, (_, layer) => fusedOf(layer)).flat();
}

/** rows [R, in] times the frozen weight `name` [out, in], transposed, in whatever form it is stored. */
function project(
  g: Graph,
  { form, differentiable }: { form: WeightForm; differentiable: boolean },
  name: string,
  rows: Value,
  outFeatures: number,
): Value {
  const inFeatures = rows.shape[1] as number;
  if (form.kind === "float32") {
    return gemm(rows, g.parameter(name, "float32", [outFeatures, inFeatures]), { transB: true });
  }
  const blocks = Math.ceil(inFeatures / form.blockSize);
  const { kind, blockSize } = form;
  const bits = kind === "int4" ? 4 : 8;
  const names = quantizedNames(name, kind);
  const weight = {
    quantized: g.parameter(names.quantized, "uint8", [outFeatures, blocks, (blockSize * bits) / 8]),
    scales: g.parameter(names.scales, "float32", [outFeatures * blocks]),
    K: inFeatures,
    N: outFeatures,
    bits,
    blockSize,
  } as const;
  if (!differentiable) return matmulNBits(rows, { ...weight, accuracyLevel: 4 });
  const levels = () =>
    g.parameter(names.levels, kind === "int4" ? "uint4" : "uint8", [outFeatures, blocks * blockSize]);
  return matmulNBits(rows, { ...weight, levels, accuracyLevel: 1 });
}

const EMBEDDING = "model.embed_tokens.weight";
const HEAD = "lm_head.weight";

/** The decoder: embeddings, layers of attention and gated feed-forward with pre-norms, final norm, head. */
export function llamaForward(
  g: Graph,
  config: BackboneConfig,
  frozen: FrozenWeights,
  { tokens, attention: mode, hooks = {}, differentiable = false }: ForwardInputs,
): ForwardOutputs {
  const stored = { form: frozen.form, differentiable };
  const { hiddenSize: d, vocabSize, rmsNormEps } = config;
  const [B, T] = tokens.shape as [Dim, Dim];
  const embed = (): Value => {
    const found = gather(g.parameter(EMBEDDING, "float32", [vocabSize, d]), tokens, 0);
    const change = hooks.change?.(EMBEDDING);
    return reshape(change ? add(found, gather(change, tokens, 0)) : found, [mulDims(B, T), d]);
  };
  const normWeight = (name: string): Value => {
    const weight = g.parameter(`${name}.weight`, "float32", [d]);
    const change = hooks.change?.(`${name}.weight`);
    return change ? add(weight, change) : weight;
  };
  /** Adds a block's output to the residual stream and normalises the sum: one node where no gradient is needed. */
  const addNorm = (name: string, residual: Value, delta: Value): { sum: Value; y: Value } => {
    if (mode.kind === "cached") return skipRmsNorm(delta, residual, normWeight(name), rmsNormEps);
    const sum = add(residual, delta);
    return { sum, y: rmsNorm(sum, normWeight(name), rmsNormEps) };
  };
  const attend = attentionOf(g, config, tokens, mode);
  const sites = new Map(llamaSites(config).map((site) => [site.path, site]));
  const linear = (path: string, x: Value, product?: Value): Value =>
    g.scope(path, () => {
      const site = sites.get(path)!;
      const weight: SiteWeight = {
        project: (rows) => project(g, stored, `${path}.weight`, rows, site.outFeatures),
        squaredNorms() {
          frozen.provideNorms(site);
          return g.parameter(`${path}.weight.norms`, "float32", [site.outFeatures]);
        },
      };
      const y = product ?? weight.project(x);
      return hooks.linear?.(site, x, y, weight) ?? y;
    });
  // One token a row is bound by the number of products; many tokens by arithmetic, and there splitting costs more.
  const fuses = frozen.form.kind !== "float32" && mode.kind === "cached" && T === 1;
  /** Modules that read the same rows x. */
  const linears = (fused: FusedWeight, x: Value): Value[] => {
    const paths = fused.parts.map((part) => part.replace(/\.weight$/, ""));
    if (!fuses) return paths.map((path) => linear(path, x));
    const sizes = paths.map((path) => sites.get(path)!.outFeatures);
    const all = project(
      g,
      stored,
      fused.name,
      x,
      sizes.reduce((a, b) => a + b),
    ); // [N, Σ out]
    return split(all, 1, sizes).map((y, i) => linear(paths[i]!, x, y));
  };
  const block = (layer: number, name: "self_attn" | "mlp", x: Value, y: Value): Value =>
    g.scope(`model.layers.${layer}.${name}`, () => hooks.block?.(layer, name, x, y) ?? y);

  let hidden = embed(); // [N, d], the residual stream
  let x = rmsNorm(hidden, normWeight("model.layers.0.input_layernorm"), rmsNormEps);
  for (let layer = 0; layer < config.numLayers; layer++) {
    const at = `model.layers.${layer}`;
    const next = layer + 1 < config.numLayers ? `model.layers.${layer + 1}.input_layernorm` : "model.norm";
    g.scope(at, () => hooks.beforeLayer?.(layer, hidden));
    const [qkv, gateUp] = fusedOf(layer);
    const [q, k, v] = linears(qkv, x) as [Value, Value, Value];
    const keyValueOf: KeyValueOf = (rows) => {
      const normalized = rmsNorm(rows, normWeight(`${at}.input_layernorm`), rmsNormEps);
      const frozen = (module: string): Value => {
        const path = `${at}.self_attn.${module}`;
        return project(g, stored, `${path}.weight`, normalized, sites.get(path)!.outFeatures);
      };
      return { key: frozen("k_proj"), value: frozen("v_proj") };
    };
    const mixed = g.scope(`${at}.self_attn`, () => attend(layer, q, k, v, hooks.prefix?.(layer, keyValueOf)));
    const attention = block(layer, "self_attn", x, linear(`${at}.self_attn.o_proj`, mixed));
    const { sum: attended, y: z } = addNorm(`${at}.post_attention_layernorm`, hidden, attention);
    const [gate, up] = linears(gateUp, z) as [Value, Value];
    const gated = mul(silu(gate), up); // [N, ffn]
    const mlp = block(layer, "mlp", z, linear(`${at}.mlp.down_proj`, gated));
    ({ sum: hidden, y: x } = addNorm(next, attended, mlp));
  }

  return {
    hidden: x,
    logits: (rows) => {
      const tied = config.tieWordEmbeddings ? EMBEDDING : HEAD;
      const y = project(g, stored, frozen.form.kind === "float32" ? tied : HEAD, rows, vocabSize); // [R, V]
      const change = hooks.change?.(tied);
      return change ? gemm(rows, change, { c: y, transB: true }) : y;
    },
  };
}
