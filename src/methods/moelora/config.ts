/** @file adapter_config.json of MOELoRA: fields, the paper's setting as defaults, and what does not fit a backbone. */
import { z } from "zod";
import { InputError } from "../../base/index.ts";
import { type BackboneConfig, moduleNames, type Site, sitesOf } from "../../models/index.ts";
import { commonFields, rank } from "../peft.ts";

export const configSchema = z
  .looseObject({
    ...commonFields,
    peft_type: z.literal("MOELORA"),
    r: rank.default(32).describe("rank of a module's LoRA, all its experts together"),
    lora_alpha: z.number().positive().optional().describe("scaling = lora_alpha / r; default r"),
    target_modules: z.array(z.string().min(1)).min(1).describe("modules that have a mixture"),
    num_experts: z.int().min(2).max(4096).default(8).describe("experts of a module, of r / num_experts ranks each"),
    top_k: z.int().min(1).default(4).describe("experts that a token activates in a module"),
    load_balance_coefficient: z.number().min(0).default(0.01).describe("as MiLoRA's"),
  })
  .refine(({ r, num_experts }) => r % num_experts === 0, {
    path: ["num_experts"],
    error: "does not divide r",
  })
  .refine(({ top_k, num_experts }) => top_k <= num_experts, { path: ["top_k"], error: "is larger than num_experts" })
  .refine(({ target_modules }) => new Set(target_modules).size === target_modules.length, {
    path: ["target_modules"],
    error: "names a module twice",
  });

export type MoeloraConfig = z.infer<typeof configSchema>;

export function scalingOf({ lora_alpha, r }: MoeloraConfig): number {
  return (lora_alpha ?? r) / r;
}

/** The modules with a mixture, layer by layer. Throws `InputError` for names that the backbone does not have. */
export function targetsOf({ target_modules }: MoeloraConfig, backbone: BackboneConfig): Site[] {
  const known = moduleNames(backbone);
  const unknown = target_modules.filter((module) => !known.includes(module));
  if (unknown.length) {
    const problems = unknown.map((name) => `target_modules: the backbone's layers have no "${name}"`);
    throw new InputError("CONFIG_INVALID", "adapter_config.json", problems);
  }
  return sitesOf(backbone).filter((site) => target_modules.includes(site.module));
}
