/** @file Prompts read slice by slice: each gives what it gives in one run, and so does whatever is stepped in between. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Adapter } from "../methods/index.ts";
import { methods } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { operators } from "../runtime/index.ts";
import { Batch } from "./batch.ts";
import type { RouteReport } from "./request.ts";
import { Bench, distance, greedy, moved, smallConfig } from "./testing.ts";

const config = { ...smallConfig, numLayers: 5 };
const long = Array.from({ length: 41 }, (_, i) => (i * 37 + 5) % config.vocabSize);
const positions = { prompt: 8, longest: 60 };

interface Answer {
  readonly first: Float32Array;
  readonly tokens: number[];
  readonly route: RouteReport | undefined;
}

/** Greedy tokens after the prompt in the last row, while the other rows go on with token 3. */
async function answer(batch: Batch): Promise<Answer> {
  const row = batch.rows - 1;
  const first = batch.logProbsOf(row).slice();
  const tokens = [greedy(first)];
  while (tokens.length < 6) {
    await batch.step([...new Array<number>(row).fill(3), tokens.at(-1)!]);
    tokens.push(greedy(batch.logProbsOf(row)));
  }
  return { first, tokens, route: batch.route(row) };
}

describe.each([
  ["float32", 1e-4],
  ["int4", 5e-2], // 4-bit products round x to 8 bits, so that little differences jump
] as const)("%s", (weights, tolerance) => {
  let backbone: Backbone;
  let bench: Bench;
  const adapters: [string, Adapter | undefined][] = [["bare", undefined]];
  beforeAll(() => {
    backbone = Backbone.random(config, { weights, seed: 5 });
    bench = new Bench(backbone);
    for (const method of weights === "int4" ? ["lora", "milora", "iapt"] : methods.keys()) {
      adapters.push([method, moved(backbone, method)]);
    }
  });
  afterAll(() => {
    bench[Symbol.dispose]();
    for (const [, adapter] of adapters) adapter?.dispose();
    backbone.dispose();
  });

  test("every method, in layers and in layers of some tokens, while another row decodes", {
    timeout: 120_000,
  }, async () => {
    const { shared } = bench;
    for (const [name, adapter] of adapters) {
      using whole = new Batch(shared, 1, positions);
      await whole.admit([{ tokens: long, adapter }]);
      const expected = await answer(whole);
      // 20: five layers in three slices; 1: each layer, for causal methods of five tokens at a time or fewer.
      for (const [sliceTokens, least] of [
        [20, 3],
        [1, 5],
      ] as const) {
        using batch = new Batch(shared, 2, positions);
        await batch.admit([{ tokens: [1, 5, 9], adapter: undefined }]);
        using admission = batch.begin([{ tokens: long, adapter }], { sliceTokens });
        let slices = 1;
        while ((await admission.advance()) === 0) {
          expect(admission.waiting).toBe(1);
          if (slices++ < 8) await batch.step([3]);
        }
        expect(admission.waiting).toBe(0);
        expect(slices, name).toBeGreaterThanOrEqual(least);
        if (sliceTokens === 1)
          expect(slices > 5, name).toBe(adapter ? (adapter.method.properties.causal ?? false) : true);
        const { first, tokens, route } = await answer(batch);
        expect(distance(first, expected.first), `${name}, slices of ${sliceTokens}`).toBeLessThan(tolerance);
        if (weights === "float32") expect(tokens, name).toEqual(expected.tokens);
        expect(route?.experts, name).toEqual(expected.route?.experts);
        for (const [layer, values] of expected.route?.probabilities.entries() ?? []) {
          expect(distance(route!.probabilities[layer]!, values), name).toBeLessThan(tolerance);
        }
      }
    }
  });
});

describe("several at a time", () => {
  let backbone: Backbone;
  let bench: Bench;
  let adapter: Adapter;
  beforeAll(() => {
    backbone = Backbone.random(config, { seed: 5 });
    bench = new Bench(backbone);
    adapter = moved(backbone, "milora");
  });
  afterAll(() => {
    bench[Symbol.dispose]();
    adapter.dispose();
    backbone.dispose();
  });

  const alone = async (tokens: readonly number[], by: Adapter | undefined): Promise<Float32Array> => {
    using batch = new Batch(bench.shared, 1, positions);
    await batch.admit([{ tokens, adapter: by }]);
    return batch.logProbsOf(0).slice();
  };

  test("a short prompt overtakes a long one, rows go meanwhile, and the cache grows", async () => {
    using batch = new Batch(bench.shared, 4, { prompt: 3, longest: 60 });
    await batch.admit([{ tokens: [4, 4] }, { tokens: [8, 9, 10] }]);
    using first = batch.begin([{ tokens: long, adapter }], { sliceTokens: 16 });
    expect(await first.advance()).toBe(0);
    using second = batch.begin([{ tokens: [1, 5, 9] }], { sliceTokens: 16 });
    expect(await second.advance()).toBe(1);
    expect(batch.rows).toBe(3);
    expect(distance(batch.logProbsOf(2), await alone([1, 5, 9], undefined))).toBeLessThan(1e-4);
    batch.drop(0);
    await batch.step([7, 7]);
    const long2 = long.toReversed();
    using third = batch.begin([{ tokens: long2 }], { sliceTokens: 16 });
    expect(await third.advance()).toBe(0);
    while ((await first.advance()) === 0);
    expect(batch.rows).toBe(3);
    expect(distance(batch.logProbsOf(2), await alone(long, adapter))).toBeLessThan(1e-4);
    while ((await third.advance()) === 0);
    expect(distance(batch.logProbsOf(3), await alone(long2, undefined))).toBeLessThan(1e-4);
    expect(batch.route(2)!.experts).toHaveLength(config.numLayers);
    expect(batch.route(3)).toBeUndefined();
  });

  test("prompts of one admission enter in their order, together where a slice has room for them", async () => {
    using batch = new Batch(bench.shared, 5, positions);
    const prompts = [[1, 2], [3, 4, 5], long, [6], [7, 8]];
    const by = [undefined, undefined, adapter, adapter, undefined];
    using admission = batch.begin(
      prompts.map((tokens, i) => ({ tokens, adapter: by[i] })),
      { sliceTokens: 16 },
    );
    const entered: number[] = [];
    while (admission.waiting > 0) entered.push(await admission.advance());
    expect(entered).toEqual(operators() ? [2, 0, 0, 1, 2] : [2, 0, 0, 1, 1, 1]);
    for (const [row, tokens] of prompts.entries()) {
      expect(distance(batch.logProbsOf(row), await alone(tokens, by[row]))).toBeLessThan(1e-4);
    }
    expect(await admission.advance()).toBe(0);
  });

  test("one that is cancelled or given up leaves the batch as it was", async () => {
    using batch = new Batch(bench.shared, 3, positions);
    await batch.admit([{ tokens: [1, 5, 9] }]);
    const given = batch.begin([{ tokens: long, adapter }], { sliceTokens: 16 });
    await given.advance();
    expect(batch.adapters).toBe(2);
    given[Symbol.dispose]();
    expect(given.waiting).toBe(0);
    expect(batch.adapters).toBe(1);
    const cancelled = batch.begin([{ tokens: long, adapter }], { sliceTokens: 16 });
    await cancelled.advance();
    await expect(cancelled.advance(AbortSignal.abort())).rejects.toMatchObject({ code: "RUN_CANCELLED" });
    expect(cancelled.waiting).toBe(0);
    expect([batch.rows, batch.adapters]).toEqual([1, 1]);
    await batch.step([greedy(batch.logProbsOf(0))]);
    using prefixed = moved(backbone, "p-tuning-v2");
    using tooLong = batch.begin([{ tokens: long, adapter: prefixed, longest: 195 }]);
    await expect(tooLong.advance()).rejects.toMatchObject({ code: "PROMPT_TOO_LONG" });
    expect([batch.rows, batch.adapters]).toEqual([1, 1]);
  });

  test("where rotations depend on the length, tokens are not cut, and layers give the same", async () => {
    const ropeScaling = { kind: "dynamic", factor: 4, original: 32 } as const;
    using varying = Backbone.random({ ...config, ropeScaling }, { seed: 5 });
    using other = new Bench(varying);
    for (const [tokens, slices] of [
      [long, 5],
      [long.slice(0, 30), 10],
    ] as const) {
      using whole = new Batch(other.shared, 1, positions);
      await whole.admit([{ tokens }]);
      using batch = new Batch(other.shared, 1, positions);
      using admission = batch.begin([{ tokens }], { sliceTokens: 3 });
      let count = 1;
      while ((await admission.advance()) === 0) count++;
      expect(count).toBe(slices);
      expect(distance(batch.logProbsOf(0), whole.logProbsOf(0))).toBeLessThan(1e-4);
    }
  });
});
