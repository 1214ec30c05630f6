/** @file What a request can ask for beyond tokens: alternatives, probabilities of the prompt, biases; checked against `score`. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { Engine } from "./engine.ts";
import { distance, smallConfig } from "./testing.ts";

let backbone: Backbone;
let engine: Engine;
beforeAll(() => {
  backbone = Backbone.random(smallConfig, { seed: 3 });
  engine = Engine.create(backbone);
});
afterAll(() => {
  engine.dispose();
  backbone.dispose();
});

const prompt = [1, 44, 23, 90, 17];

test("alternatives come likeliest first and are the model's own, before any penalty", async () => {
  const options = { maxNewTokens: 6, topLogprobs: 3, eosTokenIds: [] };
  const [plain] = await engine.generate([{ prompt, options }]);
  expect(plain!.topLogprobs).toHaveLength(6);
  for (const [i, top] of plain!.topLogprobs!.entries()) {
    expect(top).toHaveLength(3);
    expect(top[0]).toEqual({ token: plain!.tokens[i], logprob: plain!.logprobs[i] }); // greedy
    expect(top[1]!.logprob).toBeLessThanOrEqual(top[0]!.logprob);
    const [row] = await engine.score([
      { prompt: [...prompt, ...plain!.tokens.slice(0, i)], continuation: [top[2]!.token] },
    ]);
    expect(Math.abs(row!.logprobs[0]! - top[2]!.logprob)).toBeLessThan(1e-5);
  }
  const forced = { ...options, logitBias: { "60": 100 } };
  const [biased] = await engine.generate([{ prompt, options: forced }]);
  expect(biased!.tokens).toEqual([60, 60, 60, 60, 60, 60]);
  expect(biased!.topLogprobs![0]).toEqual(plain!.topLogprobs![0]);
  expect(biased!.logprobs[0]).toBeLessThan(plain!.logprobs[0]!);
});

test("a frequency penalty keeps an answer from repeating itself", async () => {
  const options = { maxNewTokens: 30, eosTokenIds: [] };
  const [plain] = await engine.generate([{ prompt, options }]);
  const [varied] = await engine.generate([
    { prompt, options: { ...options, frequencyPenalty: 2, presencePenalty: 2 } },
  ]);
  expect(new Set(varied!.tokens).size).toBeGreaterThan(new Set(plain!.tokens).size);
});

describe.each([undefined, "milora"])("probabilities of the prompt (%s)", (method) => {
  let adapter: Adapter | undefined;
  beforeAll(() => {
    adapter = method ? Adapter.create(methodOf(method), { r: 2, top_k: 2 }, backbone.config, 1) : undefined;
  });
  afterAll(() => adapter?.dispose());
  const request = () => ({ prompt, ...(adapter && { adapter }), promptLogprobs: { top: 2 } });

  test.each([0, 1, 4])("with %i new tokens", async (maxNewTokens) => {
    const options = { maxNewTokens, eosTokenIds: [], topLogprobs: 1 };
    const [result] = await engine.generate([{ ...request(), options }]);
    const { logprobs } = await engine.inspectTokens(prompt, adapter);
    const [first, ...rest] = result!.promptLogprobs!;
    expect(first).toBeNull();
    expect(rest.map((one) => one!.token)).toEqual(prompt.slice(1));
    expect(
      distance(
        rest.map((one) => one!.logprob),
        logprobs,
      ),
    ).toBeLessThan(1e-5);
    for (const one of rest) {
      expect(one!.top).toHaveLength(2);
      expect(one!.top[0]!.logprob).toBeGreaterThanOrEqual(Math.max(one!.logprob, one!.top[1]!.logprob) - 1e-6);
    }
    expect(result!.finishReason).toBe("length");
    expect(result!.tokens).toHaveLength(maxNewTokens);
    expect(result!.route !== undefined).toBe(method !== undefined);
    if (maxNewTokens === 0) return;
    const [plain] = await engine.generate([{ prompt, ...(adapter && { adapter }), options }]);
    expect(result!.tokens).toEqual(plain!.tokens);
    expect(distance(result!.logprobs, plain!.logprobs)).toBeLessThan(1e-5);
    expect(result!.topLogprobs!.map(([best]) => best!.token)).toEqual(plain!.tokens);
  });

  test("a prompt of one token has none", async () => {
    const [result] = await engine.generate([{ ...request(), prompt: [1], options: { maxNewTokens: 0 } }]);
    expect(result!.promptLogprobs).toEqual([null]);
  });
});

test("what does not go together is refused", async () => {
  const wrong = engine.generate([
    { prompt, options: { maxNewTokens: 0 } },
    { prompt, options: { maxNewTokens: 1, beams: 2, presencePenalty: 1, topLogprobs: 2 } },
    { prompt, options: { maxNewTokens: 1, logitBias: { "96": 1 }, topLogprobs: 21 } },
    { prompt, options: { maxNewTokens: 1, logitBias: { x: 1 }, minP: 2, frequencyPenalty: 3 } },
    { prompt, options: { maxNewTokens: 1 }, promptLogprobs: { top: -1 } },
  ]);
  await expect(wrong).rejects.toThrow(
    /maxNewTokens: at least 1.*presencePenalty, topLogprobs: not with beams.*topLogprobs: .*logitBias: 96.*minP.*frequencyPenalty.*logitBias: x: token ids.*promptLogprobs.top/,
  );
});
