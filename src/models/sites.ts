/** @file The sites of a backbone, whatever its family. */
import type { BackboneConfig } from "./config.ts";
import { familyOf, type ParameterInfo } from "./families.ts";
import type { Site } from "./forward.ts";

/** Linear modules of the decoder layers, layer by layer, in the family's order. */
export function sitesOf(config: BackboneConfig): Site[] {
  return familyOf(config).sites(config);
}

/** Every weight of a checkpoint. */
export function parametersOf(config: BackboneConfig): ParameterInfo[] {
  return familyOf(config).parameters(config);
}

/** Names of a layer's linear modules, e.g. `["q_proj", …]`. */
export function moduleNames(config: BackboneConfig): string[] {
  return [...new Set(sitesOf(config).map((site) => site.module))];
}
