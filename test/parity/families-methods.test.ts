/** @file Methods on families that differ most: fused modules, biases, head norms, windows, norms after sub-layers. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Random } from "../../src/base/index.ts";
import { Engine } from "../../src/generation/index.ts";
import { Adapter, mergeAdapter, methodOf, methods } from "../../src/methods/index.ts";
import { Backbone, moduleNames } from "../../src/models/index.ts";
import { distance, FIXTURES, Passes, pass } from "./support.ts";

const TOLERANCE = 1e-4;
const RUN = { totalSteps: 10 };
/** Longer than the windows of all of them, with prefixes too; lengths differ. */
const PROMPTS = [
  [1, 40, 7, 23, 88, 5, 61, 30, 12, 77, 50, 9, 34, 21],
  [1, 9, 77],
  [1, 15, 15, 52, 3, 90, 64],
];

const directory = mkdtempSync(join(tmpdir(), "milora-families-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** What a family has that a method may get wrong. */
const CASES: Readonly<Record<string, readonly string[]>> = {
  phi3: [...methods.keys()],
  gemma: ["full"],
  qwen2: ["dora", "ia3", "full", "iapt"],
  gemma3: ["midora", "iapt", "p-tuning-v2", "parallel-adapter", "learned-adapter"],
  "llama-biases": ["midora", "ia3", "full"],
};

describe.each(Object.keys(CASES))("%s", (name) => {
  const source = join(FIXTURES, "families", name);
  let backbone: Backbone;
  let engine: Engine;
  beforeAll(async () => {
    backbone = await Backbone.load(source);
    engine = Engine.create(backbone);
  });
  afterAll(() => {
    engine?.dispose();
    backbone?.dispose();
  });

  describe.each(CASES[name]!)("%s", (called) => {
    const method = methodOf(called);
    const create = (moved: boolean): Adapter => {
      const adapter = Adapter.create(method, {}, backbone.config, 1, backbone, RUN);
      const random = new Random(99);
      for (const { key } of moved ? adapter.specs : []) {
        adapter.values(key).set(adapter.values(key).map((value) => value + 0.05 * random.normal()));
      }
      return adapter;
    };
    /** One sequence, of which the first `prompt` tokens are read by methods that read prompts. */
    const logits = (adapter: Adapter | undefined, tokens: number[], prompt = tokens.length, of = backbone) =>
      pass(of, adapter, { tokens: [tokens], promptLengths: [prompt] }).logits;

    test("starts as it says on modules of the family; every gradient is finite and descends", () => {
      using adapter = create(false);
      const targets = (adapter.config as { target_modules?: unknown }).target_modules;
      if (Array.isArray(targets)) for (const target of targets) expect(moduleNames(backbone.config)).toContain(target);
      const tokens = PROMPTS[0]!;
      const labels = tokens.map((_, t) => (t < 4 ? -100 : (tokens[t + 1] ?? -100)));
      using passes = new Passes(backbone, adapter, true);
      const start = passes.run({ tokens: [tokens], promptLengths: [5], labels: [labels] });
      if (method.properties.startsAsIdentity) {
        expect(distance(start.logits, logits(undefined, tokens))).toBeLessThan(1e-5);
      }
      for (const [key, gradient] of start.gradients) {
        expect(gradient.every(Number.isFinite), key).toBe(true);
        const values = adapter.values(key);
        for (let i = 0; i < values.length; i++) values[i]! -= (1e-3 * gradient[i]!) / (Math.abs(gradient[i]!) + 1e-8);
      }
      const next = passes.run({ tokens: [tokens], promptLengths: [5], labels: [labels] });
      expect(next.loss).toBeLessThan(start.loss!);
    });

    test("what is generated in a batch is what a whole pass without a cache computes", async () => {
      using adapter = create(true);
      const options = { maxNewTokens: 5, eosTokenIds: [] };
      const results = await engine.generate(PROMPTS.map((prompt) => ({ prompt, adapter, options })));
      const V = backbone.config.vocabSize;
      for (const [i, { tokens, logprobs }] of results.entries()) {
        const prompt = PROMPTS[i]!;
        const whole = logits(adapter, [...prompt, ...tokens], prompt.length);
        const expected = tokens.map((token, t) => {
          const row = whole.subarray((prompt.length + t - 1) * V, (prompt.length + t) * V);
          const largest = Math.max(...row);
          return row[token]! - largest - Math.log(row.reduce((sum, v) => sum + Math.exp(v - largest), 0));
        });
        expect(distance(logprobs, expected)).toBeLessThan(TOLERANCE);
      }
      expect(distance(logits(adapter, PROMPTS[2]!), logits(undefined, PROMPTS[2]!))).toBeGreaterThan(1e-3);
    });

    test.runIf(method.properties.mergeable)("merged is unmerged", async () => {
      using adapter = create(true);
      const output = join(directory, `${name}-${method.name}`);
      await mergeAdapter(adapter, source, output, { dtype: "float32" });
      using merged = await Backbone.load(output);
      const tokens = PROMPTS[0]!;
      expect(distance(logits(undefined, tokens, tokens.length, merged), logits(adapter, tokens))).toBeLessThan(
        TOLERANCE,
      );
    });
  });
});
