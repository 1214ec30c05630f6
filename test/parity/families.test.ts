/** @file Every family against transformers: logits, greedy tokens, LoRAs of PEFT, MiLoRA; whole and cached, one by one and in batches. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine } from "../../src/generation/index.ts";
import { Adapter } from "../../src/methods/index.ts";
import { Backbone, readSafetensors } from "../../src/models/index.ts";
import { type Batch, distance, FIXTURES, fixture, pass } from "./support.ts";

interface Sequence {
  readonly tokens: number[];
  readonly logits?: number[][];
  readonly lastLogits?: number[];
  readonly logProbs: number[];
  readonly greedy: number[];
}

interface Prompt {
  readonly prompt: number[];
  readonly response: number[];
  readonly routes: number[][];
  readonly probabilities: number[][];
  readonly logProbs: number[];
  readonly greedy: number[];
}

interface Expected<S> {
  readonly sequences: S[];
  readonly training?: Batch & { readonly loss: number; readonly loadBalanceLoss?: number };
}

const TOLERANCE = 1e-4;
const GREEDY = { maxNewTokens: 12, eosTokenIds: [] };
const at = (...path: string[]) => join(FIXTURES, "families", ...path);

/** Loss and every gradient, each relative to the largest of its tensor where that is above 1. */
function checkTraining(backbone: Backbone, adapter: Adapter, directory: string, training: Batch & { loss: number }) {
  const { loss, gradients } = pass(backbone, adapter, training);
  expect(loss).toBeCloseTo(training.loss, 4);
  const { tensors } = readSafetensors(join(directory, "gradients.safetensors"));
  expect([...gradients.keys()].sort()).toEqual([...tensors.keys()].sort());
  for (const [key, tensor] of tensors) {
    const values = tensor.data as Float32Array;
    const scale = Math.max(1, ...values.map(Math.abs));
    expect.soft(distance(gradients.get(key)!, values) / scale, key).toBeLessThan(TOLERANCE);
  }
}

describe.each(readdirSync(at()))("%s", (name) => {
  const { sequences } = fixture<Expected<Sequence>>("families", name, "expected.json");
  const adapted = existsSync(at(name, "lora"));
  let backbone: Backbone;
  let engine: Engine;
  beforeAll(async () => {
    backbone = await Backbone.load(at(name));
    engine = Engine.create(backbone);
  });
  afterAll(() => {
    engine?.dispose();
    backbone?.dispose();
  });

  test("logits of whole sequences and of prompts, beyond windows and original lengths too", async () => {
    for (const { tokens, logits, lastLogits, logProbs } of sequences) {
      const whole = pass(backbone, undefined, { tokens: [tokens], promptLengths: [tokens.length] }).logits;
      const last = lastLogits ?? logits!.at(-1)!;
      expect(distance(whole.slice(-last.length), last)).toBeLessThan(TOLERANCE);
      if (logits) expect(distance(whole, logits.flat())).toBeLessThan(TOLERANCE);
      const found = await engine.inspectTokens(tokens);
      expect(distance(found.logits, last)).toBeLessThan(TOLERANCE);
      expect(distance(found.logprobs, logProbs)).toBeLessThan(TOLERANCE);
    }
  });

  test("greedy tokens, one by one and as one batch of unequal lengths", async () => {
    // Frequencies that follow the length of the longest sequence are not those that each would have alone.
    const kind = backbone.config.ropeScaling?.kind;
    const separate = kind === "dynamic" || kind === "longrope" ? sequences.slice(0, -1) : sequences;
    const requests = sequences.map(({ tokens }) => ({ prompt: tokens, options: GREEDY }));
    const together = await engine.generate(requests.slice(0, separate.length));
    for (const [i, { greedy }] of sequences.entries()) {
      const [alone] = await engine.generate([requests[i]!]);
      expect(alone!.tokens).toEqual(greedy);
      if (i >= separate.length) continue;
      expect(together[i]!.tokens).toEqual(greedy);
      expect(distance(together[i]!.logprobs, alone!.logprobs)).toBeLessThan(TOLERANCE);
    }
  });

  test.runIf(adapted)("a LoRA that PEFT has trained: logits, tokens, loss and gradients", async () => {
    const directory = at(name, "lora");
    using adapter = Adapter.load(directory, backbone.config);
    const lora = fixture<Expected<Sequence>>("families", name, "lora", "expected.json");
    for (const { tokens, logits, lastLogits, logProbs, greedy } of lora.sequences) {
      const found = await engine.inspectTokens(tokens, adapter);
      expect(distance(found.logits, lastLogits ?? logits!.at(-1)!)).toBeLessThan(TOLERANCE);
      expect(distance(found.logprobs, logProbs)).toBeLessThan(TOLERANCE);
      const [generated] = await engine.generate([{ prompt: tokens, adapter, options: GREEDY }]);
      expect(generated!.tokens).toEqual(greedy);
    }
    checkTraining(backbone, adapter, directory, lora.training!);
  });

  test.runIf(existsSync(at(name, "prefix")))("a prefix of PEFT, of which windows lose sight", async () => {
    using adapter = Adapter.load(at(name, "prefix"), backbone.config);
    const expected = fixture<Expected<Sequence>>("families", name, "prefix", "expected.json");
    for (const { tokens, logits, lastLogits, logProbs, greedy } of expected.sequences) {
      const whole = pass(backbone, adapter, { tokens: [tokens], promptLengths: [tokens.length] }).logits;
      const last = lastLogits ?? logits!.at(-1)!;
      expect(distance(whole.slice(-last.length), last)).toBeLessThan(TOLERANCE);
      const found = await engine.inspectTokens(tokens, adapter);
      expect(distance(found.logits, last)).toBeLessThan(TOLERANCE);
      expect(distance(found.logprobs, logProbs)).toBeLessThan(TOLERANCE);
      const [generated] = await engine.generate([{ prompt: tokens, adapter, options: GREEDY }]);
      expect(generated!.tokens).toEqual(greedy);
    }
  });

  test.runIf(adapted)("MiLoRA over the family's modules: routes, tokens, loss and gradients", async () => {
    const directory = at(name, "milora");
    using adapter = Adapter.load(directory, backbone.config);
    const { sequences: prompts, training } = fixture<Expected<Prompt>>("families", name, "milora", "expected.json");
    const { experts } = adapter.method.routing!(adapter.config);
    const scores = await engine.score(
      prompts.map(({ prompt, response }) => ({ prompt, continuation: response })),
      adapter,
    );
    const results = await engine.generate(prompts.map(({ prompt }) => ({ prompt, adapter, options: GREEDY })));
    for (const [i, { prompt, routes, probabilities, logProbs, greedy }] of prompts.entries()) {
      expect(distance(scores[i]!.logprobs, logProbs.slice(prompt.length - 1))).toBeLessThan(TOLERANCE);
      const { tokens, route } = results[i]!;
      expect(tokens).toEqual(greedy);
      expect(route!.experts).toEqual(routes.map((layer) => layer.map((expert) => experts[expert])));
      expect(distance(route!.probabilities.flat(), probabilities.flat())).toBeLessThan(TOLERANCE);
    }
    checkTraining(backbone, adapter, directory, training!);
  });

  // A route gets a session of its own after 64 steps under it: the other experts are not there any more.
  test.runIf(name === "phi3")("decoding under a route of fused modules goes on as a whole pass", async () => {
    using adapter = Adapter.load(at(name, "milora"), backbone.config);
    const { prompt } = fixture<Expected<Prompt>>("families", name, "milora", "expected.json").sequences[0]!;
    const options = { maxNewTokens: 90, eosTokenIds: [] };
    const [result] = await engine.generate([{ prompt, adapter, options }]);
    const [scored] = await engine.score([{ prompt, continuation: result!.tokens }], adapter);
    expect(distance(scored!.logprobs, result!.logprobs)).toBeLessThan(TOLERANCE);
  });

  test.each(["int4", "int8"] as const)(
    "%s: prefill and decoding, which multiplies fused weights, agree",
    async (weights) => {
      using quantised = await Backbone.load(at(name), { weights });
      using other = Engine.create(quantised);
      const { tokens } = sequences[2]!;
      const [generated] = await other.generate([{ prompt: tokens, options: { maxNewTokens: 6, eosTokenIds: [] } }]);
      const [scored] = await other.score([{ prompt: tokens, continuation: generated!.tokens }]);
      expect(distance(scored!.logprobs, generated!.logprobs)).toBeLessThan(0.05); // activations are rounded to 8 bits on the way
      const [float] = await engine.score([{ prompt: tokens, continuation: generated!.tokens }]);
      const error = distance(scored!.logprobs, float!.logprobs);
      expect(error).toBeLessThan(weights === "int8" ? 0.3 : 3);
      expect(error).toBeGreaterThan(0);
    },
  );
});
