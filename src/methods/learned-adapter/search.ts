/** @file The end of the search: which places keep their adapter, in which form, and with which numbers. */
import type { BackboneConfig } from "../../models/index.ts";
import { BLOCKS, type Block } from "../bottleneck.ts";
import type { Successor } from "../method.ts";
import { FORMS, type Form, type LearnedAdapterConfig, type Place, type Placement, placesOf } from "./config.ts";
import { keysOf } from "./keys.ts";

/** A place with the form whose gate has become largest, and that gate's weight σ(gate / temperature). */
interface Candidate extends Place {
  readonly form: Form;
  readonly weight: number;
}

function candidate(place: Place, gates: Float32Array, temperature: number): Candidate {
  const best = gates.indexOf(Math.max(...gates));
  return { ...place, form: FORMS[best]!, weight: 1 / (1 + Math.exp(-gates[best]! / temperature)) };
}

/**
 * Each place keeps the form with the larger gate, and the `adapters` places with the largest such gates stay (of equal
 * ones the first). They go on from what they have learned, the gate multiplied into the up-projection, so that a place
 * that stays gives what that form of it gave before.
 */
export function found(
  config: LearnedAdapterConfig,
  backbone: BackboneConfig,
  values: (key: string) => Float32Array,
): Successor<LearnedAdapterConfig> & { values(key: string): Float32Array } {
  const kept = placesOf(config, backbone)
    .map((place) => candidate(place, values(keysOf(place).gate), config.temperature))
    .sort((a, b) => b.weight - a.weight)
    .slice(0, config.adapters);
  const at = (layer: number, block: Block): Form | null =>
    kept.find((place) => place.layer === layer && place.block === block)?.form ?? null;
  const layers = Array.from({ length: backbone.numLayers }, (_, layer) => layer);
  const placement = Object.fromEntries(BLOCKS.map((block) => [block, layers.map((layer) => at(layer, block))]));
  const scales = new Map(kept.map((place) => [keysOf(place).up, place.weight]));
  return {
    config: { ...config, placement: placement as Placement },
    values(key) {
      const scale = scales.get(key);
      return scale === undefined ? values(key) : values(key).map((value) => value * scale);
    },
  };
}
