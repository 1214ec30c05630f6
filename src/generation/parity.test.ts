/** @file Logits, probabilities, routes and tokens equal those of PyTorch, transformers and PEFT (test/reference). */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Backbone } from "../models/index.ts";
import { Engine } from "./engine.ts";
import {
  distance,
  type ExpectedPrompt,
  type ExpectedSequence,
  fixtureNames,
  loadAdapter,
  loadBackbone,
  readFixture,
} from "./testing.ts";

const TOLERANCE = 1e-4;
const GREEDY = { maxNewTokens: 12, eosTokenIds: [] };

interface BeamCase {
  readonly backbone: string;
  readonly prompt: number[];
  readonly beams: number;
  readonly lengthPenalty: number;
  readonly maxNewTokens: number;
  readonly eosTokenIds: number[];
  readonly tokens: number[];
  readonly score: number;
}

describe.each(fixtureNames("backbones"))("backbone %s", (name) => {
  const { sequences } = readFixture<{ sequences: ExpectedSequence[] }>(`backbones/${name}/expected.json`);
  let backbone: Backbone;
  let engine: Engine;
  beforeAll(async () => {
    backbone = await loadBackbone(name);
    engine = Engine.create(backbone);
  });
  afterAll(() => {
    engine.dispose();
    backbone.dispose();
  });

  test("logits and log-probabilities", async () => {
    for (const { tokens, logits, lastLogits, logProbs } of sequences) {
      const found = await engine.inspectTokens(tokens);
      expect(distance(found.logits, lastLogits ?? logits!.at(-1)!)).toBeLessThan(TOLERANCE);
      expect(distance(found.logprobs, logProbs)).toBeLessThan(TOLERANCE);
      expect(found.route).toBeUndefined();
    }
  });

  test("greedy tokens, one by one and as one batch of unequal lengths", async () => {
    const known = sequences.filter(({ greedy }) => greedy !== null);
    const requests = known.map(({ tokens }) => ({ prompt: tokens, options: GREEDY }));
    const together = await engine.generate(requests);
    for (const [i, { greedy }] of known.entries()) {
      expect(together[i]!.tokens).toEqual(greedy);
      const [alone] = await engine.generate([requests[i]!]);
      expect(alone!.tokens).toEqual(greedy);
      expect(distance(together[i]!.logprobs, alone!.logprobs)).toBeLessThan(TOLERANCE);
    }
  });

  test("the log-probabilities of generated tokens are those of scoring them", async () => {
    const { tokens, greedy } = sequences.find((sequence) => sequence.greedy !== null)!;
    const [generated] = await engine.generate([{ prompt: tokens, options: GREEDY }]);
    const [scored] = await engine.score([{ prompt: tokens, continuation: greedy! }]);
    expect(scored!.greedy).toBe(true);
    expect(distance(scored!.logprobs, generated!.logprobs)).toBeLessThan(TOLERANCE);
  });

  test("beam search finds what transformers finds, alone and in a batch", async () => {
    const cases = readFixture<{ cases: BeamCase[] }>("beam.json").cases.filter((one) => one.backbone === name);
    const requests = cases.map(({ prompt, beams, lengthPenalty, maxNewTokens, eosTokenIds }) => ({
      prompt,
      options: { beams, lengthPenalty, maxNewTokens, eosTokenIds },
    }));
    const together = await engine.generate(requests);
    for (const [i, { tokens, score, lengthPenalty, eosTokenIds }] of cases.entries()) {
      const [alone] = await engine.generate([requests[i]!]);
      for (const found of [together[i]!, alone!]) {
        expect(found.tokens).toEqual(tokens);
        const sum = found.logprobs.reduce((a, b) => a + b, 0);
        expect(Math.abs(sum / tokens.length ** lengthPenalty - score)).toBeLessThan(TOLERANCE);
        expect(found.finishReason).toBe(eosTokenIds.includes(tokens.at(-1)!) ? "stop" : "length");
      }
    }
  });
});

describe("adapters", () => {
  let backbone: Backbone;
  let engine: Engine;
  beforeAll(async () => {
    backbone = await loadBackbone("llama-gqa");
    engine = Engine.create(backbone);
  });
  afterAll(() => {
    engine.dispose();
    backbone.dispose();
  });

  test.each(fixtureNames("lora"))("LoRA %s", async (name) => {
    const { sequences } = readFixture<{ sequences: ExpectedSequence[] }>(`lora/${name}/expected.json`);
    using adapter = loadAdapter(`lora/${name}`, backbone);
    for (const { tokens, logits, logProbs } of sequences) {
      const found = await engine.inspectTokens(tokens, adapter);
      expect(distance(found.logits, logits!.at(-1)!)).toBeLessThan(TOLERANCE);
      expect(distance(found.logprobs, logProbs)).toBeLessThan(TOLERANCE);
    }
    const known = sequences.filter(({ greedy }) => greedy !== null);
    const results = await engine.generate(known.map(({ tokens }) => ({ prompt: tokens, adapter, options: GREEDY })));
    expect(results.map(({ tokens }) => tokens)).toEqual(known.map(({ greedy }) => greedy));
  });

  test.each(fixtureNames("milora"))("MiLoRA %s", async (name) => {
    const { sequences } = readFixture<{ sequences: ExpectedPrompt[] }>(`milora/${name}/expected.json`);
    using adapter = loadAdapter(`milora/${name}`, backbone);
    const { experts } = adapter.method.routing!(adapter.config);
    // Prompts of unequal lengths and different routes in one batch; the route is the prompt's, not the response's.
    const scores = await engine.score(
      sequences.map(({ prompt, response }) => ({ prompt, continuation: response })),
      adapter,
    );
    const results = await engine.generate(sequences.map(({ prompt }) => ({ prompt, adapter, options: GREEDY })));
    for (const [i, { prompt, routes, probabilities, logProbs, logits, greedy }] of sequences.entries()) {
      expect(distance(scores[i]!.logprobs, logProbs.slice(prompt.length - 1))).toBeLessThan(TOLERANCE);
      const { tokens, route } = results[i]!;
      expect(tokens).toEqual(greedy);
      expect(route!.experts).toEqual(routes.map((layer) => layer.map((expert) => experts[expert])));
      expect(distance(route!.probabilities.flat(), probabilities.flat())).toBeLessThan(TOLERANCE);
      const inspected = await engine.inspectTokens(prompt, adapter);
      expect(inspected.route!.experts).toEqual(route!.experts);
      expect(distance(inspected.logits, logits[prompt.length - 1]!)).toBeLessThan(TOLERANCE);
    }
  });
});
