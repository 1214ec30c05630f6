/** @file The runtime's attention over a cache against whole sequences: sizes of heads, caps, scales, windows, partial rotation. */
import { describe, expect, test } from "vitest";
import { Engine } from "../../src/generation/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { distance, pass } from "./support.ts";

type Config = Parameters<typeof Backbone.random>[0];

const base: Config = {
  modelType: "gemma2",
  hiddenSize: 32,
  intermediateSize: 48,
  numLayers: 2,
  numHeads: 4,
  numKvHeads: 2,
  headDim: 16,
  vocabSize: 96,
  rmsNormEps: 1e-6,
  ropeTheta: 10000,
  maxPositions: 128,
  tieWordEmbeddings: false,
  hiddenAct: "gelu_tanh",
  eosTokenIds: [],
};

const all = { attentionSoftcap: 0.5, attentionScale: 3, slidingWindow: { size: 6, layers: [1] } };

const CASES: Readonly<Record<string, Partial<Config>>> = {
  "heads of 8": { headDim: 8, ...all },
  "heads of 24": { headDim: 24, ...all },
  "heads of 80": { headDim: 80, ...all },
  "heads of 256": { headDim: 256, ...all },
  "one key-value head": { numKvHeads: 1, ...all },
  "half of a head rotated, by the kernel": { headDim: 32, rotaryDim: 16, ...all },
  "a part rotated that the kernel does not know": { headDim: 32, rotaryDim: 24, ...all },
  "a window of one": { slidingWindow: { size: 1, layers: [0, 1] } },
  "head norms and norms after sub-layers": { qkNorm: true, postNorms: true, ...all },
};

/** Random weights, large enough that every part of a layer matters. */
function strong(option: Partial<Config>): Backbone {
  const backbone = Backbone.random({ ...base, ...option }, { seed: 5 });
  for (const [name, { data }] of backbone.initializers()) {
    if (name.includes("rope") || name.includes("norm")) continue;
    for (let i = 0; i < data.length; i++) (data as Float32Array)[i]! *= 12;
  }
  return backbone;
}

describe.each(Object.keys(CASES))("%s", (name) => {
  test.each([undefined, "p-tuning-v2"])("adapter: %s", async (method) => {
    using backbone = strong(CASES[name]!);
    const prefix = { num_virtual_tokens: 3, prefix_projection: false };
    using adapter = method ? Adapter.create(methodOf(method), prefix, backbone.config, 1) : undefined;
    using engine = Engine.create(backbone);
    const prompts = [
      [1, 40, 7, 23, 88, 5, 61, 30, 12],
      [1, 9, 77],
    ];
    const with_ = adapter ? { adapter } : {};
    const options = { maxNewTokens: 8, eosTokenIds: [] };
    const results = await engine.generate(prompts.map((prompt) => ({ prompt, options, ...with_ })));
    const V = backbone.config.vocabSize;
    for (const [i, { tokens, logprobs }] of results.entries()) {
      const row = [...prompts[i]!, ...tokens];
      const { logits } = pass(backbone, adapter, { tokens: [row], promptLengths: [prompts[i]!.length] });
      for (const [t, token] of tokens.entries()) {
        const scores = logits.subarray((prompts[i]!.length + t - 1) * V, (prompts[i]!.length + t) * V);
        const total = scores.reduce((sum, score) => sum + Math.exp(score), 0);
        expect(Math.abs(logprobs[t]! - scores[token]! + Math.log(total))).toBeLessThan(1e-4);
      }
    }
  });
});

test("each of these options changes the numbers", () => {
  const tokens = [1, 40, 7, 23, 88, 5, 61, 30, 12, 4, 4, 9];
  const seen: Float32Array[] = [];
  const options: Partial<Config>[] = [
    {},
    { attentionSoftcap: 0.5 },
    { attentionScale: 3 },
    { slidingWindow: { size: 6, layers: [1] } },
    { slidingWindow: { size: 6, layers: [0] } },
    { rotaryDim: 8 },
    { qkNorm: true },
    { postNorms: true },
    { logitSoftcap: 0.05 },
    { hiddenAct: "silu" },
    { slidingWindow: { size: 6, layers: [1] }, localRope: { theta: 50 } },
  ];
  for (const option of options) {
    using backbone = strong(option);
    const { logits } = pass(backbone, undefined, { tokens: [tokens], promptLengths: [tokens.length] });
    for (const [i, other] of seen.entries()) expect(distance(logits, other), `${i}`).toBeGreaterThan(1e-2);
    seen.push(logits);
  }
});
