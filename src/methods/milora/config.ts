/** @file adapter_config.json of MiLoRA: fields, what their absence means (the paper), new adapters, misfits. */
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import { type BackboneConfig, type Site, sitesOf } from "../../models/index.ts";
import { commonFields, rank } from "../peft.ts";

export const activationKinds = ["rational", "gelu", "relu", "identity"] as const;
export type ActivationKind = (typeof activationKinds)[number];

export const configSchema = z
  .looseObject({
    ...commonFields,
    peft_type: z.literal("MILORA"),
    r: rank.default(32).describe("rank of every expert"),
    lora_alpha: z.number().positive().optional().describe("scaling = lora_alpha / r; default r, as in eq. 1"),
    target_modules: z
      .array(z.string().min(1))
      .min(1)
      .default(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
      .describe("the experts of a layer, in the order of the router's outputs"),
    top_k: z.int().min(1).default(3).describe("experts a layer activates for a prompt"),
    use_dora: z.boolean().default(false).describe("DoRA experts: MiDoRA"),
    gate: z
      .enum(["straight_through", "probability", "renormalized"])
      .default("straight_through")
      .describe("weight of an active expert: 1, its probability, or its share among the active ones"),
    pooler: z.enum(["self_attention", "mean", "last", "max"]).default("self_attention"),
    activation: z.union([z.enum(activationKinds), z.array(z.enum(activationKinds))]).default("rational"),
    rational_orders: z
      .tuple([z.number(), z.number()])
      .refine(([m, n]) => m === 6 && n === 5, { error: "only [6, 5] is supported" })
      .default([6, 5])
      .describe("orders of numerator and denominator (eq. 6)"),
    load_balance_coefficient: z.number().min(0).default(0.01).describe("λ_lb of eq. 4"),
    balance: z
      .enum(["load", "information"])
      .default("load")
      .describe("what λ_lb weighs: the load-balance loss of eq. 5, or minus what the routers tell of the prompt"),
    router_input: z.enum(["raw", "rms"]).default("raw").describe("rms: RMS-normalise the pooled vector"),
    anneal: z
      .number()
      .min(0)
      .max(1)
      .default(0)
      .describe("share of the training in which the experts that were not chosen fade out; 0: never there (the paper)"),
  })
  .refine((config) => new Set(config.target_modules).size === config.target_modules.length, {
    path: ["target_modules"],
    error: "names a module twice",
  })
  .refine((config) => config.top_k <= config.target_modules.length, {
    path: ["top_k"],
    error: "is larger than the number of target_modules",
  });

export type MiloraConfig = z.infer<typeof configSchema>;

/** What measured best: docs/method.md, "The router, measured". */
const RECIPE = { router_input: "rms", anneal: 0.5, balance: "information", load_balance_coefficient: 0.03 };
/** Its scaling, lora_alpha / r; the paper's is 1. */
const RECIPE_SCALING = 4;

/**
 * The config of a new adapter: the recipe that measured best, all of it written out. Options that are a whole
 * adapter_config.json mean what the file means.
 */
export function newConfigOf(options: Readonly<Record<string, unknown>>): MiloraConfig {
  const whole = options.peft_type !== undefined;
  const given = { peft_type: "MILORA", task_type: "CAUSAL_LM", ...(whole ? {} : RECIPE), ...options };
  const config = parseWith(configSchema, given, "milora");
  return { ...config, lora_alpha: config.lora_alpha ?? config.r * (whole ? 1 : RECIPE_SCALING) };
}

export function scalingOf(config: MiloraConfig): number {
  return (config.lora_alpha ?? config.r) / config.r;
}

export function activationOf(config: MiloraConfig, layer: number): ActivationKind {
  return typeof config.activation === "string" ? config.activation : config.activation[layer]!;
}

/** The experts of each layer in gate order. Throws `InputError` listing all that does not fit the backbone. */
export function expertsOf(config: MiloraConfig, backbone: BackboneConfig): Site[][] {
  const problems: string[] = [];
  if (Array.isArray(config.activation) && config.activation.length !== backbone.numLayers) {
    problems.push(`activation: has ${config.activation.length} entries, the backbone has ${backbone.numLayers} layers`);
  }
  const sites = sitesOf(backbone);
  const layers = Array.from({ length: backbone.numLayers }, (_, layer) =>
    config.target_modules.flatMap((module) => {
      const found = sites.filter((site) => site.layer === layer && site.module === module);
      if (found.length !== 1 && layer === 0) problems.push(`target_modules: the backbone's layers have no "${module}"`);
      return found;
    }),
  );
  if (problems.length) throw new InputError("CONFIG_INVALID", "adapter_config.json", problems);
  return layers;
}
