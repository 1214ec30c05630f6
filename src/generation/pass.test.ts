/** @file Prompts of many adapters in one pass: each gives what it gives alone. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Adapter, methods } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { operators } from "../runtime/index.ts";
import { Batch } from "./batch.ts";
import { Bench, distance, moved, smallConfig } from "./testing.ts";

const positions = { prompt: 8, longest: 60 };
const promptOf = (i: number, length = 3 + ((i * 5) % 9)): number[] =>
  Array.from({ length }, (_, t) => (31 * i + 7 * t + 1) % smallConfig.vocabSize);

describe.skipIf(!operators()).each([
  ["float32", 1e-4],
  ["int4", 5e-2], // 4-bit products round x to 8 bits, so that little differences jump
] as const)("%s", (weights, tolerance) => {
  let backbone: Backbone;
  let bench: Bench;
  const adapters: [string, Adapter | undefined][] = [["bare", undefined]];
  beforeAll(() => {
    backbone = Backbone.random(smallConfig, { weights, seed: 9 });
    bench = new Bench(backbone);
    for (const method of methods.keys()) adapters.push([method, moved(backbone, method)]);
    const more: [string, Record<string, unknown>][] = [
      ["lora", { r: 20, target_modules: ["q_proj", "down_proj"] }],
      ["milora", { r: 3, top_k: 1, target_modules: ["gate_proj", "q_proj", "o_proj"], gate: "probability" }],
      ["midora", { r: 5, top_k: 2, gate: "renormalized", pooler: "max", activation: "gelu" }],
    ];
    for (const [i, [method, options]] of more.entries()) {
      adapters.push([`${method} ${i}`, moved(backbone, method, options, 3 + i)]);
    }
  });
  afterAll(() => {
    bench[Symbol.dispose]();
    for (const [, adapter] of adapters) adapter?.dispose();
    backbone.dispose();
  });

  /** Methods that take items by their definition, and so are read in one pass. */
  const together = () =>
    adapters.filter(
      ([, adapter]) => !adapter || /^(lora|dora|adalora|bitfit|milora|midora)$/.test(adapter.method.name),
    );

  test("every method beside every other", async () => {
    using batch = new Batch(bench.shared, adapters.length, positions);
    await batch.admit(adapters.map(([, adapter], i) => ({ tokens: promptOf(i), adapter })));
    for (const [row, [name, adapter]] of adapters.entries()) {
      using alone = new Batch(bench.shared, 1, positions);
      await alone.admit([{ tokens: promptOf(row), adapter }]);
      expect(distance(batch.logProbsOf(row), alone.logProbsOf(0)), name).toBeLessThan(tolerance);
      expect(batch.route(row)?.experts, name).toEqual(alone.route(0)?.experts);
    }
  });

  test("those that take items are read in one pass, in whole or in layers", async () => {
    const prompts = together().map(([, adapter], i) => ({ tokens: promptOf(i), adapter }));
    using batch = new Batch(bench.shared, prompts.length, positions);
    using admission = batch.begin(prompts, { sliceTokens: 1024 });
    expect(await admission.advance()).toBe(prompts.length);
    expect(batch.adapters).toBe(prompts.length);
  });

  test("a prompt that would mostly be padding is read by itself", async () => {
    const [a, b] = [moved(backbone, "lora", {}, 21), moved(backbone, "lora", {}, 22)];
    using batch = new Batch(bench.shared, 3, { prompt: 60, longest: 80 });
    const prompts = [promptOf(1, 50), promptOf(2, 40), promptOf(3, 4)];
    using admission = batch.begin(
      prompts.map((tokens, i) => ({ tokens, adapter: i === 1 ? b : a })),
      {
        sliceTokens: 1024,
      },
    );
    expect(await admission.advance()).toBe(2);
    expect(await admission.advance()).toBe(1);
    batch.truncate(0);
    a.dispose();
    b.dispose();
  });

  test("an adapter of NaN reaches no other prompt", async () => {
    using broken = moved(backbone, "milora", {}, 31);
    for (const { key } of broken.specs) broken.values(key).fill(Number.NaN);
    const others = together();
    const prompts = others.map(([, adapter], i) => ({ tokens: promptOf(i), adapter }));
    using batch = new Batch(bench.shared, prompts.length + 1, positions);
    await batch.admit([...prompts.slice(0, 2), { tokens: promptOf(50), adapter: broken }, ...prompts.slice(2)]);
    expect(batch.logProbsOf(2).every(Number.isNaN)).toBe(true);
    for (const [i, [name]] of others.entries()) {
      expect(batch.logProbsOf(i < 2 ? i : i + 1).every(Number.isFinite), name).toBe(true);
    }
  });
});
