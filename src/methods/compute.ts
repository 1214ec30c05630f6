/** @file Small graphs over an adapter's tensors, run at once: what a method computes outside of a forward pass. */
import { exportOnnx, Graph, type Value } from "../graph/index.ts";
import { Session, type Tensor } from "../runtime/index.ts";

/** Graph inputs for tensors, named by their keys; each is there once, and only if it is asked for. */
export function inputsOf(graph: Graph, tensors: ReadonlyMap<string, Tensor>): (key: string) => Value {
  const inputs = new Map<string, Value>();
  return (key) => {
    const input = inputs.get(key) ?? graph.input(key, "float32", tensors.get(key)!.shape);
    inputs.set(key, input);
    return input;
  };
}

/** Runs such a graph once; the caller disposes what comes out. */
export function runOnce(graph: Graph, tensors: ReadonlyMap<string, Tensor>): ReadonlyMap<string, Tensor> {
  using session = Session.create(exportOnnx(graph));
  const feeds = Object.fromEntries(session.inputs.map(({ name }) => [name, tensors.get(name)!]));
  return new Map(Object.entries(session.call(feeds)));
}

/**
 * Computes tensors from those of an adapter.
 * @param tensors float32, by key
 * @param build gives the wanted values by name, from parameters by key
 * @returns the caller disposes them
 */
export function compute(
  tensors: ReadonlyMap<string, Tensor>,
  build: (parameter: (key: string) => Value) => ReadonlyMap<string, Value>,
): ReadonlyMap<string, Tensor> {
  const graph = new Graph("compute");
  for (const [name, value] of build(inputsOf(graph, tensors))) graph.output(name, value);
  return runOnce(graph, tensors);
}
