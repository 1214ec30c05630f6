/** @file Builds an adapter's method into a graph: its tensors become graph inputs, derived tensors what the phase asks for. */
import { add, addedTo, concat, type Dim, type Graph, split, type Value } from "../graph/index.ts";
import type { Hooks } from "../models/index.ts";
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
  /** Before the names of the adapter's inputs and outputs, where a graph has several adapters. Default: none. */
  readonly prefix?: string;
}

/** A method in a graph, and the graph inputs of its tensors by key. */
export interface BuiltMethod extends MethodGraph {
  parameter(key: string): Value;
}

export function buildMethod(graph: Graph, adapter: Adapter, phase: Phase, options: BuildOptions): BuiltMethod {
  const { derived, prefix = "" } = options;
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
    return remember(ADAPTER_INPUT + key, () => graph.input(prefix + ADAPTER_INPUT + key, "float32", shape));
  };
  const built = adapter.method.build({
    graph,
    config: adapter.config,
    backbone: adapter.backbone,
    phase,
    parameter,
    derived: (name, shape, make) =>
      remember(DERIVED + name, () => {
        if (derived === "input") return graph.input(prefix + DERIVED + name, "float32", shape);
        return derived === "output" ? graph.output(prefix + DERIVED + name, make()) : make();
      }),
  });
  return { ...built, parameter };
}

/** An adapter's tensors as inputs of a graph that its method is not built into. */
export function parameterInputs(graph: Graph, { specs }: Adapter): (key: string) => Value {
  const shapes = new Map(specs.map(({ key, shape }) => [key, shape]));
  return (key) => graph.input(ADAPTER_INPUT + key, "float32", shapes.get(key)!);
}

/** What one of several joined batches is changed by. */
export interface JoinedHooks {
  readonly hooks: Hooks;
  /** How many of the rows of activations are the batch's, which stand behind those of the batches before it. */
  readonly rows: Dim;
}

/**
 * The hooks of several adapters over joined batches (`AttentionMode` `joined`): each sees its own batch's rows only, so
 * that what the frozen model computes is all that they share. Methods that change weights cannot be joined.
 */
export function joinHooks(parts: readonly JoinedHooks[]): Hooks {
  if (parts.length === 1) return parts[0]!.hooks;
  if (parts.some(({ hooks }) => hooks.change)) throw new Error("a method that changes weights cannot be joined");
  const sizes = parts.map(({ rows }) => rows);
  const cut = (x: Value): Value[] => split(x, 0, sizes);
  /** Results of all parts in one. Where each only adds to its rows of y, these need not be cut out of it at all. */
  const join = (y: Value, ys: readonly Value[], results: readonly Value[]): Value => {
    if (results.every((result, i) => result === ys[i])) return y;
    const added = results.map((result, i) => addedTo(ys[i]!, result));
    if (added.every((value) => value !== undefined)) return add(y, concat(added, 0));
    return concat(results, 0);
  };
  const has = (name: keyof Hooks): boolean => parts.some(({ hooks }) => hooks[name] !== undefined);
  return {
    ...(has("beforeLayer") && {
      beforeLayer(layer, hidden) {
        const own = cut(hidden);
        for (const [i, { hooks }] of parts.entries()) hooks.beforeLayer?.(layer, own[i]!);
      },
    }),
    ...(has("linear") && {
      linear(site, x, y, weight) {
        const [xs, ys] = [cut(x), cut(y)];
        const results = parts.map(({ hooks }, i) => hooks.linear?.(site, xs[i]!, ys[i]!, weight) ?? ys[i]!);
        return join(y, ys, results);
      },
    }),
    ...(has("block") && {
      block(layer, block, x, y) {
        const [xs, ys] = [cut(x), cut(y)];
        const results = parts.map(({ hooks }, i) => hooks.block?.(layer, block, xs[i]!, ys[i]!) ?? ys[i]!);
        return join(y, ys, results);
      },
    }),
    ...(has("prefix") && {
      prefixes: (layer, own) => parts.map(({ hooks }) => hooks.prefix?.(layer, own)),
    }),
  };
}
