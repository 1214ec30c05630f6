/** @file MOELoRA's parameter counts, the limits of its config, and how many nodes its routing costs. */

import { expect, test } from "vitest";
import { sum } from "../../base/index.ts";
import { Graph } from "../../graph/index.ts";
import { Backbone } from "../../models/index.ts";
import { Adapter, buildMethod, lora, type Method, moelora } from "../index.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;
const total = (parts: Readonly<Record<string, number>>) => sum(Object.values(parts));

test("87.3 M tunable on LLaMA-2 7B, as in the paper; a token uses half of the experts", () => {
  const config = moelora.newConfig({}, llama7b);
  expect(config).toMatchObject({ r: 32, lora_alpha: 32, num_experts: 8, top_k: 4, load_balance_coefficient: 0.01 });
  const { tunable, activated } = moelora.countParameters(config, llama7b);
  expect(tunable).toEqual({ experts: 79_953_920, routers: 7_340_032 });
  expect(total(tunable)).toBe(87_293_952);
  expect(activated).toEqual({ experts: 39_976_960, routers: 7_340_032 });
  const listed = moelora.parameters(config, llama7b);
  expect(listed.reduce((all, { shape }) => all + shape.reduce((a, b) => a * b), 0)).toBe(total(tunable));
});

test.each([
  [{ num_experts: 5 }, /num_experts: does not divide r/],
  [{ top_k: 9 }, /top_k: is larger than num_experts/],
  [{ top_k: 0 }, /top_k/],
  [{ target_modules: ["q_proj", "q_proj"] }, /names a module twice/],
  [{ target_modules: ["q_proj", "c_attn", "c_proj"] }, /no "c_attn".*no "c_proj"/],
])("refuses %j", (options, message) => {
  expect(() => moelora.newConfig(options, llama7b)).toThrow(message);
});

test("a decoding layer routes its seven modules with 23 nodes more than LoRA has", () => {
  const config = { ...Backbone.shapes["smollm2-135m"]!, hiddenSize: 16, headDim: 4, numHeads: 4, numKvHeads: 2 };
  const nodes = (method: Method, numLayers: number) => {
    using backbone = Backbone.random({ ...config, numLayers, intermediateSize: 32, vocabSize: 32 });
    using adapter = Adapter.create(method, { r: 8 }, backbone.config, 1);
    const graph = new Graph("decode");
    const tokens = graph.input("tokens", "int64", ["B", 1]);
    const lastPositions = graph.input("lastPositions", "int32", ["B"]);
    const totalLength = graph.input("totalLength", "int32", []);
    const state = () => graph.scalar(0);
    const { hooks } = buildMethod(graph, adapter, { kind: "decode", state }, { derived: "input" });
    const attention = { kind: "cached", lastPositions, totalLength } as const;
    graph.output("hidden", backbone.forward(graph, { tokens, attention, hooks }).hidden);
    return graph.nodes.filter(({ op }) => op.alias === undefined).length; // those that ONNX Runtime sees
  };
  const perLayer = (method: Method) => nodes(method, 2) - nodes(method, 1);
  expect(perLayer(moelora as unknown as Method) - perLayer(lora as unknown as Method)).toBe(23);
});
