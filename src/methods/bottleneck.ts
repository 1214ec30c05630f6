/** @file What bottleneck adapters share: their places, the keys and starting values of their two matrices. */
import { z } from "zod";
import type { ParameterSpec } from "./method.ts";
import { KEY_PREFIX } from "./peft.ts";

/** The sub-layers of a decoder layer, in order. */
export const BLOCKS = ["self_attn", "mlp"] as const;
export type Block = (typeof BLOCKS)[number];

export const bottleneckWidth = z.int().min(1).max(16384);

/** Keys of an adapter at a sub-layer, e.g. `….layers.3.mlp.parallel_adapter`. */
export function bottleneckKeys(layer: number, block: Block, name: string): { path: string; down: string; up: string } {
  const path = `${KEY_PREFIX}model.layers.${layer}.${block}.${name}`;
  return { path, down: `${path}.down.weight`, up: `${path}.up.weight` };
}

/** Down [b, d] drawn as LoRA's A, up [d, b] zero: at first nothing changes. No biases. */
export function bottleneckSpecs(keys: { down: string; up: string }, width: number, d: number): ParameterSpec[] {
  return [
    { key: keys.down, shape: [width, d], init: { kind: "kaimingUniform", fanIn: d }, group: "weights" },
    { key: keys.up, shape: [d, width], init: { kind: "zeros" }, group: "weights" },
  ];
}
