/** @file adapter_config.json of the learned adapter: before its search no placement, afterwards the one that was found. */
import { z } from "zod";
import { InputError } from "../../base/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { BLOCKS, type Block, bottleneckWidth } from "../bottleneck.ts";
import { commonFields } from "../peft.ts";

/** What an adapter reads: the input of its sub-layer (parallel to it), or its output (after it). In gate order. */
export const FORMS = ["parallel", "sequential"] as const;
export type Form = (typeof FORMS)[number];

const layers = z.array(z.enum(FORMS).nullable());

export const configSchema = z.looseObject({
  ...commonFields,
  peft_type: z.literal("LEARNED_ADAPTER"),
  bottleneck: bottleneckWidth.default(160).describe("width between the two matrices"),
  adapters: z.int().min(1).describe("how many of the places are kept by the search"),
  temperature: z.number().positive().default(0.1).describe("of the gates: smaller is closer to 0 and 1, and faster"),
  search_ratio: z.number().gt(0).lt(1).default(0.3).describe("share of a run's steps that is spent on the search"),
  placement: z
    .strictObject({ self_attn: layers, mlp: layers } satisfies Record<Block, unknown>)
    .nullable()
    .default(null)
    .describe("what was found: for each layer the form of its adapter, or null; null as a whole: still searching"),
});

export type LearnedAdapterConfig = z.infer<typeof configSchema>;
export type Placement = NonNullable<LearnedAdapterConfig["placement"]>;

/** One place of an adapter. While searching it has every form, each behind a gate. */
export interface Place {
  readonly layer: number;
  readonly block: Block;
  readonly forms: readonly Form[];
}

/** The places of a config, layer by layer. Throws `InputError` listing all that does not fit the backbone. */
export function placesOf({ placement, adapters }: LearnedAdapterConfig, { numLayers }: BackboneConfig): Place[] {
  const all = Array.from({ length: numLayers }, (_, layer) => BLOCKS.map((block) => ({ layer, block }))).flat();
  const problems: string[] = [];
  if (adapters > all.length) problems.push(`adapters: ${adapters} do not fit, the backbone has ${all.length} places`);
  for (const block of BLOCKS) {
    const found = placement?.[block].length ?? numLayers;
    if (found !== numLayers) {
      problems.push(`placement: ${block} has ${found} entries, the backbone has ${numLayers} layers`);
    }
  }
  const places = all.flatMap(({ layer, block }) => {
    const form = placement?.[block][layer];
    if (form === null) return [];
    return [{ layer, block, forms: form === undefined ? FORMS : [form] }];
  });
  if (placement !== null && problems.length === 0 && places.length !== adapters) {
    problems.push(`placement: has ${places.length} adapters, adapters says ${adapters}`);
  }
  if (problems.length) throw new InputError("CONFIG_INVALID", "adapter_config.json", problems);
  return places;
}
