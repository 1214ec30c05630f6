/** @file Routes and the pooler's attention: as PyTorch computes them, and as generation reports them, however they are read. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InputError } from "../base/index.ts";
import { type Adapter, milora } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { operators } from "../runtime/index.ts";
import { Engine } from "./engine.ts";
import type { Exploration } from "./explore.ts";
import type { RouteReport } from "./request.ts";
import { Scheduler } from "./scheduler/scheduler.ts";
import {
  distance,
  type ExpectedPrompt,
  fixtureNames,
  loadAdapter,
  loadBackbone,
  moved,
  readFixture,
  smallConfig,
} from "./testing.ts";

const TOLERANCE = 1e-5;

describe("as PyTorch computes them", () => {
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

  test.each(fixtureNames("milora"))("MiLoRA %s", async (name) => {
    const { sequences } = readFixture<{
      sequences: (ExpectedPrompt & { attention: (number[] | null)[] })[];
    }>(`milora/${name}/expected.json`);
    using adapter = loadAdapter(`milora/${name}`, backbone);
    const { experts, pooler } = adapter.method.routing!(adapter.config);
    const explored = await engine.explore(
      sequences.map(({ prompt }) => prompt),
      adapter,
      { attention: true },
    );
    for (const [i, { routes, probabilities, attention }] of sequences.entries()) {
      const found = explored[i]!;
      expect(found.route.experts).toEqual(routes.map((layer) => layer.map((expert) => experts[expert])));
      expect(distance(found.route.probabilities.flat(), probabilities.flat())).toBeLessThan(1e-4);
      if (pooler === "max") {
        expect(attention).toEqual(routes.map(() => null));
        expect(found.attention).toBeUndefined();
      } else {
        expect(found.attention).toHaveLength(routes.length);
        for (const [layer, weights] of attention.entries()) {
          expect(distance(found.attention![layer]!, weights!)).toBeLessThan(TOLERANCE);
        }
      }
    }
  });
});

const lengths = [40, 1, 7, 23, 7];
const prompts = lengths.map((length, i) => Array.from({ length }, (_, t) => 3 + ((13 * i + 11 * t) % 90)));

/** Weights of a mean over the prompt's tokens, of every layer. */
function expectAttention({ attention }: Exploration, length: number): void {
  expect(attention).toHaveLength(smallConfig.numLayers);
  for (const weights of attention!) {
    expect(weights).toHaveLength(length);
    expect(Math.min(...weights)).toBeGreaterThan(0);
    expect(weights.reduce((a, b) => a + b)).toBeCloseTo(1, 5);
  }
}

describe.each(["float32", "int8", "int4"] as const)("as generation reports them, %s", (weights) => {
  let backbone: Backbone;
  let engine: Engine;
  let adapters: Adapter[];
  beforeAll(() => {
    backbone = Backbone.random(smallConfig, { weights, seed: 9 });
    engine = Engine.create(backbone);
    adapters = ["milora", "midora"].map((method, i) => moved(backbone, method, { r: 4, top_k: 2 }, 3 + i));
  });
  afterAll(() => {
    for (const adapter of adapters) adapter.dispose();
    engine.dispose();
    backbone.dispose();
  });

  const generated = (adapter: Adapter, prompt: readonly number[]): Promise<RouteReport> =>
    engine.generate([{ prompt, adapter, options: { maxNewTokens: 1 } }]).then(([result]) => result!.route!);

  test("one prompt, with what is attended to and without", async () => {
    for (const adapter of adapters) {
      for (const prompt of prompts) {
        const [watched] = await engine.explore([prompt], adapter, { attention: true });
        const [bare] = await engine.explore([prompt], adapter);
        const route = await generated(adapter, prompt);
        expect(watched!.route.experts).toEqual(route.experts);
        expect(distance(watched!.route.probabilities.flat(), route.probabilities.flat())).toBeLessThan(TOLERANCE);
        expect(bare).toEqual({ route: watched!.route });
        expectAttention(watched!, prompt.length);
      }
    }
  });

  test("adapters of other configs and with other poolers, each as it is", async () => {
    using own = Engine.create(backbone);
    const options = [
      { r: 2 },
      { r: 3, lora_alpha: 6, top_k: 1 },
      { pooler: "mean" },
      { pooler: "last" },
      { pooler: "max" },
    ];
    const sizes: number[] = [];
    for (const [i, config] of options.entries()) {
      using adapter = moved(backbone, "milora", config, 20 + i);
      const [found] = await own.explore([prompts[2]!], adapter, { attention: true });
      const [result] = await own.generate([{ prompt: prompts[2]!, adapter, options: { maxNewTokens: 1 } }]);
      expect(found!.route.experts).toEqual(result!.route!.experts);
      const length = prompts[2]!.length;
      const weights = found!.attention?.[1];
      if (config.pooler === "max") expect(weights).toBeUndefined();
      else if (config.pooler === "last") expect(weights).toEqual([...new Array(length - 1).fill(0), 1]);
      else if (config.pooler === "mean") expect(weights).toEqual(new Array(length).fill(Math.fround(1 / length)));
      else expectAttention(found!, length);
      sizes.push(own.sessions);
    }
    // A config of its own has a graph of its own only where methods are built into graphs.
    if (operators()) expect(sizes[1]).toBe(sizes[0]);
  });

  test("in turns with requests, long prompts in slices", async () => {
    const adapter = adapters[0]!;
    await using scheduler = new Scheduler(engine, { maxPrefillTokens: 16 });
    const alone = await Promise.all(prompts.map((prompt) => engine.explore([prompt], adapter, { attention: true })));
    const options = { maxNewTokens: 30, eosTokenIds: [] };
    const request = { tenant: "b", prompt: prompts[0]!, adapter, options };
    const [expected] = await engine.generate([request]);
    const answer = (async () => {
      const stream = scheduler.submit(request);
      for (;;) {
        const next = await stream.next();
        if (next.done) return next.value[0]!;
      }
    })();
    const told: number[] = [];
    const together = await scheduler.explore(prompts, adapter, {
      ...{ tenant: "a", attention: true, onProgress: (done) => told.push(done) },
    });
    expect((await answer).tokens).toEqual(expected!.tokens);
    for (const [i, [one]] of alone.entries()) {
      const both = [together[i]!, one!] as const;
      if (weights !== "int4") {
        // 4-bit products round x to 8 bits, so that little differences jump.
        for (const pick of [({ route }: Exploration) => route.probabilities, (e: Exploration) => e.attention!]) {
          expect(distance(pick(both[0]).flat(), pick(both[1]).flat())).toBeLessThan(1e-4);
        }
        expect(together[i]!.route.experts).toEqual(one!.route.experts);
      }
      expectAttention(together[i]!, lengths[i]!);
    }
    // The short ones in passes of at most 16 tokens; 23 and 40 layer by layer, of which there are two.
    expect(told).toEqual([2, 3, 3, 4, 4, 5]);
  });

  test("what cannot be explored is said at once; what is cancelled leaves nothing behind", async () => {
    using lora = moved(backbone, "lora", { r: 2 });
    const refused = engine.explore([prompts[0]!, [], [1_000_000]], lora);
    await expect(refused).rejects.toThrow(InputError);
    await expect(refused).rejects.toThrow(/prompt 1 is empty[\s\S]*prompt 2 has 1000000[\s\S]*lora does not choose/);
    await using scheduler = new Scheduler(engine, { maxPrefillTokens: 16 });
    const stop = new AbortController();
    const reason = new Error("enough");
    const cancelled = scheduler.explore(prompts, adapters[0]!, {
      ...{ tenant: "a", attention: true, signal: stop.signal, onProgress: () => stop.abort(reason) },
    });
    await expect(cancelled).rejects.toBe(reason);
    await scheduler.drain();
    expect(scheduler.stats()).toMatchObject({ waiting: 0, running: 0, tenants: new Map() });
  });
});

test("a method that routes says how it pools", () => {
  const backbone = Backbone.shapes["llama-2-7b"]!;
  for (const pooler of ["self_attention", "mean", "last", "max"]) {
    expect(milora.routing!(milora.newConfig({ pooler }, backbone)).pooler).toBe(pooler);
  }
});
