/** @file Builds an adapter's method into a graph: its tensors become graph inputs, derived tensors what the phase asks for. */
import type { Graph, Value } from "../graph/index.ts";
import type { Adapter } from "./adapter.ts";
import type { MethodGraph, Phase } from "./method.ts";

/** Graph inputs for an adapter's tensors begin with the first, those for derived tensors with the second. */
export const ADAPTER_INPUT = "adapter.";
export const DERIVED = "derived.";

export interface BuildOptions {
  /**
   * Tensors that follow from parameters and frozen weights alone (DoRA's scales): computed in place, so that gradients
   * reach the parameters (training); taken as inputs `derived.<name>` (generation); or computed and given as outputs of
   * that name, once per adapter.
   */
  readonly derived: "inline" | "input" | "output";
}

/** A method in a graph, and the graph inputs of its tensors by key. */
export interface BuiltMethod extends MethodGraph {
  parameter(key: string): Value;
}

export function buildMethod(graph: Graph, adapter: Adapter, phase: Phase, { derived }: BuildOptions): BuiltMethod {
  const shapes = new Map(adapter.specs.map(({ key, shape }) => [key, shape]));
  const once = new Map<string, Value>();
  const remember = (name: string, make: () => Value): Value => {
    const value = once.get(name) ?? make();
    once.set(name, value);
    return value;
  };
  const parameter = (key: string): Value => {
    const shape = shapes.get(key);
    if (shape === undefined) throw new Error(`${adapter.method.name} has no parameter ${key}`);
    return remember(ADAPTER_INPUT + key, () => graph.input(ADAPTER_INPUT + key, "float32", shape));
  };
  const built = adapter.method.build({
    graph,
    config: adapter.config,
    backbone: adapter.backbone,
    phase,
    parameter,
    derived: (name, shape, make) =>
      remember(DERIVED + name, () => {
        if (derived === "input") return graph.input(DERIVED + name, "float32", shape);
        return derived === "output" ? graph.output(DERIVED + name, make()) : make();
      }),
  });
  return { ...built, parameter };
}
