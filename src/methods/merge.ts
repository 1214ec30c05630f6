/** @file Folds an adapter into its backbone: a checkpoint in the backbone's own format that needs no adapter any more. */
import { InputError } from "../base/index.ts";
import { add, Graph } from "../graph/index.ts";
import {
  type BackboneConfig,
  type Change,
  type RewriteOptions,
  readBackboneConfig,
  rewriteCheckpoint,
  sitesOf,
} from "../models/index.ts";
import { Tensor } from "../runtime/index.ts";
import type { Adapter } from "./adapter.ts";
import { inputsOf, runOnce } from "./compute.ts";

/** No adapter has parameters of these names: theirs are paths. */
const WEIGHT = "weight";
const MERGED = "merged";

function checkFits({ method, config, specs }: Adapter, directory: string, backbone: BackboneConfig): void {
  const shapes = (list: Adapter["specs"]) => JSON.stringify(list.map(({ key, shape }) => [key, shape]));
  if (shapes(method.parameters(config, backbone)) === shapes(specs)) return;
  throw new InputError("ADAPTER_MISMATCH", directory, "is another backbone than the adapter's");
}

/**
 * Writes the backbone in `directory` with the adapter folded into its weights, as a model directory that transformers
 * loads. Sums are made in float32 and rounded once, to the dtype asked for.
 * @returns names of the weights that changed
 * @throws InputError ADAPTER_NOT_MERGEABLE, ADAPTER_MISMATCH, or what `rewriteCheckpoint` throws
 */
export async function mergeAdapter(
  adapter: Adapter,
  directory: string,
  output: string,
  options: RewriteOptions = {},
): Promise<string[]> {
  const { method, config, tensors } = adapter;
  const { merge } = method;
  if (merge === undefined) {
    const reason = method.properties.routed
      ? "what it changes depends on the prompt"
      : "what it adds is no change of a weight";
    throw new InputError("ADAPTER_NOT_MERGEABLE", method.name, `cannot be folded into the weights: ${reason}`);
  }
  const backbone = readBackboneConfig(directory);
  checkFits(adapter, directory, backbone);
  const sites = new Map(sitesOf(backbone).map((site) => [`${site.path}.weight`, site]));
  const changed: string[] = [];
  const change: Change = (name, shape, read) => {
    const graph = new Graph("merge");
    const weight = graph.input(WEIGHT, "float32", shape);
    const context = { config, backbone, parameter: inputsOf(graph, tensors) };
    const delta = merge(context, name, weight, sites.get(name));
    if (delta === undefined) return undefined;
    graph.output(MERGED, add(weight, delta));
    changed.push(name);
    using frozen = Tensor.from("float32", shape, read());
    using merged = runOnce(graph, new Map([...tensors, [WEIGHT, frozen]])).get(MERGED)!;
    return (merged.data as Float32Array).slice();
  };
  await rewriteCheckpoint(directory, backbone, output, change, options);
  return changed;
}
