/** @file Which experts each row of a batch uses: decided once, in prefill, and kept as long as the sequence lives. */
import type { Route, Routing } from "../methods/index.ts";
import type { SharedRoute } from "./graphs.ts";
import type { RouteReport } from "./request.ts";

interface RowRoute extends SharedRoute {
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

/** The routes of a batch's rows. */
export class RouteBook {
  readonly #routing: Routing;
  readonly #rows: RowRoute[] = [];
  /** Whether all rows share one route; undefined when rows have changed. */
  #alike: boolean | undefined;

  constructor(routing: Routing) {
    this.#routing = routing;
  }

  /** Takes the routes of further rows from what prefill returned, float32 [rows, layers, experts] each. */
  add(rows: number, gates: Float32Array, probabilities: Float32Array): void {
    this.#alike = undefined;
    const size = gates.length / rows;
    for (let row = 0; row < rows; row++) {
      const at = row * size;
      const route = routeOf(gates.subarray(at, at + size), this.#routing.experts.length);
      const report = reportRoute(this.#routing, route, probabilities.subarray(at, at + size));
      this.#rows.push({ route, key: JSON.stringify(route), report });
    }
  }

  copy(from: number, to: number): void {
    this.#alike = undefined;
    this.#rows[to] = this.#rows[from]!;
  }

  /** Forgets the rows from `rows` on. */
  truncate(rows: number): void {
    this.#alike = undefined;
    this.#rows.length = Math.min(rows, this.#rows.length);
  }

  report(row: number): RouteReport {
    return this.#rows[row]!.report;
  }

  /** The route of all rows, if they share one. */
  get common(): SharedRoute | undefined {
    const first = this.#rows[0];
    this.#alike ??= this.#rows.every((row) => row.key === first?.key);
    return this.#alike ? first : undefined;
  }
}
