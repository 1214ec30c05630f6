/** @file What is kept of prompts: it gives the tokens that reading all gives, and only to whom it may. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Adapter, methods } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { Batch } from "./batch.ts";
import type { KvCache } from "./cache.ts";
import { Engine } from "./engine.ts";
import { BLOCK, PrefixCache } from "./prefix-cache.ts";
import { PromptReading } from "./reading.ts";
import { Bench, distance, greedy, moved, smallConfig } from "./testing.ts";

const bytes = 2 ** 26;
const vocabulary = smallConfig.vocabSize;
const text = (length: number, seed = 1) =>
  Array.from({ length }, (_, i) => (i * i * 7 + i * seed * 13 + 5) % vocabulary);
const shots = text(70);
const options = { maxNewTokens: 6, eosTokenIds: [] };

let backbone: Backbone;
const adapters: [string, Adapter | undefined][] = [["bare", undefined]];
beforeAll(() => {
  backbone = Backbone.random(smallConfig, { seed: 3 });
  for (const method of methods.keys()) adapters.push([method, moved(backbone, method)]);
});
afterAll(() => {
  for (const [, adapter] of adapters) adapter?.dispose();
  backbone.dispose();
});

/** Keys and values after a prompt, and what is likely next. */
async function read(bench: Bench, adapter: Adapter | undefined, tokens: readonly number[], sliceTokens?: number) {
  using batch = new Batch(bench.shared, 1, { prompt: tokens.length, longest: 120 });
  if (sliceTokens === undefined) await batch.admit([{ tokens, adapter }]);
  else {
    using admission = batch.begin([{ tokens, adapter }], { sliceTokens });
    while (admission.waiting > 0) await admission.advance();
  }
  const logProbs = [batch.logProbsOf(0).slice()];
  while (logProbs.length < 5) {
    await batch.step([greedy(logProbs.at(-1)!)]);
    logProbs.push(batch.logProbsOf(0).slice());
  }
  return { logProbs, route: batch.route(0) };
}

describe("the same as without, for every method", () => {
  test("prompts that begin alike, prompts that are the same, read whole or in slices", {
    timeout: 60_000,
  }, async () => {
    using plain = new Bench(backbone);
    for (const [name, adapter] of adapters) {
      using bench = new Bench(backbone, { bytes });
      const { prefixes } = bench.shared;
      const causal = adapter ? (adapter.method.properties.causal ?? false) : true;
      // With nothing known, with the first two blocks known, with all but the last, from the middle of a longer one.
      const prompts = [shots, [...shots, 5, 6, 7], [...shots.slice(0, 66), 9], shots.slice(0, 40), shots, shots];
      const known = causal ? [0, 64, 64, 32, 64, 64] : [0, 0, 0, 0, 70, 70];
      let reused = 0;
      for (const [i, tokens] of prompts.entries()) {
        const expected = await read(plain, adapter, tokens);
        const found = await read(bench, adapter, tokens, i === 1 || i === 5 ? 2 : undefined);
        reused += known[i]!;
        expect(prefixes!.stats.tokens, `${name}, prompt ${i}`).toBe(reused);
        for (const [step, logProbs] of expected.logProbs.entries()) {
          expect(distance(found.logProbs[step]!, logProbs), `${name}, prompt ${i}`).toBeLessThan(1e-4);
          expect(greedy(found.logProbs[step]!), name).toBe(greedy(logProbs));
        }
        expect(found.route?.experts).toEqual(expected.route?.experts);
        expect(Boolean(found.route)).toBe(adapter?.method.properties.routed ?? false);
      }
      const hits = known.filter((tokens) => tokens > 0).length;
      expect(prefixes!.stats).toMatchObject({ hits, misses: prompts.length - hits, evictions: 0 });
    }
  });

  test("the engine: batches, beams, samples and scores", { timeout: 60_000 }, async () => {
    const prompts = [...shots.keys()].slice(0, 6).map((i) => [...shots, ...text(3 + i, 5 + i)]);
    const rows = prompts.flatMap((prompt, i) => [[7], [3, 4, 5 + i]].map((continuation) => ({ prompt, continuation })));
    using plain = Engine.create(backbone, { maxBatch: 4 });
    for (const [name, adapter] of adapters) {
      if (!["bare", "lora", "milora", "iapt", "p-tuning-v2"].includes(name)) continue;
      using engine = Engine.create(backbone, { maxBatch: 4, prefixCache: { bytes } });
      const requests = prompts.map((prompt, i) => ({
        prompt,
        ...(adapter && { adapter }),
        options: { ...options, ...(i % 2 ? { beams: 2 } : { temperature: i, seed: i }) },
      }));
      const expected = await plain.generate(requests);
      const scores = await plain.score(rows, adapter);
      for (let round = 0; round < 2; round++) {
        const results = await engine.generate(requests);
        expect(
          results.map(({ tokens }) => tokens),
          name,
        ).toEqual(expected.map(({ tokens }) => tokens));
        const found = await engine.score(rows, adapter);
        for (const [i, { logprobs, greedy: likely }] of scores.entries()) {
          expect(distance(found[i]!.logprobs, logprobs), name).toBeLessThan(1e-4);
          expect(found[i]!.greedy).toBe(likely);
        }
      }
      expect(engine.prefixCache!.hits, name).toBeGreaterThan(prompts.length - 1);
    }
    expect(plain.prefixCache).toBeUndefined();
  });

  test("scoring reads what questions have in common once", async () => {
    using engine = Engine.create(backbone, { prefixCache: { bytes } });
    using plain = Engine.create(backbone);
    const [, lora] = adapters.find(([name]) => name === "lora")!;
    const rows = Array.from({ length: 40 }, (_, i) => ({ prompt: [...shots, i, 3], continuation: [4, 5, i] }));
    const expected = await plain.score(rows, lora);
    const found = await engine.score(rows, lora);
    for (const [i, { logprobs }] of expected.entries())
      expect(distance(found[i]!.logprobs, logprobs)).toBeLessThan(1e-4);
    expect(engine.prefixCache).toMatchObject({ hits: 39, misses: 1, tokens: 39 * 64 });
    // Where only little is the same, they are read together.
    const others = rows.map(({ prompt, continuation }) => ({
      prompt: [...prompt.slice(0, 40), ...text(70, continuation[2])],
      continuation,
    }));
    await engine.score(others, lora);
    expect(engine.prefixCache!.hits).toBe(39);
  });
});

test("the keys and values of a causal method's prompt do not depend on what follows, those of others do", async () => {
  using bench = new Bench(backbone, { bytes });
  for (const [name, adapter] of adapters) {
    const values: Float32Array[] = [];
    for (let end = 1; end <= 8; end++) {
      using cache = await filled(bench, adapter, [...shots.slice(0, BLOCK), ...text(20, end)]);
      using copy = cache.read(0, 0, BLOCK);
      values.push((copy.data as Float32Array).slice());
    }
    const apart = Math.max(...values.map((other) => distance(values[0]!, other)));
    if (adapter ? adapter.method.properties.causal : true) expect(apart, name).toBeLessThan(1e-4);
    else expect(apart, name).toBeGreaterThan(1e-3);
  }
});

/** A cache with what reading a prompt leaves in its row. */
async function filled({ shared }: Bench, adapter: Adapter | undefined, tokens: readonly number[]): Promise<KvCache> {
  using prepared = await shared.adapters.prepare(adapter);
  const cache = shared.pool.cache(shared.backbone.config, 1, 100);
  const where = { cache, first: 0, positions: [[0, tokens.length - 1]] as const, shares: false };
  using reading = new PromptReading(shared, [{ adapter: prepared, tokens }], where);
  await reading.advance();
  return cache;
}

describe("who shares", () => {
  const hitsOf = async (engine: Engine, prompt: readonly number[], adapter?: Adapter, scope?: string) => {
    const before = engine.prefixCache!.hits;
    const request = { prompt, ...(adapter && { adapter }), ...(scope !== undefined && { scope }), options };
    const [result] = await engine.generate([request]);
    return { hits: engine.prefixCache!.hits - before, tokens: result!.tokens };
  };

  test.each(["lora", "milora", undefined])("only those of one scope: %s", async (method) => {
    using engine = Engine.create(backbone, { prefixCache: { bytes } });
    const adapter = adapters.find(([name]) => name === method)?.[1];
    const hits = async (scope?: string) => (await hitsOf(engine, shots, adapter, scope)).hits;
    expect(await hits("a")).toBe(0);
    expect(await hits("b")).toBe(0);
    expect(await hits()).toBe(0);
    expect(await hits("")).toBe(0);
    expect(await hits("a")).toBe(1);
    expect(await hits("b")).toBe(1);
    expect(await hits()).toBe(1);
    const rows = [{ prompt: [...shots, 1], continuation: [2, 3] }];
    for (const [scope, expected] of [
      ["c", 0],
      ["a", method === "milora" ? 0 : 1],
    ] as const) {
      const before = engine.prefixCache!.hits;
      await engine.score(rows, adapter, { scope });
      expect(engine.prefixCache!.hits - before).toBe(expected);
    }
  });

  test.each(["lora", "milora"])("adapters of the same content, whatever they are called: %s", async (method) => {
    using engine = Engine.create(backbone, { prefixCache: { bytes } });
    using plain = Engine.create(backbone);
    using one = moved(backbone, method, {}, 1);
    using same = moved(backbone, method, {}, 1);
    using other = moved(backbone, method, {}, 2);
    using wider = moved(backbone, method, { r: 4 }, 1);
    expect(await hitsOf(engine, shots, one)).toMatchObject({ hits: 0 });
    expect(await hitsOf(engine, shots, same)).toMatchObject({ hits: 1 });
    for (const adapter of [other, wider, undefined]) {
      const [expected] = await plain.generate([{ prompt: shots, ...(adapter && { adapter }), options }]);
      expect(await hitsOf(engine, shots, adapter)).toEqual({ hits: 0, tokens: expected!.tokens });
    }
    // By the digest of its files, which then is all that counts.
    engine.identify(other, "1f");
    engine.identify(wider, "1f");
    expect((await hitsOf(engine, shots, other)).hits).toBe(0);
    expect((await hitsOf(engine, shots, wider)).hits).toBe(1);
    engine.forget(other);
    expect((await hitsOf(engine, shots, other)).hits).toBe(1);
    // Trained on, it is another one.
    same.values(same.specs[0]!.key)[0]! += 1;
    engine.forget(same);
    expect((await hitsOf(engine, shots, same)).hits).toBe(0);
    expect((await hitsOf(engine, shots, one)).hits).toBe(1);
  });

  test("a backbone in another form, or another one, has other keys", () => {
    using quantised = Backbone.random(smallConfig, { seed: 3, weights: "int8" });
    const prompt = { adapter: undefined, scope: undefined, tokens: shots, prefix: 0 };
    using bench = new Bench(backbone);
    using cache = bench.shared.pool.cache(smallConfig, 1, 100);
    const keysOf = (of: Pick<Backbone, "digest" | "weights">) => {
      const prefixes = new PrefixCache(of, { bytes });
      prefixes.keep(prompt, cache, 0);
      return prefixes.keys;
    };
    const keys = [backbone, quantised, { ...backbone, digest: "another", weights: backbone.weights }].map(keysOf);
    expect(keys.every((list) => list.length === 2)).toBe(true);
    expect(new Set(keys.flat()).size).toBe(6);
  });
});

describe("what is kept", () => {
  const blockBytes = 2 * 2 * 2 * 16 * 4 * BLOCK; // keys and values of two layers, two heads of 16

  test("no more than the limit; the beginnings of what is used last", async () => {
    using engine = Engine.create(backbone, { prefixCache: { bytes: 3 * blockBytes } });
    const generate = (prompt: readonly number[]) => engine.generate([{ prompt, options }]);
    await generate(text(64, 1));
    await generate(text(64, 2));
    expect(engine.prefixCache).toMatchObject({ entries: 3, bytes: 3 * blockBytes, evictions: 1, hits: 0 });
    await generate([...text(64, 2), 1]); // both blocks
    expect(engine.prefixCache).toMatchObject({ tokens: 64, evictions: 1 });
    await generate([...text(64, 1), 1]); // its second block has gone, the first is still there
    expect(engine.prefixCache).toMatchObject({ tokens: 96, entries: 3, evictions: 2 });
    await generate([...text(64, 2), 1]); // again the later one has gone
    expect(engine.prefixCache).toMatchObject({ tokens: 128, bytes: 3 * blockBytes });
  });

  test("nothing that does not fit at all, nothing of prompts shorter than a block", async () => {
    using engine = Engine.create(backbone, { prefixCache: { bytes: blockBytes - 1 } });
    await engine.generate([{ prompt: shots, options }]);
    await engine.generate([{ prompt: text(31), options }]);
    expect(engine.prefixCache).toMatchObject({ entries: 0, bytes: 0, evictions: 0, hits: 0, misses: 2 });
  });

  test("of a routed adapter whole prompts, with state and route", async () => {
    using engine = Engine.create(backbone, { prefixCache: { bytes } });
    const [, adapter] = adapters.find(([name]) => name === "milora")!;
    const request = { prompt: shots, adapter: adapter!, options };
    const [first] = await engine.generate([request]);
    const [second] = await engine.generate([request]);
    expect(second!.route).toEqual(first!.route);
    expect(second!.tokens).toEqual(first!.tokens);
    expect(engine.prefixCache).toMatchObject({ entries: 1, hits: 1, tokens: shots.length });
    const experts = 2 * 7 * 4;
    const exact = shots.length * (blockBytes / BLOCK) + smallConfig.hiddenSize * 4 + 2 * experts;
    expect(engine.prefixCache!.bytes).toBe(exact);
  });
});
