/** @file What is read out of adapters that stand beside sub-layers: each by its own name, sizes off their own tensors. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { Adapter, learnedActivations } from "../../methods/index.ts";
import { layerNorms } from "./facts.ts";
import { inferBackbone } from "./infer.ts";

const activations = (adapter: Adapter) => learnedActivations(adapter.tensors.keys(), (key) => adapter.values(key));

const load = (path: string): Adapter => {
  const directory = join(import.meta.dirname, "../../../test/fixtures", path);
  return Adapter.load(directory, inferBackbone(directory));
};

test("adapters of attention and feed-forward are told apart", () => {
  using adapter = load("learned-adapter/placed");
  const norms = layerNorms(adapter);
  expect([...norms.get(0)!.keys()]).toEqual(["self_attn.down", "self_attn.up", "mlp.down", "mlp.up"]);
  expect([...norms.get(1)!.keys()]).toEqual(["mlp.down", "mlp.up"]);
  const places = activations(adapter).map(({ layer, block }) => `${layer} ${block}`);
  expect(places).toEqual(["0 self_attn", "0 mlp", "1 mlp", "2 self_attn"]);
});

test("one activation function a layer has no sub-layer", () => {
  using adapter = load("milora/default");
  expect(activations(adapter).map(({ layer, block }) => [layer, block])).toEqual([0, 1, 2].map((l) => [l, undefined]));
});

test.each(["iapt/default", "parallel-adapter/default"])("%s tells the backbone's sizes", (path) => {
  using adapter = load(path);
  expect([adapter.backbone.numLayers, adapter.backbone.hiddenSize]).toEqual([3, 32]);
});
