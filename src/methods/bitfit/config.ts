/** @file adapter_config.json of BitFit: which modules get a bias, and the projected form in which the paper trains them. */
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import { type BackboneConfig, moduleNames } from "../../models/index.ts";
import { commonFields, layersToTransform, targetedSites, targetModules } from "../peft.ts";

export const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("BITFIT"),
  target_modules: targetModules,
  exclude_modules: targetModules.nullish(),
  layers_to_transform: layersToTransform,
  inference_mode: z.boolean().default(true).describe("false: as trained, before a projection is applied"),
  projection_dim: z
    .int()
    .min(1)
    .nullish()
    .describe("in training each bias is a matrix times a vector of this size; null: the bias itself is trained"),
});

export type BitfitConfig = z.infer<typeof configSchema>;

/** Size of the trained vectors; undefined where the tensors hold the biases themselves. */
export function projectionOf(config: BitfitConfig): number | undefined {
  return config.inference_mode ? undefined : (config.projection_dim ?? undefined);
}

/** The paper's setting: all linear modules, vectors of size 64 that are projected to the module's width. */
export function newBitfitConfig(options: Readonly<Record<string, unknown>>, backbone: BackboneConfig): BitfitConfig {
  if (options.inference_mode !== undefined) {
    throw new InputError("CONFIG_INVALID", "bitfit", "inference_mode: is set by training; leave it out");
  }
  const defaults = {
    peft_type: "BITFIT",
    task_type: "CAUSAL_LM",
    target_modules: moduleNames(backbone),
    projection_dim: 64,
  };
  const config = parseWith(configSchema, { ...defaults, ...options, inference_mode: false }, "bitfit");
  targetedSites(config, backbone);
  return config;
}
