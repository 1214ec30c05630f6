/** @file What routers attend to: reported beside their probabilities by the pass over prompts that is asked for it. */
import { concat, type Graph, unsqueeze, type Value } from "../graph/index.ts";
import { type Adapter, type BuiltMethod, type MethodGraph, parameterInputs } from "../methods/index.ts";

/** Name of the report, float32 [B, layers, T]; of a pooler that has no weights there is none. */
export const ATTENTION = "attention";

/**
 * The graph of a method, or of items in its place, that also reports the attention of an adapter's routers.
 * @param promptMask float32 [B, T]
 */
export function watched(
  graph: Graph,
  method: MethodGraph | BuiltMethod | undefined,
  adapter: Adapter | undefined,
  promptMask: Value,
): MethodGraph | undefined {
  if (!method || !adapter) return method;
  const parameter = "parameter" in method ? method.parameter : parameterInputs(graph, adapter);
  const attention = adapter.method.attention?.({ config: adapter.config, promptMask, parameter });
  if (!attention) return method;
  const layers: Value[] = []; // [B, 1, T] each
  return {
    ...method,
    hooks: {
      ...method.hooks,
      beforeLayer(layer, hidden) {
        method.hooks.beforeLayer?.(layer, hidden);
        layers.push(unsqueeze(attention(layer, hidden), [1]));
      },
    },
    reports: () => new Map([...(method.reports?.() ?? []), [ATTENTION, concat(layers, 1)]]),
  };
}
