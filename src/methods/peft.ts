/** @file What adapter_config.json files of Hugging Face PEFT share: common fields, and which modules a config targets. */
import { z } from "zod";
import { InputError } from "../base/index.ts";
import type { BackboneConfig, Site } from "../models/index.ts";
import { sitesOf } from "../models/index.ts";

/** Every key PEFT writes starts with this, followed by the module's path. */
export const KEY_PREFIX = "base_model.model.";

/** Fields of every adapter_config.json. Unknown fields are kept as they are: newer versions write more of them. */
export const commonFields = {
  task_type: z.literal("CAUSAL_LM").nullish().describe("only causal language models"),
  base_model_name_or_path: z.string().nullish().describe("the backbone the adapter was trained on; informative"),
};

/** Accepts only values that switch a PEFT feature off; the feature would change the result and is not built here. */
export const off = (...values: readonly unknown[]) =>
  z
    .unknown()
    .refine((value) => value == null || values.some((v) => JSON.stringify(v) === JSON.stringify(value)), {
      error: `not supported; only ${["null", ...values.map((v) => JSON.stringify(v))].join(" or ")} is`,
    })
    .optional();

export const rank = z.int().min(1).max(4096);
export const targetModules = z.union([z.string().min(1), z.array(z.string().min(1)).min(1)]);
export const layersToTransform = z.union([z.int().min(0), z.array(z.int().min(0))]).nullish();

/** A regular expression written for Python's `re.fullmatch`. Throws `InputError` when JavaScript has no such syntax. */
export function fullMatch(pattern: string, field: string): RegExp {
  try {
    return new RegExp(`^(?:${pattern.replaceAll("(?P<", "(?<")})$`);
  } catch {
    throw new InputError("CONFIG_INVALID", "adapter_config.json", `${field}: "${pattern}" is not a regular expression`);
  }
}

function matches(path: string, target: string | readonly string[], field: string): boolean {
  if (typeof target === "string") return fullMatch(target, field).test(path);
  return target.some((name) => path === name || path.endsWith(`.${name}`));
}

export interface Targeting {
  readonly target_modules: string | readonly string[];
  readonly exclude_modules?: string | readonly string[] | null | undefined;
  readonly layers_to_transform?: number | readonly number[] | null | undefined;
}

/** The sites a config acts on, by PEFT's rules (list = path suffixes, string = regular expression or `all-linear`). */
export function targetedSites(config: Targeting, backbone: BackboneConfig): Site[] {
  const { target_modules: target, exclude_modules: exclude, layers_to_transform: only } = config;
  const layers = only === null || only === undefined ? undefined : new Set(typeof only === "number" ? [only] : only);
  const found = sitesOf(backbone).filter(
    (site) =>
      (target === "all-linear" || matches(site.path, target, "target_modules")) &&
      !(exclude && matches(site.path, exclude, "exclude_modules")) &&
      (layers === undefined || layers.has(site.layer)),
  );
  if (found.length === 0) {
    const known = [...new Set(sitesOf(backbone).map((site) => site.module))].join(", ");
    throw new InputError(
      "ADAPTER_TARGETS_NOTHING",
      "adapter_config.json",
      `target_modules ${JSON.stringify(target)} name no linear module of this backbone (it has ${known})`,
    );
  }
  return found;
}

/** The entry of a `rank_pattern` or `alpha_pattern` for a module: the first key that ends its path, as in PEFT. */
export function patternValue(pattern: Readonly<Record<string, number>>, path: string, otherwise: number): number {
  for (const [key, value] of Object.entries(pattern)) {
    if (fullMatch(`(?:.*\\.)?(?:${key})`, "rank_pattern").test(path)) return value;
  }
  return otherwise;
}
