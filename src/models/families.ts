/** @file The table of model families. A further family is one file for its layout, one for its graph, one line here. */
import type { Graph } from "../graph/index.ts";
import { ropeTables } from "./attention.ts";
import type { BackboneConfig } from "./config.ts";
import type { ForwardInputs, ForwardOutputs, FrozenWeights, Site } from "./forward.ts";
import type { FusedWeight } from "./fuse.ts";
import { llamaForward, llamaFused, llamaSites } from "./llama.ts";
import { llamaConfig, llamaParameters } from "./llama-layout.ts";

/** What a weight is for, which decides how it may be stored at run time. */
export type ParameterKind = "embedding" | "linear" | "head" | "norm";

/** A weight of a backbone, named as in the checkpoint. Linear weights are [out, in]. */
export interface ParameterInfo {
  readonly name: string;
  readonly shape: readonly number[];
  readonly kind: ParameterKind;
}

export interface Family {
  /** `model_type` of config.json. */
  readonly modelType: string;
  /** Entry of `architectures` in config.json. */
  readonly architecture: string;
  /** Reads config.json; throws InputError listing every field that is wrong or not supported. */
  config(raw: unknown, where: string): BackboneConfig;
  /** Every weight the graph uses. With tied embeddings there is no `lm_head.weight`. */
  parameters(config: BackboneConfig): ParameterInfo[];
  /** Linear modules of the decoder layers, where methods may act, in a fixed order. */
  sites(config: BackboneConfig): Site[];
  /** Computed constants that the graph takes as parameters, beside the checkpoint's weights. */
  tables(config: BackboneConfig): ReadonlyMap<string, { shape: readonly number[]; values: Float32Array }>;
  /** Quantised weights to hold put together, see `fuseWeights`. */
  fused(config: BackboneConfig): FusedWeight[];
  /** Builds the decoder's forward pass. */
  forward(graph: Graph, config: BackboneConfig, weights: FrozenWeights, inputs: ForwardInputs): ForwardOutputs;
  /** Names in a checkpoint that are known and not needed. */
  readonly ignored: readonly RegExp[];
}

export const FAMILIES: Readonly<Record<string, Family>> = {
  llama: {
    modelType: "llama",
    architecture: "LlamaForCausalLM",
    config: llamaConfig,
    parameters: llamaParameters,
    sites: llamaSites,
    tables: ropeTables,
    fused: llamaFused,
    forward: llamaForward,
    ignored: [/\.self_attn\.rotary_emb\.inv_freq$/, /^model\.rotary_emb\.inv_freq$/],
  },
};

/** The family of a config that was read or made here. */
export function familyOf(config: BackboneConfig): Family {
  const family = FAMILIES[config.modelType];
  if (!family) throw new Error(`no family ${config.modelType}`);
  return family;
}
