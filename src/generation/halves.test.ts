/** @file Keys and values in float16: half the memory, the same answers whatever decodes beside, and logits near those of float32. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Adapter } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { operators } from "../runtime/index.ts";
import { Engine, type EngineOptions } from "./engine.ts";
import type { GenerationRequest } from "./request.ts";
import { distance, loadBackbone, moved, smallConfig } from "./testing.ts";

const FAMILIES = join(import.meta.dirname, "../../test/fixtures/families");
const METHODS = ["lora", "milora", "midora", "p-tuning-v2", "iapt", "ssp", "ia3"];

describe.skipIf(!operators())("keys and values in float16", () => {
  let backbone: Backbone;
  let adapters: Adapter[];
  beforeAll(() => {
    backbone = Backbone.random(smallConfig, { seed: 3 });
    adapters = METHODS.map((method, i) => moved(backbone, method === "midora" ? "milora" : method, method === "midora" ? { use_dora: true } : {}, i)); // biome-ignore format: one line
  });
  afterAll(() => {
    for (const adapter of adapters) adapter[Symbol.dispose]();
    backbone.dispose();
  });

  const prompt = (length: number, seed: number): number[] => Array.from({ length }, (_, i) => 3 + ((7 * i * seed + i + seed) % 90)); // biome-ignore format: one line
  const inFloat16 = (options: EngineOptions = {}) => Engine.create(backbone, { ...options, kvPrecision: "float16" });
  const options = { maxNewTokens: 12, eosTokenIds: [] };

  test("are the default over rounded weights, where attention reads them as they are", async () => {
    using rounded = Backbone.random(smallConfig, { seed: 3, weights: "int8" });
    using capped = await Backbone.load(join(FAMILIES, "gemma2"), { weights: "int8" });
    const bytesOf = (of: Backbone, given: EngineOptions = {}): number => {
      using engine = Engine.create(of, given);
      return engine.kvBytesPerPosition;
    };
    expect(bytesOf(rounded)).toBe(bytesOf(backbone) / 2);
    expect(bytesOf(rounded, { kvPrecision: "float32" })).toBe(bytesOf(backbone));
    expect(bytesOf(capped)).toBe(bytesOf(capped, { kvPrecision: "float32" }));
  });

  test("take half the memory", async () => {
    using whole = Engine.create(backbone);
    using half = inFloat16();
    expect(half.kvBytesPerPosition).toBe(whole.kvBytesPerPosition / 2);
    for (const engine of [whole, half]) await engine.generate([{ prompt: prompt(20, 1), options }]);
    expect(half.kvBytes).toBe(whole.kvBytes / 2);
  });

  /** Log-probabilities of a sequence's tokens after its first, read from the cache one by one. */
  async function logprobsOf(engine: Engine, tokens: readonly number[], adapter?: Adapter): Promise<number[]> {
    const request = { prompt: tokens, ...(adapter && { adapter }), options: { ...options, maxNewTokens: 8 } };
    const [result] = await engine.generate([request]);
    return result!.logprobs;
  }

  const families = readdirSync(FAMILIES);

  test.each(["llama-gqa", "llama-headdim", ...families])("say nearly what float32 says: %s", async (name) => {
    using model = existsSync(join(FAMILIES, name))
      ? await Backbone.load(join(FAMILIES, name))
      : await loadBackbone(name);
    using whole = Engine.create(model);
    using half = Engine.create(model, { kvPrecision: "float16" });
    const tokens = prompt(24, 5).map((token) => token % model.config.vocabSize);
    const [a, b] = [await logprobsOf(whole, tokens), await logprobsOf(half, tokens)];
    expect(distance(a, b)).toBeLessThan(0.01);
    expect(distance(a, b)).toBeGreaterThan(0);
  });

  test.each(METHODS.map((method, i) => [method, i] as const))("say nearly what float32 says under %s", async (_, i) => {
    using whole = Engine.create(backbone);
    using half = inFloat16();
    const [a, b] = [await logprobsOf(whole, prompt(40, 2), adapters[i]), await logprobsOf(half, prompt(40, 2), adapters[i])]; // biome-ignore format: one line
    expect(distance(a, b)).toBeLessThan(0.01);
    expect(distance(a, b)).toBeGreaterThan(0);
  });

  test("do not make an answer depend on what decodes beside it", async () => {
    using engine = inFloat16({ maxBatch: 16 });
    const requests: GenerationRequest[] = [undefined, ...adapters].flatMap((adapter, i) =>
      [3, 17].map((length) => ({ prompt: prompt(length + i, i + 1), ...(adapter && { adapter }), options })),
    );
    const together = await engine.generate(requests);
    for (const [i, request] of requests.entries()) {
      expect((await engine.generate([request]))[0]!.tokens).toEqual(together[i]!.tokens);
    }
  });

  test("go with beams, the prefix cache and long prompts read in slices", async () => {
    using engine = inFloat16();
    using cached = inFloat16({ prefixCache: { bytes: 1 << 24 } });
    const long = prompt(300, 3);
    for (const asked of [{ ...options, beams: 3 }, options]) {
      const [expected] = await engine.generate([{ prompt: long, options: asked }]);
      for (let round = 0; round < 2; round++) {
        expect((await cached.generate([{ prompt: long, options: asked }]))[0]!.tokens).toEqual(expected!.tokens);
      }
      const more = [...long, 5, 6, 7];
      const [further] = await engine.generate([{ prompt: more, options: asked }]);
      expect((await cached.generate([{ prompt: more, options: asked }]))[0]!.tokens).toEqual(further!.tokens);
    }
    expect(cached.prefixCache!.hits).toBeGreaterThan(0);
  });
});
