/** @file Attention prefixes: a method that puts keys and values before a sequence gives what full attention gives. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { z } from "zod";
import { exportOnnx, Graph, logSoftmax } from "../graph/index.ts";
import { ADAPTER_INPUT, Adapter, buildMethod, type Method } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { Session, Tensor } from "../runtime/index.ts";
import { Engine } from "./engine.ts";
import { distance, smallConfig } from "./testing.ts";

const LENGTH = 5;

/** P-tuning v2 without its projection: a key and a value a layer for each of five places. */
const prefixes: Method = {
  name: "prefixes",
  peftType: "PREFIXES",
  configSchema: z.unknown(),
  properties: { routed: false, mergeable: false, startsAsIdentity: false },
  newConfig: () => ({}),
  parameters: (_, { numLayers, numKvHeads, headDim }) =>
    Array.from({ length: 2 * numLayers }, (_, i) => ({
      key: `${i >> 1}.${i % 2 ? "value" : "key"}`,
      shape: [1, LENGTH, numKvHeads * headDim],
      init: { kind: "normal", std: 1 },
      group: "weights",
    })),
  countParameters: () => ({ tunable: {}, activated: {} }),
  isIdentity: () => false,
  prefixLength: () => LENGTH,
  build: ({ parameter }) => ({
    hooks: {
      prefix: (layer) => ({ length: LENGTH, key: parameter(`${layer}.key`), value: parameter(`${layer}.value`) }),
    },
  }),
};

let backbone: Backbone;
let adapter: Adapter;
let engine: Engine;
beforeAll(() => {
  backbone = Backbone.random(smallConfig, { seed: 3 });
  adapter = Adapter.create(prefixes, {}, backbone.config, 1);
  engine = Engine.create(backbone, { context: 40 });
});
afterAll(() => {
  engine.dispose();
  adapter.dispose();
  backbone.dispose();
});

/** Log-probabilities after every token by full attention, float32 [T · V]. */
function reference(tokens: readonly number[]): Float32Array {
  const graph = new Graph("reference");
  const ids = graph.input("tokens", "int64", ["B", "T"]);
  const promptMask = graph.input("mask", "float32", ["B", "T"]);
  const { hooks } = buildMethod(graph, adapter, { kind: "train", promptMask }, { derived: "inline" });
  const { hidden, logits } = backbone.forward(graph, { tokens: ids, attention: { kind: "full" }, hooks });
  graph.output("logProbs", logSoftmax(logits(hidden), -1));
  using session = Session.create(exportOnnx(graph), { initializers: backbone.initializers() });
  using input = Tensor.from("int64", [1, tokens.length], BigInt64Array.from(tokens, BigInt));
  const feeds: Record<string, Tensor> = { tokens: input };
  for (const { name } of session.inputs) {
    if (name.startsWith(ADAPTER_INPUT)) feeds[name] = adapter.tensors.get(name.slice(ADAPTER_INPUT.length))!;
  }
  const { logProbs } = session.call(feeds);
  const values = Float32Array.from(logProbs!.data as Float32Array);
  logProbs!.dispose();
  return values;
}

test("scores, greedy tokens and beams, in batches of unequal lengths", async () => {
  const prompts = [[1, 44, 23], [7], [5, 9, 11, 60, 2, 8, 31]];
  const V = smallConfig.vocabSize;
  const results = await engine.generate(
    prompts.map((prompt) => ({ prompt, adapter, options: { maxNewTokens: 9, eosTokenIds: [] } })),
  );
  for (const [i, prompt] of prompts.entries()) {
    const { tokens, logprobs } = results[i]!;
    const all = reference([...prompt, ...tokens]);
    const expected = tokens.map((token, t) => all[(prompt.length + t - 1) * V + token]!);
    expect(distance(logprobs, expected)).toBeLessThan(1e-4);
    const [scored] = await engine.score([{ prompt, continuation: tokens }], adapter);
    expect(distance(scored!.logprobs, expected)).toBeLessThan(1e-4);
    expect(scored!.greedy).toBe(true);
    const [searched] = await engine.generate([
      { prompt, adapter, options: { maxNewTokens: 9, eosTokenIds: [], beams: 3 } },
    ]);
    const found = reference([...prompt, ...searched!.tokens]);
    const sums = searched!.tokens.map((token, t) => found[(prompt.length + t - 1) * V + token]!);
    expect(distance(searched!.logprobs, sums)).toBeLessThan(1e-4);
  }
  const [bare] = await engine.generate([{ prompt: prompts[0]!, options: { maxNewTokens: 9, eosTokenIds: [] } }]);
  expect(distance(bare!.logprobs, results[0]!.logprobs)).toBeGreaterThan(1e-3);
});

test("the prefix counts against the context", async () => {
  const request = (maxNewTokens: number) => ({
    prompt: new Array<number>(20).fill(4),
    adapter,
    options: { maxNewTokens, eosTokenIds: [] },
  });
  await expect(engine.generate([request(17)])).rejects.toThrow(/prefix takes 5 of 40 positions/);
  expect((await engine.generate([request(16)]))[0]!.tokens).toHaveLength(16);
});

test("a prefix leaves that much less of the context", async () => {
  expect(engine.contextOf()).toBe(40);
  expect(engine.contextOf(adapter)).toBe(40 - LENGTH);
});
