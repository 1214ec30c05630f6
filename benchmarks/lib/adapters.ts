/** @file Adapters with random values, and what a step reads of one. */
import type { RouteReport } from "../../src/generation/index.ts";
import type { Adapter } from "../../src/methods/index.ts";
import { operators } from "../../src/runtime/index.ts";

export { randomAdapter } from "../../src/serving/capacity/random-adapter.ts";

/**
 * Bytes of an adapter that a decoding step over int4 weights reads: int8 where it is packed for milora's operators.
 * @param routes of a routed one, those of all sequences: what none has chosen is not read, nor are routers
 */
export function adapterBytes({ method, specs }: Adapter, routes: readonly RouteReport[]): number {
  const each = method.lower && operators() ? 1 : 4;
  const chosen = ({ experts }: RouteReport, key: string): boolean =>
    experts.some((names, layer) => key.includes(`.layers.${layer}.`) && names.some((n) => key.includes(`.${n}.`)));
  const read = specs.filter(({ key }) => !method.properties.routed || routes.some((route) => chosen(route, key)));
  return each * read.reduce((total, { shape }) => total + shape.reduce((a, b) => a * b, 1), 0);
}
