/** @file adapter_config.json of PEFT's PREFIX_TUNING: fields, and whether the prefix itself or what it is made of is kept. */
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { commonFields, off } from "../peft.ts";

const count = z.int().min(1);

export const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("PREFIX_TUNING"),
  num_virtual_tokens: count.max(65536).describe("places that every token sees before the sequence's own"),
  token_dim: count.nullish().describe("width of a layer's keys: key-value heads · head size"),
  num_attention_heads: count.nullish().describe("key-value heads of the backbone"),
  num_layers: count.nullish().describe("layers of the backbone"),
  num_transformer_submodules: z.literal(1, { error: "only 1 is supported: a decoder" }).nullish(),
  encoder_hidden_size: count
    .max(65536)
    .nullish()
    .describe("size of the trained prefix vectors, before their projection"),
  prefix_projection: z.boolean().default(false).describe("the prefix was trained through a projection"),
  inference_mode: z.boolean().default(true).describe("false: as trained, before a projection is applied"),
  modules_to_save: off([]),
});

export type PrefixConfig = z.infer<typeof configSchema>;

export function kvWidth({ numKvHeads, headDim }: BackboneConfig): number {
  return numKvHeads * headDim;
}

/** Size of the trained prefix vectors; undefined where the tensors hold the prefix itself, as PEFT saves it. */
export function hiddenOf(config: PrefixConfig): number | undefined {
  if (!config.prefix_projection || config.inference_mode) return undefined;
  return config.encoder_hidden_size ?? undefined;
}

/** Throws `InputError` listing every field in which a config and a backbone differ. */
export function requireFit(config: PrefixConfig, backbone: BackboneConfig): void {
  const problems = (
    [
      ["token_dim", kvWidth(backbone)],
      ["num_attention_heads", backbone.numKvHeads],
      ["num_layers", backbone.numLayers],
    ] as const
  ).flatMap(([field, expected]) => {
    const given = config[field];
    return given == null || given === expected ? [] : [`${field}: is ${given}, this backbone needs ${expected}`];
  });
  if (config.num_virtual_tokens >= backbone.maxPositions) {
    problems.push(`num_virtual_tokens: leaves nothing of the backbone's ${backbone.maxPositions} positions`);
  }
  if (config.prefix_projection && !config.inference_mode && config.encoder_hidden_size == null) {
    problems.push("encoder_hidden_size: is missing; a projected prefix in training has one");
  }
  if (problems.length) throw new InputError("CONFIG_INVALID", "adapter_config.json", problems);
}

/** The paper's setting: 16 tokens, vectors of size 640 projected to the width of the keys. */
export function newPrefixConfig(options: Readonly<Record<string, unknown>>, backbone: BackboneConfig): PrefixConfig {
  const defaults = {
    peft_type: "PREFIX_TUNING",
    task_type: "CAUSAL_LM",
    num_virtual_tokens: 16,
    token_dim: kvWidth(backbone),
    num_attention_heads: backbone.numKvHeads,
    num_layers: backbone.numLayers,
    num_transformer_submodules: 1,
    encoder_hidden_size: 640,
    prefix_projection: true,
  };
  if (options.inference_mode !== undefined) {
    throw new InputError("CONFIG_INVALID", "p-tuning-v2", "inference_mode: is set by training; leave it out");
  }
  const given = parseWith(configSchema, { ...defaults, ...options }, "p-tuning-v2");
  const config = { ...given, inference_mode: !given.prefix_projection };
  requireFit(config, backbone);
  return config;
}
