/** @file Adapters with random values: a fresh one leaves the backbone as it is and might be skipped. */
import { Random } from "../../src/base/index.ts";
import type { RouteReport } from "../../src/generation/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import type { Backbone, BackboneConfig } from "../../src/models/index.ts";
import { operators } from "../../src/runtime/index.ts";

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

/**
 * Bytes of an adapter that a decoding step over rounded weights reads: float16 where it is packed for milora's operators.
 * @param routes of a routed one, those of all sequences: what none has chosen is not read, nor are routers
 */
export function adapterBytes({ method, specs }: Adapter, routes: readonly RouteReport[]): number {
  const each = method.lower && operators() ? 2 : 4;
  const chosen = ({ experts }: RouteReport, key: string): boolean =>
    experts.some((names, layer) => key.includes(`.layers.${layer}.`) && names.some((n) => key.includes(`.${n}.`)));
  const read = specs.filter(({ key }) => !method.properties.routed || routes.some((route) => chosen(route, key)));
  return each * read.reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);
}
