/** @file What a decoder is made of, from its config alone: linear modules, weights as in the checkpoint, what is put together. */
import type { BackboneConfig } from "./config.ts";
import type { Site } from "./forward.ts";
import type { FusedWeight } from "./fuse.ts";

/** What a weight is for, which decides how it may be stored at run time. */
export type ParameterKind = "embedding" | "linear" | "head" | "norm";

/** A weight of a backbone, named as in the checkpoint. Linear weights are [out, in]. */
export interface ParameterInfo {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: ParameterKind;
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
  }));
}

/** Linear modules of the decoder layers, where methods may act, layer by layer, in the family's order. */
export function sitesOf(config: BackboneConfig): Site[] {
  return Array.from({ length: config.numLayers }, (_, layer) => sitesOfLayer(config, layer)).flat();
}

/** Names of a layer's linear modules, e.g. `["q_proj", …]`. */
export function moduleNames(config: BackboneConfig): string[] {
  return modulesOf(config).map(({ module }) => module);
}

/** Every weight of a checkpoint. With tied embeddings there is no `lm_head.weight`. */
export function parametersOf(config: BackboneConfig): ParameterInfo[] {
  const { hiddenSize: d, vocabSize } = config;
  const norm = (name: string): ParameterInfo => ({ name: `${name}.weight`, shape: [d], kind: "norm" });
  const linears = (layer: number, block: Module["block"]): ParameterInfo[] =>
    sitesOfLayer(config, layer)
      .filter(({ path }) => path.includes(`.${block}.`))
      .map(({ path, outFeatures, inFeatures }) => ({
        name: `${path}.weight`,
        shape: [outFeatures, inFeatures],
        kind: "linear",
      }));
  return [
    { name: EMBEDDING, shape: [vocabSize, d], kind: "embedding" },
    ...Array.from({ length: config.numLayers }, (_, layer) => [
      norm(`${layerPath(layer)}.input_layernorm`),
      ...linears(layer, "self_attn"),
      norm(`${layerPath(layer)}.post_attention_layernorm`),
      ...linears(layer, "mlp"),
    ]).flat(),
    norm(FINAL_NORM),
    ...(config.tieWordEmbeddings ? [] : [{ name: HEAD, shape: [vocabSize, d], kind: "head" } as const]),
  ];
}

/** Modules of a layer that read the same rows; quantised, decoding multiplies once for all of them. */
export function fusedOfLayer(layer: number): { qkv: FusedWeight; gateUp: FusedWeight } {
  const of = (block: Module["block"], name: string, modules: readonly string[]): FusedWeight => {
    const weight = (module: string) => `${layerPath(layer)}.${block}.${module}.weight`;
    return { name: weight(name), parts: modules.map(weight) };
  };
  return {
    qkv: of("self_attn", "qkv_proj", ["q_proj", "k_proj", "v_proj"]),
    gateUp: of("mlp", "gate_up_proj", ["gate_proj", "up_proj"]),
  };
}

/** Quantised weights to hold put together, see `fuseWeights`. */
export function fusedWeightsOf({ numLayers }: BackboneConfig): FusedWeight[] {
  return Array.from({ length: numLayers }, (_, layer) => Object.values(fusedOfLayer(layer))).flat();
}
