/** @file adapter_config.json of PEFT's IA3, with the projected form that the paper trains; which sites scale their input. */
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import { type BackboneConfig, modulesHolding, type Site } from "../../models/index.ts";
import { commonFields, off, pathsMeant, targetedSites, targetModules } from "../peft.ts";

export const configSchema = z
  .looseObject({
    ...commonFields,
    peft_type: z.literal("IA3"),
    target_modules: targetModules.nullish().describe("default, as in PEFT: k_proj, v_proj, down_proj"),
    exclude_modules: targetModules.nullish(),
    feedforward_modules: z
      .union([z.string(), z.array(z.string().min(1))])
      .nullish()
      .describe("those of target_modules whose input is scaled, not their output; default, as in PEFT: down_proj"),
    inference_mode: z.boolean().default(true).describe("false: as trained, before a projection is applied"),
    projection_dim: z
      .int()
      .min(1)
      .nullish()
      .describe(
        "in training each scale is 1 + a vector of this size times a matrix; null: the scale itself is trained",
      ),
    fan_in_fan_out: off(false),
    modules_to_save: off([]),
  })
  .refine(
    ({ target_modules: targets, feedforward_modules: forward }) =>
      !Array.isArray(targets) || !Array.isArray(forward) || forward.every((name) => targets.includes(name)),
    { path: ["feedforward_modules"], error: "must be among target_modules" },
  );

export type Ia3Config = z.infer<typeof configSchema>;

/** A linear module that is scaled. */
export interface ScaledSite {
  readonly site: Site;
  /** Its input is scaled, not its output. */
  readonly feedforward: boolean;
}

/** PEFT's rules: a list names ends of module paths (not only whole names), a string is a regular expression. */
export function scaledSites(config: Ia3Config, backbone: BackboneConfig): ScaledSite[] {
  const targets = config.target_modules ?? ["k_proj", "v_proj", "down_proj"];
  const forward = config.feedforward_modules ?? ["down_proj"];
  const sites = targetedSites({ target_modules: targets, exclude_modules: config.exclude_modules }, backbone);
  const paths = sites.map(({ path }) => path);
  const isForward =
    typeof forward === "string"
      ? pathsMeant(forward, "feedforward_modules", paths)
      : (path: string) => forward.some((name) => path.endsWith(name));
  return sites.map((site) => ({ site, feedforward: isForward(site.path) }));
}

/** Size of the trained vectors; undefined where the scales themselves are what the tensors hold. */
export function projectionOf(config: Ia3Config): number | undefined {
  return config.inference_mode ? undefined : (config.projection_dim ?? undefined);
}

/** The paper's setting: Q, K and Up outputs, vectors of size 128 that are projected. `projection_dim` null: none. */
export function newIa3Config(options: Readonly<Record<string, unknown>>, backbone: BackboneConfig): Ia3Config {
  const defaults = {
    peft_type: "IA3",
    task_type: "CAUSAL_LM",
    target_modules: modulesHolding(backbone, ["q_proj", "k_proj", "up_proj"]),
    feedforward_modules: [],
    projection_dim: 128,
  };
  if (options.inference_mode !== undefined) {
    throw new InputError("CONFIG_INVALID", "ia3", "inference_mode: is set by training; leave it out");
  }
  const given = { ...defaults, ...options };
  const { projection_dim: dim, ...rest } = parseWith(configSchema, given, "ia3");
  const config =
    dim == null ? { ...rest, inference_mode: true } : { ...rest, projection_dim: dim, inference_mode: false };
  scaledSites(config, backbone);
  return config;
}
