/** @file Names of a learned adapter's tensors on disk. */
import { bottleneckKeys } from "../bottleneck.ts";
import type { Place } from "./config.ts";

export function keysOf({ layer, block }: Pick<Place, "layer" | "block">) {
  const { path, down, up } = bottleneckKeys(layer, block, "learned_adapter");
  return { down, up, activation: `${path}.activation`, gate: `${path}.gate` };
}
