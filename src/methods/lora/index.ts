/** @file LoRA (Hu et al. 2021, arXiv 2106.09685) in PEFT's format: y' = y + scaling · (x Aᵀ) Bᵀ. */
import { z } from "zod";
import { parseWith } from "../../base/index.ts";
import { gemm } from "../../graph/index.ts";
import { type BackboneConfig, moduleNames, type Site } from "../../models/index.ts";
import type { Method, ParameterSpec } from "../method.ts";
import { commonFields, KEY_PREFIX, patternValue, rank, targetedSites, targetModules } from "../peft.ts";

/** Accepts only values that switch a PEFT feature off; the feature would change the result and is not built here. */
const off = (...values: readonly unknown[]) =>
  z
    .unknown()
    .refine((value) => value == null || values.some((v) => JSON.stringify(v) === JSON.stringify(value)), {
      error: `not supported; only ${["null", ...values.map((v) => JSON.stringify(v))].join(" or ")} is`,
    })
    .optional();

const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("LORA"),
  r: rank.default(8),
  lora_alpha: z.number().positive().default(8),
  target_modules: targetModules,
  exclude_modules: targetModules.nullish(),
  layers_to_transform: z.union([z.int().min(0), z.array(z.int().min(0))]).nullish(),
  rank_pattern: z.record(z.string(), rank).nullish(),
  alpha_pattern: z.record(z.string(), z.number().positive()).nullish(),
  use_rslora: z.boolean().default(false),
  lora_dropout: z.number().min(0).max(1).default(0).describe("no effect once trained"),
  bias: off("none"),
  use_dora: off(false),
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

/** Keys and numbers of LoRA at one site, shared with the methods whose experts are LoRA modules. */
export function loraKeys(site: Site): { a: string; b: string } {
  const prefix = `${KEY_PREFIX}${site.path}`;
  return { a: `${prefix}.lora_A.weight`, b: `${prefix}.lora_B.weight` };
}

/** A [r, in] drawn as PEFT does, B [out, r] zero: a new adapter leaves the backbone as it is. */
export function loraSpecs(site: Site, r: number): ParameterSpec[] {
  const { a, b } = loraKeys(site);
  return [
    {
      key: a,
      shape: [r, site.inFeatures],
      init: { kind: "kaimingUniform", fanIn: site.inFeatures },
      group: "weights",
    },
    { key: b, shape: [site.outFeatures, r], init: { kind: "zeros" }, group: "weights" },
  ];
}

function rankOf(config: LoraConfig, site: Site): number {
  return patternValue(config.rank_pattern ?? {}, site.path, config.r);
}

function scalingOf(config: LoraConfig, site: Site): number {
  const r = rankOf(config, site);
  return (
    patternValue(config.alpha_pattern ?? {}, site.path, config.lora_alpha) / (config.use_rslora ? Math.sqrt(r) : r)
  );
}

function parameters(config: LoraConfig, backbone: BackboneConfig): ParameterSpec[] {
  return targetedSites(config, backbone).flatMap((site) => loraSpecs(site, rankOf(config, site)));
}

export const lora: Method<LoraConfig> = {
  name: "lora",
  peftType: "LORA",
  configSchema,
  properties: { routed: false, mergeable: true },

  newConfig(options, backbone) {
    const r = options.r ?? 32;
    const defaults = { peft_type: "LORA", task_type: "CAUSAL_LM", r, lora_alpha: r, bias: "none" };
    const schema = configSchema.extend({
      lora_dropout: z.literal(0, { error: "dropout is not supported in training; leave it at 0" }).default(0),
    });
    return parseWith(schema, { ...defaults, target_modules: moduleNames(backbone), ...options }, "lora");
  },

  parameters,

  countParameters(config, backbone) {
    const tunable = parameters(config, backbone).reduce((sum, { shape }) => sum + shape[0]! * shape[1]!, 0);
    return { tunable: { lora: tunable }, activated: { lora: tunable } };
  },

  isIdentity(config, backbone, values) {
    return targetedSites(config, backbone).every((site) => values(loraKeys(site).b).every((v) => v === 0));
  },

  build({ config, backbone, parameter }) {
    const targeted = new Map(targetedSites(config, backbone).map((site) => [site.path, scalingOf(config, site)]));
    return {
      hooks: {
        linear(site, x, y) {
          const alpha = targeted.get(site.path);
          if (alpha === undefined) return y;
          const { a, b } = loraKeys(site);
          const low = gemm(x, parameter(a), { transB: true }); // [N, r]
          return gemm(low, parameter(b), { c: y, transB: true, alpha }); // [N, out]
        },
      },
    };
  },
};
