/** @file The forward pass that all families share, as one graph, read top to bottom; the config says what is in it. */
import {
  add,
  type Dim,
  type Graph,
  gather,
  gemm,
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
import type { ForwardInputs, ForwardOutputs, FrozenWeights, KeyValueOf, SiteWeight } from "./forward.ts";
import type { FusedWeight } from "./fuse.ts";
import { EMBEDDING, FINAL_NORM, fusedOfLayer, HEAD, layerPath, sitesOf } from "./layout.ts";
import { project } from "./linear.ts";

/** The decoder: embeddings, layers of attention and gated feed-forward with pre-norms, final norm, head. */
export function decoderForward(
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
  const sites = new Map(sitesOf(config).map((site) => [site.path, site]));
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
    const width = sizes.reduce((a, b) => a + b);
    const all = project(g, stored, fused.name, x, width); // [N, Σ out]
    return split(all, 1, sizes).map((y, i) => linear(paths[i]!, x, y));
  };
  const block = (layer: number, name: "self_attn" | "mlp", x: Value, y: Value): Value =>
    g.scope(`${layerPath(layer)}.${name}`, () => hooks.block?.(layer, name, x, y) ?? y);

  let hidden = embed(); // [N, d], the residual stream
  let x = rmsNorm(hidden, normWeight(`${layerPath(0)}.input_layernorm`), rmsNormEps);
  for (let layer = 0; layer < config.numLayers; layer++) {
    const at = layerPath(layer);
    const next = layer + 1 < config.numLayers ? `${layerPath(layer + 1)}.input_layernorm` : FINAL_NORM;
    g.scope(at, () => hooks.beforeLayer?.(layer, hidden));
    const { qkv, gateUp } = fusedOfLayer(layer);
    const [q, k, v] = linears(qkv, x) as [Value, Value, Value];
    const keyValueOf: KeyValueOf = (rows) => {
      const normalized = rmsNorm(rows, normWeight(`${at}.input_layernorm`), rmsNormEps);
      const own = (module: string): Value => {
        const path = `${at}.self_attn.${module}`;
        return project(g, stored, `${path}.weight`, normalized, sites.get(path)!.outFeatures);
      };
      return { key: own("k_proj"), value: own("v_proj") };
    };
    const mixed = g.scope(`${at}.self_attn`, () => {
      const prefixes = hooks.prefixes?.(layer, keyValueOf) ?? [hooks.prefix?.(layer, keyValueOf)];
      return attend(layer, q, k, v, prefixes);
    });
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
