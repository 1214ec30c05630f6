/** @file adapter_config.json of PEFT's ADALORA: ranks before and after pruning, the schedule of the budget, kept rows. */
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import { type BackboneConfig, moduleNames, type Site } from "../../models/index.ts";
import type { PlannedRun } from "../method.ts";
import { commonFields, KEY_PREFIX, layersToTransform, off, rank, targetedSites, targetModules } from "../peft.ts";

const steps = z.int().min(0);
const decay = z.number().gt(0).lt(1);

export const configSchema = z
  .looseObject({
    ...commonFields,
    peft_type: z.literal("ADALORA"),
    init_r: rank.default(12).describe("rank of every module before pruning"),
    target_r: rank.default(8).describe("mean rank of the modules after pruning"),
    lora_alpha: z.number().positive().default(8).describe("scaling = lora_alpha / init_r, also after pruning"),
    total_step: z.int().min(1).nullish().describe("steps of the training run"),
    tinit: steps.default(0).describe("steps before pruning begins"),
    tfinal: steps.default(0).describe("steps at the end, with the ranks that are left"),
    deltaT: z.int().min(1).default(1).describe("steps between two allocations"),
    beta1: decay.default(0.85).describe("how slowly a weight's importance changes"),
    beta2: decay.default(0.85).describe("how slowly the uncertainty of the importance changes"),
    orth_reg_weight: z.number().min(0).default(0.5).describe("weight of the orthogonality loss"),
    rank_pattern: z.record(z.string(), z.array(z.boolean())).nullish().describe("the rows that are kept, by module"),
    inference_mode: z.boolean().default(true).describe("false: as trained, rows that were pruned are still there"),
    target_modules: targetModules,
    exclude_modules: targetModules.nullish(),
    layers_to_transform: layersToTransform,
    lora_dropout: z.number().min(0).max(1).default(0).describe("no effect once trained"),
    bias: off("none"),
    use_dora: off(false),
    use_rslora: off(false),
    fan_in_fan_out: off(false),
    lora_bias: off(false),
    modules_to_save: off([]),
    alpha_pattern: off({}),
    trainable_token_indices: off([]),
    layer_replication: off([]),
    layers_pattern: off([], ""),
    target_parameters: off([]),
    use_qalora: off(false),
  })
  .refine((config) => config.total_step == null || config.tinit < config.total_step - config.tfinal, {
    path: ["total_step"],
    error: "leaves no step between tinit and tfinal in which ranks could be pruned",
  });

export type AdaloraConfig = z.infer<typeof configSchema>;

/** A module with the rows of its matrices that are there. */
export interface RankedSite {
  readonly site: Site;
  /** Present rank: init_r, or the number of kept rows; may be 0. */
  readonly rank: number;
}

/** PEFT writes all three without `.weight`. */
export function adaloraKeys(site: Site): { a: string; b: string; e: string } {
  const prefix = `${KEY_PREFIX}${site.path}`;
  return { a: `${prefix}.lora_A`, b: `${prefix}.lora_B`, e: `${prefix}.lora_E` };
}

/** PEFT names a module by its E: `<path>.lora_E`, in some versions with the adapter's name after it. */
function pathOf(key: string): string {
  return key.replace(/\.lora_E(\.[^.]+)?$/, "");
}

/** Name of a module in `rank_pattern`. */
export function patternKey(site: Site): string {
  return `${site.path}.lora_E`;
}

/** Throws `InputError` when `rank_pattern` does not fit the targets. */
export function rankedSites(config: AdaloraConfig, backbone: BackboneConfig): RankedSite[] {
  const sites = targetedSites(config, backbone);
  const pattern = new Map(Object.entries(config.rank_pattern ?? {}).map(([key, kept]) => [pathOf(key), kept]));
  const paths = new Set(sites.map(({ path }) => path));
  const problems = [...pattern].flatMap(([path, kept]) => {
    if (!paths.has(path)) return [`rank_pattern: "${path}" is none of the target_modules`];
    if (kept.length === config.init_r) return [];
    return [`rank_pattern: "${path}" has ${kept.length} entries, expected init_r = ${config.init_r}`];
  });
  if (problems.length) throw new InputError("CONFIG_INVALID", "adapter_config.json", problems);
  const rankOf = ({ path }: Site): number => pattern.get(path)?.filter(Boolean).length ?? config.init_r;
  return sites.map((site) => ({ site, rank: rankOf(site) }));
}

/** alpha / init_r as PEFT computes it, whatever is left of the rank. */
export function scalingOf({ lora_alpha: alpha, init_r: r }: AdaloraConfig): number {
  return alpha / (r + 1e-5);
}

/**
 * The paper's setting: rank 64 on all linear modules, half of it pruned. The schedule is in proportion to the run as in
 * AdaLoRA's own experiments: pruning begins after a seventh and ends at half of the steps.
 */
export function newAdaloraConfig(
  options: Readonly<Record<string, unknown>>,
  backbone: BackboneConfig,
  run: PlannedRun | undefined,
): AdaloraConfig {
  const r = typeof options.init_r === "number" ? options.init_r : 64;
  const total = typeof options.total_step === "number" ? options.total_step : run?.totalSteps;
  const defaults = {
    peft_type: "ADALORA",
    task_type: "CAUSAL_LM",
    init_r: r,
    target_r: Math.max(1, Math.floor(r / 2)),
    lora_alpha: r,
    target_modules: moduleNames(backbone),
    bias: "none",
    ...(total === undefined ? {} : schedule(total)),
  };
  const ruled = ["inference_mode", "rank_pattern"].filter((name) => options[name] !== undefined);
  if (ruled.length) {
    throw new InputError(
      "CONFIG_INVALID",
      "adalora",
      ruled.map((name) => `${name}: is set by training; leave it out`),
    );
  }
  const schema = configSchema
    .safeExtend({
      lora_dropout: z.literal(0, { error: "dropout is not supported in training; leave it at 0" }).default(0),
    })
    .refine((config) => config.target_r <= config.init_r, { path: ["target_r"], error: "is more than init_r" });
  const config = parseWith(schema, { ...defaults, ...options, inference_mode: false }, "adalora");
  rankedSites(config, backbone);
  return config;
}

function schedule(total: number) {
  return {
    total_step: total,
    tinit: Math.floor(total / 7),
    tfinal: Math.floor(total / 2),
    deltaT: Math.max(1, Math.floor(total / 700)),
  };
}
