/** @file Which experts each row of a batch uses: decided once, in prefill, and kept as long as the sequence lives. */
import type { Route, Routing } from "../methods/index.ts";
import type { SharedRoute } from "./graphs.ts";
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

/** The routes of rows from what prefill returned for them, float32 [rows, layers, experts] each. */
export function readRoutes(
  routing: Routing,
  rows: number,
  gates: Float32Array,
  probabilities: Float32Array,
): RowRoute[] {
  const size = gates.length / rows;
  return Array.from({ length: rows }, (_, row) => {
    const [start, end] = [row * size, (row + 1) * size];
    const route = routeOf(gates.subarray(start, end), routing.experts.length);
    const report = reportRoute(routing, route, probabilities.subarray(start, end));
    return { route, key: JSON.stringify(route), report };
  });
}

/** The route that all rows share, if they do. */
export function commonRoute(rows: readonly (RowRoute | undefined)[]): SharedRoute | undefined {
  const first = rows[0];
  return rows.every((row) => row?.key === first?.key) ? first : undefined;
}
