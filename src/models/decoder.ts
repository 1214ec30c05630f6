/** @file The forward pass that all families share, as one graph, read top to bottom; the config says what is in it. */
import { sum } from "../base/index.ts";
import {
  add,
  type Dim,
  type Graph,
  gatedSilu,
  gather,
  geluTanh,
  gemm,
  mul,
  mulDims,
  reshape,
  rmsNorm,
  silu,
  skipRmsNorm,
  split,
  tanh,
  type Value,
} from "../graph/index.ts";
import { attentionOf } from "./attention.ts";
import type { BackboneConfig } from "./config.ts";
import type { ForwardInputs, ForwardOutputs, FrozenWeights, KeyValueOf, SiteWeight } from "./forward.ts";
import {
  EMBEDDING,
  FINAL_NORM,
  HEAD,
  headNormsOf,
  type JointModules,
  jointModulesOf,
  layerPath,
  normsOf,
  sitesOf,
} from "./layout.ts";
import { project } from "./linear.ts";

const ACTIVATIONS = { silu, gelu_tanh: geluTanh } as const;

/** The decoder: embeddings, layers of attention and gated feed-forward between norms, final norm, head. */
export function decoderForward(
  g: Graph,
  config: BackboneConfig,
  frozen: FrozenWeights,
  { tokens, attention: mode, hooks = {}, differentiable = false, layers }: ForwardInputs,
): ForwardOutputs {
  const stored = { ...frozen, differentiable };
  const { hiddenSize: d, vocabSize, rmsNormEps } = config;
  const [B, T] = tokens.shape as [Dim, Dim];
  const embed = (): Value => {
    const found = gather(g.parameter(EMBEDDING, "float32", [vocabSize, d]), tokens, 0);
    const change = hooks.change?.(EMBEDDING);
    const changed = reshape(change ? add(found, gather(change, tokens, 0)) : found, [mulDims(B, T), d]);
    return config.embeddingScale === undefined ? changed : mul(changed, config.embeddingScale);
  };
  /** A norm's weight or a linear module's bias. */
  const vector = (name: string, width: number): Value => {
    const frozenVector = g.parameter(name, "float32", [width]);
    const change = hooks.change?.(name);
    return change ? add(frozenVector, change) : frozenVector;
  };
  const norm = (name: string, x: Value): Value => rmsNorm(x, vector(`${name}.weight`, d), rmsNormEps);
  const normIf = (name: string | undefined, x: Value): Value => (name === undefined ? x : norm(name, x));
  /** Each head of x [R, heads · headDim] by itself. */
  const headNorm = (name: string, x: Value): Value => {
    if (!config.qkNorm) return x;
    const { headDim } = config;
    const [R, width] = x.shape as [Dim, number];
    const heads = reshape(x, [mulDims(R, width / headDim), headDim]);
    return reshape(rmsNorm(heads, vector(`${name}.weight`, headDim), rmsNormEps), [R, width]);
  };
  /**
   * Adds a block's output to the residual stream and normalises the sum: one node where no gradient is needed, else the
   * norm is built where it is asked for, so that only the sum leaves its layer.
   */
  const addNorm = (name: string, residual: Value, delta: Value): { sum: Value; normed: () => Value } => {
    if (mode.kind === "cached") {
      const { sum, y } = skipRmsNorm(delta, residual, vector(`${name}.weight`, d), rmsNormEps);
      return { sum, normed: () => y };
    }
    const sum = add(residual, delta);
    return { sum, normed: () => norm(name, sum) };
  };
  const attend = attentionOf(g, config, tokens, mode);
  const sites = new Map(sitesOf(config).map((site) => [site.path, site]));
  const biasOf = (path: string): Value | undefined => {
    const { hasBias, outFeatures } = sites.get(path)!;
    return hasBias ? vector(`${path}.bias`, outFeatures) : undefined;
  };
  /** The frozen module alone; `product` is x Wᵀ where that is known. */
  const frozenLinear = (path: string, x: Value, product?: Value, bias = biasOf(path)): Value => {
    if (product === undefined) return project(g, stored, `${path}.weight`, x, sites.get(path)!.outFeatures, bias);
    return bias ? add(product, bias) : product;
  };
  /** The module with what the method makes of it. */
  const linear = (path: string, x: Value, product?: Value): Value =>
    g.scope(path, () => {
      const site = sites.get(path)!;
      const bias = biasOf(path);
      const weight: SiteWeight = {
        project: (rows) => project(g, stored, `${path}.weight`, rows, site.outFeatures),
        squaredNorms() {
          frozen.provideNorms(site);
          return g.parameter(`${path}.weight.norms`, "float32", [site.outFeatures]);
        },
        ...(bias && { bias }),
      };
      const y = frozenLinear(path, x, product, bias);
      return hooks.linear?.(site, x, y, weight) ?? y;
    });
  // Fewer products are faster for one token a row; for prompts it is the same, and the weights are packed only once.
  const fuses = frozen.form.kind !== "float32" && mode.kind === "cached";
  /** What `single` makes of each module's x Wᵀ. */
  const each = ({ path, parts, sizes }: JointModules, x: Value, single: typeof linear): Value[] => {
    if (config.fusedModules) return split(single(path, x), 1, sizes);
    if (!fuses) return parts.map((part) => single(part, x));
    const width = sum(sizes);
    const all = project(g, stored, `${path}.weight`, x, width); // [N, Σ out]
    const joined = parts.map((part) => sites.get(part)!);
    const changed = (single === linear && g.scope(path, () => hooks.joined?.(joined, x, all))) || all;
    return split(changed, 1, sizes).map((y, i) => single(parts[i]!, x, y));
  };
  const block = (layer: number, name: "self_attn" | "mlp", x: Value, y: Value): Value =>
    g.scope(`${layerPath(layer)}.${name}`, () => hooks.block?.(layer, name, x, y) ?? y);

  const { from, to, hidden: given } = layers ?? { from: 0, to: config.numLayers };
  let hidden = given ?? embed(); // [N, d], the residual stream
  let normed = () => norm(normsOf(config, from).beforeAttention, hidden);
  const decoderLayer = (layer: number): void => {
    const x = normed();
    const at = layerPath(layer);
    const norms = normsOf(config, layer);
    const next = layer + 1 < config.numLayers ? normsOf(config, layer + 1).beforeAttention : FINAL_NORM;
    g.scope(at, () => hooks.beforeLayer?.(layer, hidden));
    const { qkv, gateUp } = jointModulesOf(config, layer);
    const headNorms = headNormsOf(layer);
    const [q, k, v] = each(qkv, x, linear) as [Value, Value, Value];
    const keyValueOf: KeyValueOf = (rows) => {
      const [, key, value] = each(qkv, norm(norms.beforeAttention, rows), frozenLinear) as [Value, Value, Value];
      return { key: headNorm(headNorms.key, key), value };
    };
    const mixed = g.scope(`${at}.self_attn`, () => {
      const prefixes = hooks.prefixes?.(layer, keyValueOf) ?? [hooks.prefix?.(layer, keyValueOf)];
      return attend(layer, headNorm(headNorms.query, q), headNorm(headNorms.key, k), v, prefixes);
    });
    const attention = block(layer, "self_attn", x, linear(`${at}.self_attn.o_proj`, mixed));
    const middle = addNorm(norms.beforeMlp, hidden, normIf(norms.afterAttention, attention));
    const z = middle.normed();
    const [gate, up] = each(gateUp, z, linear) as [Value, Value];
    const fused = mode.kind === "cached" && config.hiddenAct === "silu";
    const gated = fused ? gatedSilu(gate, up) : mul(ACTIVATIONS[config.hiddenAct](gate), up); // [N, ffn]
    const mlp = block(layer, "mlp", z, linear(`${at}.mlp.down_proj`, gated));
    ({ sum: hidden, normed } = addNorm(next, middle.sum, normIf(norms.afterMlp, mlp)));
  };
  for (let layer = from; layer < to; layer++) g.segment(() => decoderLayer(layer));

  return {
    hidden: to < config.numLayers ? hidden : normed(),
    logits: (rows) => {
      const tied = config.tieWordEmbeddings ? EMBEDDING : HEAD;
      const y = project(g, stored, frozen.form.kind === "float32" ? tied : HEAD, rows, vocabSize); // [R, V]
      const change = hooks.change?.(tied);
      const scores = change ? gemm(rows, change, { c: y, transB: true }) : y;
      const { logitSoftcap: cap } = config;
      return cap === undefined ? scores : mul(tanh(mul(scores, 1 / cap)), cap);
    },
  };
}
