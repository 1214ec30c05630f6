/** @file adapter_config.json of SSP: the candidates of the search, its budget, and afterwards the structure found. */
import { z } from "zod";
import { InputError } from "../../base/index.ts";
import type { BackboneConfig, Site } from "../../models/index.ts";
import { commonFields, rank, targetedSites, targetModules } from "../peft.ts";

/** What a module may get, in the order of the gates. */
export const KINDS = ["lora", "bitfit"] as const;
export type Kind = (typeof KINDS)[number];

/** For each linear module the layers in which it has the part. */
const layersByModule = z.record(z.string(), z.array(z.int().min(0)));

export const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("SSP"),
  r: rank.default(64).describe("rank of every LoRA"),
  lora_alpha: z.number().positive().optional().describe("scaling = lora_alpha / r; default r"),
  target_modules: targetModules.default("all-linear").describe("where LoRA and biases may go"),
  density: z.number().gt(0).lt(1).default(0.5).describe("share of the candidates' parameters that is kept"),
  budget: z.int().min(1).nullish().describe("number of parameters that is kept, at most; wins over density"),
  temperature: z.number().positive().default(1).describe("of the gates: smaller is closer to 0 and 1"),
  search_ratio: z.number().gt(0).lt(1).default(0.3).describe("share of a run's steps that is spent on the search"),
  structure: z
    .strictObject({ lora: layersByModule, bitfit: layersByModule } satisfies Record<Kind, unknown>)
    .nullable()
    .default(null)
    .describe("what was found: for each module the layers that have a LoRA or a bias there; null: still searching"),
});

export type SspConfig = z.infer<typeof configSchema>;
export type Structure = NonNullable<SspConfig["structure"]>;

/** A part that a module may have. */
export interface Candidate {
  readonly site: Site;
  readonly kind: Kind;
  /** Its parameters. */
  readonly size: number;
}

export function scalingOf({ lora_alpha, r }: SspConfig): number {
  return (lora_alpha ?? r) / r;
}

/** All that the search chooses from, in the order of its gates: site by site, LoRA before bias. */
export function candidatesOf(config: SspConfig, backbone: BackboneConfig): Candidate[] {
  return targetedSites(config, backbone).flatMap((site) => [
    { site, kind: "lora", size: config.r * (site.inFeatures + site.outFeatures) },
    { site, kind: "bitfit", size: site.outFeatures },
  ]);
}

export function totalSize(candidates: readonly Candidate[]): number {
  return candidates.reduce((total, { size }) => total + size, 0);
}

/** How many parameters are kept at most. */
export function budgetOf({ budget, density }: SspConfig, candidates: readonly Candidate[]): number {
  return budget ?? Math.floor(density * totalSize(candidates));
}

/** The parts an adapter has: all candidates while searching. Throws `InputError` with all that does not fit. */
export function partsOf(config: SspConfig, backbone: BackboneConfig): Candidate[] {
  const candidates = candidatesOf(config, backbone);
  const problems: string[] = [];
  const { structure } = config;
  const parts = candidates.filter(
    ({ site, kind }) => structure === null || structure[kind][site.module]?.includes(site.layer),
  );
  for (const kind of KINDS) {
    for (const [module, layers] of Object.entries(structure?.[kind] ?? {})) {
      const known = new Set(candidates.filter(({ site }) => site.module === module).map(({ site }) => site.layer));
      const strange = layers.filter((layer) => !known.has(layer));
      if (strange.length) problems.push(`structure.${kind}.${module}: no target in layers ${strange.join(", ")}`);
      else if (known.size === 0) problems.push(`structure.${kind}.${module}: is not among target_modules`);
    }
  }
  const budget = budgetOf(config, candidates);
  const smallest = Math.min(...candidates.map(({ size }) => size));
  if (structure === null && budget < smallest) {
    problems.push(`budget: ${budget} parameters are less than the smallest candidate's ${smallest}`);
  }
  if (structure === null && budget >= totalSize(candidates)) {
    problems.push(`budget: ${budget} is all there is to choose from; there is nothing to search`);
  }
  if (problems.length) throw new InputError("CONFIG_INVALID", "adapter_config.json", problems);
  return parts;
}
