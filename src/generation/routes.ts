/** @file Which experts each row of a batch uses: decided once, in prefill, and kept as long as the sequence lives. */
import type { Adapter, Route, Routing } from "../methods/index.ts";
import { REPORT, type SharedRoute, STATE } from "./graphs.ts";
import type { RouteReport } from "./request.ts";

/** The route of one row. */
export interface RowRoute extends SharedRoute {
  readonly report: RouteReport;
}

/** Reads gates float32 [layers, experts] of one sequence; an expert is active where its gate is not 0. */
export function routeOf(gates: Float32Array, experts: number): Route {
  const layers = gates.length / experts;
  return Array.from({ length: layers }, (_, layer) =>
    Array.from({ length: experts }, (_, expert) => expert).filter((expert) => gates[layer * experts + expert] !== 0),
  );
}

/** What was chosen, in names. Both arrays are float32 [layers, experts]. */
export function reportRoute(routing: Routing, route: Route, probabilities: Float32Array): RouteReport {
  const width = routing.experts.length;
  return {
    experts: route.map((active) => active.map((expert) => routing.experts[expert]!)),
    probabilities: route.map((_, layer) => Array.from(probabilities.subarray(layer * width, (layer + 1) * width))),
  };
}

/** The route of a prompt from what its pass gave; undefined where its adapter does not choose experts. */
export function readRoute(
  adapter: Adapter | undefined,
  outputs: ReadonlyMap<string, { readonly data: Float32Array }>,
): RowRoute | undefined {
  const routing = adapter?.method.routing?.(adapter.config);
  const gates = outputs.get(`${STATE}gates`)?.data;
  const probabilities = outputs.get(`${REPORT}probabilities`)?.data;
  if (!routing || !gates || !probabilities) return undefined;
  const route = routeOf(gates, routing.experts.length);
  return { route, key: JSON.stringify(route), report: reportRoute(routing, route, probabilities) };
}

/** The route that all rows share, if they do. */
export function commonRoute(rows: readonly (RowRoute | undefined)[]): SharedRoute | undefined {
  const first = rows[0];
  return rows.every((row) => row?.key === first?.key) ? first : undefined;
}
