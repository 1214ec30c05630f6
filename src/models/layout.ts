/** @file What a decoder is made of, from its config alone: linear modules, weights as in the checkpoint, what is put together. */
import type { BackboneConfig } from "./config.ts";
import type { Site, WeightForm } from "./forward.ts";
import type { FusedWeight } from "./fuse.ts";

/** What a weight is for, which decides how it may be stored at run time. */
export type ParameterKind = "embedding" | "linear" | "bias" | "head" | "norm";

/** A weight of a backbone, named as in the checkpoint. Linear weights are [out, in]. */
export interface ParameterInfo {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: ParameterKind;
  /** What is added to it when it is loaded: some families store norms as their distance from 1. */
  readonly offset?: number;
}

export const EMBEDDING = "model.embed_tokens.weight";
export const HEAD = "lm_head.weight";
export const FINAL_NORM = "model.norm";

/** Path of a decoder layer. */
export const layerPath = (layer: number): string => `model.layers.${layer}`;

interface Module {
  readonly block: "self_attn" | "mlp";
  readonly module: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Width of all query heads, and of all heads of keys or of values. */
export function headWidths({ numHeads, numKvHeads, headDim }: BackboneConfig): { queries: number; keys: number } {
  return { queries: numHeads * headDim, keys: numKvHeads * headDim };
}

/** The linear modules of a layer, in the order of the paper's experts. */
function modulesOf(config: BackboneConfig): Module[] {
  const { hiddenSize: d, intermediateSize: ffn } = config;
  const { queries, keys } = headWidths(config);
  if (config.fusedModules) {
    return [
      { block: "self_attn", module: "qkv_proj", inFeatures: d, outFeatures: queries + 2 * keys },
      { block: "self_attn", module: "o_proj", inFeatures: queries, outFeatures: d },
      { block: "mlp", module: "gate_up_proj", inFeatures: d, outFeatures: 2 * ffn },
      { block: "mlp", module: "down_proj", inFeatures: ffn, outFeatures: d },
    ];
  }
  return [
    { block: "self_attn", module: "q_proj", inFeatures: d, outFeatures: queries },
    { block: "self_attn", module: "k_proj", inFeatures: d, outFeatures: keys },
    { block: "self_attn", module: "v_proj", inFeatures: d, outFeatures: keys },
    { block: "self_attn", module: "o_proj", inFeatures: queries, outFeatures: d },
    { block: "mlp", module: "gate_proj", inFeatures: d, outFeatures: ffn },
    { block: "mlp", module: "up_proj", inFeatures: d, outFeatures: ffn },
    { block: "mlp", module: "down_proj", inFeatures: ffn, outFeatures: d },
  ];
}

/** What a sub-layer makes of its own values again: all other modules read the sub-layer's input. */
const LAST_MODULES = ["o_proj", "down_proj"];

function sitesOfLayer(config: BackboneConfig, layer: number): Site[] {
  return modulesOf(config).map(({ block, module, inFeatures, outFeatures }) => ({
    path: `${layerPath(layer)}.${block}.${module}`,
    layer,
    module,
    inFeatures,
    outFeatures,
    readsBlockInput: !LAST_MODULES.includes(module),
    ...(config.biases?.includes(module) && { hasBias: true }),
  }));
}

/** Linear modules of the decoder layers, where methods may act, layer by layer, in the family's order. */
export function sitesOf(config: BackboneConfig): Site[] {
  return Array.from({ length: config.numLayers }, (_, layer) => sitesOfLayer(config, layer)).flat();
}

/** The linear modules that have these parts: themselves, or those that the checkpoint has them put together in. */
export function modulesHolding(config: BackboneConfig, parts: readonly string[]): string[] {
  if (!config.fusedModules) return [...parts];
  const joint = Object.values(jointModulesOf(config, 0));
  const name = (path: string): string => path.slice(path.lastIndexOf(".") + 1);
  const holding = (part: string) => joint.find(({ parts }) => parts.some((path) => name(path) === part));
  return [...new Set(parts.map((part) => name(holding(part)?.path ?? part)))];
}

/** Names of a layer's linear modules, e.g. `["q_proj", …]`. */
export function moduleNames(config: BackboneConfig): string[] {
  return modulesOf(config).map(({ module }) => module);
}

/** Names of the norms of a layer, in the order in which they are applied. */
export interface LayerNorms {
  readonly beforeAttention: string;
  /** On attention's output, where the family has it. */
  readonly afterAttention?: string;
  readonly beforeMlp: string;
  readonly afterMlp?: string;
}

export function normsOf({ postNorms }: BackboneConfig, layer: number): LayerNorms {
  const name = (norm: string): string => `${layerPath(layer)}.${norm}_layernorm`;
  if (!postNorms) return { beforeAttention: name("input"), beforeMlp: name("post_attention") };
  return {
    beforeAttention: name("input"),
    afterAttention: name("post_attention"),
    beforeMlp: name("pre_feedforward"),
    afterMlp: name("post_feedforward"),
  };
}

/** Norms of the heads of a layer, where the config has them. */
export function headNormsOf(layer: number): { query: string; key: string } {
  return { query: `${layerPath(layer)}.self_attn.q_norm`, key: `${layerPath(layer)}.self_attn.k_norm` };
}

/** Every weight of a checkpoint. With tied embeddings there is no `lm_head.weight`. */
export function parametersOf(config: BackboneConfig): ParameterInfo[] {
  const { hiddenSize: d, vocabSize, normOffset: offset } = config;
  const norm = (name: string, width = d): ParameterInfo => ({
    name: `${name}.weight`,
    shape: [width],
    kind: "norm",
    ...(offset && { offset }),
  });
  const linears = (layer: number, block: Module["block"]): ParameterInfo[] =>
    sitesOfLayer(config, layer)
      .filter(({ path }) => path.includes(`.${block}.`))
      .flatMap(({ path, outFeatures, inFeatures, hasBias }): ParameterInfo[] => [
        { name: `${path}.weight`, shape: [outFeatures, inFeatures], kind: "linear" },
        ...(hasBias ? [{ name: `${path}.bias`, shape: [outFeatures], kind: "bias" } as const] : []),
      ]);
  const layerParameters = (layer: number): ParameterInfo[] => {
    const { beforeAttention, ...others } = normsOf(config, layer);
    const heads = config.qkNorm ? Object.values(headNormsOf(layer)) : [];
    return [
      norm(beforeAttention),
      ...linears(layer, "self_attn"),
      ...heads.map((name) => norm(name, config.headDim)),
      ...Object.values(others).map((name: string) => norm(name)),
      ...linears(layer, "mlp"),
    ];
  };
  return [
    { name: EMBEDDING, shape: [vocabSize, d], kind: "embedding" },
    ...Array.from({ length: config.numLayers }, (_, layer) => layerParameters(layer)).flat(),
    norm(FINAL_NORM),
    ...(config.tieWordEmbeddings ? [] : [{ name: HEAD, shape: [vocabSize, d], kind: "head" } as const]),
  ];
}

/** Modules that read the same rows: one in the checkpoint, or to be multiplied with at once. */
export interface JointModules {
  /** Path of the whole, e.g. `model.layers.3.self_attn.qkv_proj`. */
  readonly path: string;
  /** Paths of the parts where the checkpoint has them one by one. */
  readonly parts: readonly string[];
  /** Widths of their outputs. */
  readonly sizes: readonly number[];
}

export function jointModulesOf(config: BackboneConfig, layer: number): { qkv: JointModules; gateUp: JointModules } {
  const { queries, keys } = headWidths(config);
  const { intermediateSize: ffn } = config;
  const of = (block: Module["block"], module: string, parts: readonly string[], sizes: readonly number[]) => {
    const path = (name: string) => `${layerPath(layer)}.${block}.${name}`;
    return { path: path(module), parts: parts.map(path), sizes };
  };
  return {
    qkv: of("self_attn", "qkv_proj", ["q_proj", "k_proj", "v_proj"], [queries, keys, keys]),
    gateUp: of("mlp", "gate_up_proj", ["gate_proj", "up_proj"], [ffn, ffn]),
  };
}

/** All linear modules, those together whose products are one when a backbone in this form decodes. */
export function joinedSites(config: BackboneConfig, form: WeightForm): Site[][] {
  const sites = sitesOf(config);
  if (form.kind === "float32" || config.fusedModules) return sites.map((site) => [site]);
  const joint = Array.from({ length: config.numLayers }, (_, layer) => Object.values(jointModulesOf(config, layer)));
  const groups = joint.flat().map(({ parts }) => sites.filter(({ path }) => parts.includes(path)));
  const grouped = new Set(groups.flat());
  return [...groups, ...sites.filter((site) => !grouped.has(site)).map((site) => [site])];
}

/** Quantised weights to hold put together, see `splitWeights`: decoding multiplies once for all parts. */
export function fusedWeightsOf(config: BackboneConfig): FusedWeight[] {
  if (config.fusedModules) return []; // the checkpoint has them so
  const weight = (path: string) => `${path}.weight`;
  return Array.from({ length: config.numLayers }, (_, layer) => Object.values(jointModulesOf(config, layer)))
    .flat()
    .map(({ path, parts }) => ({ name: weight(path), parts: parts.map(weight) }));
}
