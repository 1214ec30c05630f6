/** @file adapter_config.json of PEFT's LORA, which DoRA shares: fields, refused features, rank and scaling of a site. */
import { z } from "zod";
import { parseWith } from "../../base/index.ts";
import { type BackboneConfig, moduleNames, type Site } from "../../models/index.ts";
import { commonFields, layersToTransform, off, patternValue, rank, targetModules } from "../peft.ts";

export const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("LORA"),
  r: rank.default(8),
  lora_alpha: z.number().positive().default(8),
  target_modules: targetModules,
  exclude_modules: targetModules.nullish(),
  layers_to_transform: layersToTransform,
  rank_pattern: z.record(z.string(), rank).nullish(),
  alpha_pattern: z.record(z.string(), z.number().positive()).nullish(),
  use_rslora: z.boolean().default(false),
  lora_dropout: z.number().min(0).max(1).default(0).describe("no effect once trained"),
  bias: off("none"),
  use_dora: z.boolean().default(false).describe("magnitude and direction apart: DoRA"),
  fan_in_fan_out: off(false),
  lora_bias: off(false),
  modules_to_save: off([]),
  trainable_token_indices: off([]),
  layer_replication: off([]),
  layers_pattern: off([], ""),
  target_parameters: off([]),
  alora_invocation_tokens: off([]),
  use_qalora: off(false),
  use_bdlora: off(false),
  megatron_config: off(),
});

export type LoraConfig = z.infer<typeof configSchema>;

export function rankOf(config: LoraConfig, site: Site): number {
  return patternValue(config.rank_pattern ?? {}, site.path, config.r);
}

export function scalingOf(config: LoraConfig, site: Site): number {
  const r = rankOf(config, site);
  return (
    patternValue(config.alpha_pattern ?? {}, site.path, config.lora_alpha) / (config.use_rslora ? Math.sqrt(r) : r)
  );
}

/** The config of a new adapter: all linear modules at rank 32 with scaling 1, as in the paper, unless told otherwise. */
export function newLoraConfig(
  options: Readonly<Record<string, unknown>>,
  backbone: BackboneConfig,
  useDora: boolean,
): LoraConfig {
  const r = options.r ?? 32;
  const defaults = { peft_type: "LORA", task_type: "CAUSAL_LM", r, lora_alpha: r, bias: "none" };
  const schema = configSchema.extend({
    use_dora: z.literal(useDora, { error: "is decided by the method: lora or dora" }),
    lora_dropout: z.literal(0, { error: "dropout is not supported in training; leave it at 0" }).default(0),
  });
  const given = { ...defaults, target_modules: moduleNames(backbone), use_dora: useDora, ...options };
  return parseWith(schema, given, useDora ? "dora" : "lora");
}
