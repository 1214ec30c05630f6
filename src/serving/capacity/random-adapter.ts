/** @file Adapters with random values: a fresh one leaves the backbone as it is and might be skipped. */
import { Random } from "../../base/index.ts";
import { Adapter, methodOf } from "../../methods/index.ts";
import type { Backbone, BackboneConfig } from "../../models/index.ts";

/**
 * An adapter of any method, LoRA and its kin on all seven modules. All values are drawn anew where the method starts with zeros.
 * @param seed adapters of different ones differ in all values
 * @param weights for methods that start from them, as DoRA does
 */
export function randomAdapter(
  method: string,
  options: Readonly<Record<string, unknown>>,
  backbone: BackboneConfig,
  seed = 0,
  weights?: Backbone,
): Adapter {
  const adapter = Adapter.create(methodOf(method), options, backbone, 2 * seed + 1, weights);
  const random = new Random(2 * seed + 2);
  for (const { key, init } of adapter.specs) {
    if (init.kind !== "zeros") continue;
    const values = adapter.values(key);
    for (let i = 0; i < values.length; i++) values[i] = 0.02 * (random.uniform() - 0.5);
  }
  return adapter;
}
