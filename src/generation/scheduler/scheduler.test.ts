/** @file The scheduler as its users see it: answers as of the engine alone, fair shares, turns for cold adapters, scores. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Adapter } from "../../methods/index.ts";
import { Backbone } from "../../models/index.ts";
import { Engine } from "../engine.ts";
import type { GenerationResult } from "../request.ts";
import { distance, moved, smallConfig } from "../testing.ts";
import { Scheduler } from "./scheduler.ts";
import type { ChoiceToken, ScheduledRequest } from "./types.ts";

let backbone: Backbone;
let engine: Engine;
let adapters: Adapter[];
beforeAll(() => {
  backbone = Backbone.random(smallConfig, { seed: 3 });
  engine = Engine.create(backbone);
  adapters = (
    [
      ["milora", { r: 2, top_k: 2 }],
      ["lora", { r: 2 }],
      ["lora", { r: 4 }],
      ["dora", { r: 2 }],
      ["p-tuning-v2", { num_virtual_tokens: 5 }],
    ] as const
  ).map(([method, config], index) => moved(backbone, method, config, index));
});
afterAll(() => {
  for (const adapter of adapters) adapter.dispose();
  engine.dispose();
  backbone.dispose();
});

async function collect(
  stream: AsyncGenerator<ChoiceToken, readonly GenerationResult[]>,
): Promise<{ tokens: ChoiceToken[]; results: readonly GenerationResult[] }> {
  const tokens: ChoiceToken[] = [];
  for (;;) {
    const next = await stream.next();
    if (next.done) return { tokens, results: next.value };
    tokens.push(next.value);
  }
}

const prompt = [1, 44, 23, 90];

describe("answers are those of the engine", () => {
  test("of several, the first as if it were alone; tokens come with their answer", async () => {
    await using scheduler = new Scheduler(engine);
    const options = { maxNewTokens: 12, temperature: 1, seed: 4, eosTokenIds: [] };
    const request = { tenant: "a", prompt, adapter: adapters[0]!, options };
    const [expected] = await engine.generate([request]);
    const { tokens, results } = await collect(scheduler.submit({ ...request, n: 3 }));
    expect(results.map((result) => result.tokens.length)).toEqual([12, 12, 12]);
    expect(results[0]!.tokens).toEqual(expected!.tokens);
    expect(results[0]!.route).toEqual(expected!.route);
    expect(results[1]!.tokens).not.toEqual(results[0]!.tokens);
    for (const choice of [0, 1, 2]) {
      const own = tokens.filter((token) => token.choice === choice);
      expect(own.map(({ token }) => token)).toEqual(results[choice]!.tokens);
      expect(own.map(({ finishReason }) => finishReason)).toEqual([...new Array(11).fill(undefined), "length"]);
    }
  });

  test("greedy, drawn, by beams, sliced, of every adapter and none, all at once in a small batch", async () => {
    await using scheduler = new Scheduler(engine, { maxBatch: 7, maxAdaptersPerBatch: 3, maxPrefillTokens: 16 });
    const requests = Array.from({ length: 36 }, (_, i): ScheduledRequest => {
      const adapter = adapters[i % (adapters.length + 1)];
      const kind = i % 4;
      return {
        tenant: `t${i % 5}`,
        prompt: Array.from({ length: i % 7 === 0 ? 40 + i : 3 + (i % 9) }, (_, t) => 3 + ((7 * i + 11 * t) % 90)),
        ...(adapter && { adapter }),
        options: {
          maxNewTokens: 3 + (i % 11),
          eosTokenIds: [],
          ...(kind === 1 && { temperature: 1.1, seed: i, topK: 40, frequencyPenalty: 0.5 }),
          ...(kind === 2 && { beams: 3 }),
          ...(kind === 3 && { topLogprobs: 2 }),
        },
        ...(kind === 3 && { promptLogprobs: { top: 1 } }),
      };
    });
    const [found, expected] = [
      await Promise.all(requests.map((request) => collect(scheduler.submit(request)))),
      await Promise.all(requests.map(async (request) => (await engine.generate([request]))[0]!)),
    ];
    found.forEach(({ tokens, results: [result] }, i) => {
      expect(result!.tokens, `request ${i}`).toEqual(expected[i]!.tokens);
      expect(tokens.map(({ token }) => token)).toEqual(result!.tokens);
      expect(distance(result!.logprobs, expected[i]!.logprobs)).toBeLessThan(1e-4);
      expect(result!.route).toEqual(expected[i]!.route && { ...expected[i]!.route, probabilities: expect.anything() });
      expect(result!.promptLogprobs?.length).toBe(expected[i]!.promptLogprobs?.length);
      if (i % 4 === 3) expect(tokens[0]!.promptLogprobs).toEqual(result!.promptLogprobs);
    });
    expect(scheduler.stats()).toMatchObject({ waiting: 0, running: 0, rows: 0, adapters: 0, kvTokens: 0 });
  });

  test("the n best of a beam search, the best first", async () => {
    await using scheduler = new Scheduler(engine);
    const options = { maxNewTokens: 6, beams: 4 };
    const [best] = await engine.generate([{ prompt, options }]);
    const { results } = await collect(scheduler.submit({ tenant: "a", prompt, options, n: 3 }));
    expect(results).toHaveLength(3);
    expect(results[0]!.tokens).toEqual(best!.tokens);
    const scores = results.map(({ logprobs }) => logprobs.reduce((a, b) => a + b, 0) / logprobs.length);
    expect(scores).toEqual(scores.toSorted((a, b) => b - a));
    expect(new Set(results.map(({ tokens }) => tokens.join())).size).toBe(3);
  });

  test("probabilities of a prompt alone take no row", async () => {
    await using scheduler = new Scheduler(engine, { maxBatch: 1 });
    const long = scheduler.submit({ tenant: "a", prompt, options: { maxNewTokens: 300, eosTokenIds: [] } });
    await long.next();
    const request = { tenant: "b", prompt, promptLogprobs: { top: 1 }, options: { maxNewTokens: 1, eosTokenIds: [] } };
    const { tokens, results } = await collect(scheduler.submit(request));
    expect(scheduler.stats().running).toBe(1);
    const [expected] = await engine.generate([request]);
    expect(tokens.map(({ token }) => token)).toEqual(expected!.tokens);
    expect(results[0]!.promptLogprobs).toHaveLength(prompt.length);
    const none = await collect(scheduler.submit({ ...request, options: { maxNewTokens: 0 } }));
    expect(none.tokens).toEqual([]);
    expect(none.results[0]!.promptLogprobs).toEqual(results[0]!.promptLogprobs);
    await long.return([]);
  });

  test("scores, while others decode", async () => {
    await using scheduler = new Scheduler(engine, { maxPrefillTokens: 16 });
    const rows = Array.from({ length: 30 }, (_, i) => ({
      prompt: [...prompt.slice(0, 1 + (i % 4)), 3 + (i % 20)],
      continuation: [5 + i, 9, 60 - i].slice(0, i % 4),
    }));
    const text = collect(scheduler.submit({ tenant: "b", prompt, options: { maxNewTokens: 40, eosTokenIds: [] } }));
    const seen: number[] = [];
    const found = await scheduler.score(rows, adapters[0], {
      tenant: "a",
      onProgress: (finished) => seen.push(finished),
    });
    const expected = await engine.score(rows, adapters[0]);
    found.forEach((result, i) => {
      expect(distance(result.logprobs, expected[i]!.logprobs)).toBeLessThan(1e-5);
      expect(result.greedy).toBe(expected[i]!.greedy);
    });
    expect(seen.length).toBeGreaterThan(3);
    expect(seen.at(-1)).toBe(30);
    expect((await text).results[0]!.tokens).toHaveLength(40);
  });
});

test("what is kept of prompts serves their tenant alone, unless a scope says otherwise", async () => {
  using caching = Engine.create(backbone, { prefixCache: { bytes: 1e7 } });
  const scheduler = new Scheduler(caching);
  const long = Array.from({ length: 100 }, (_, i) => 3 + ((5 * i) % 90));
  const ask = async (tenant: string, scope?: string): Promise<GenerationResult> => {
    const request = { tenant, prompt: long, options: { maxNewTokens: 3, eosTokenIds: [] } };
    return (await collect(scheduler.submit({ ...request, ...(scope && { scope }) }))).results[0]!;
  };
  const first = await ask("a");
  expect(first.cachedTokens).toBeUndefined();
  const again = await ask("a");
  expect(again.cachedTokens).toBeGreaterThan(32);
  expect(again.tokens).toEqual(first.tokens);
  expect((await ask("b")).cachedTokens).toBeUndefined();
  expect((await ask("b", "a")).cachedTokens).toBe(again.cachedTokens);
  await scheduler.drain();
});

describe("shares", () => {
  /** Tokens that tenants have got when `total` have been given, each with as many requests as it likes. */
  async function saturate(weights: Record<string, number>, total: number): Promise<Record<string, number>> {
    const got: Record<string, number> = {};
    let given = 0;
    const stop = new AbortController();
    await using scheduler = new Scheduler(engine, { maxBatch: 4 });
    const tenants = Object.entries(weights);
    await Promise.all(
      tenants.flatMap(([tenant, weight], t) =>
        Array.from({ length: 5 }, async (_, i) => {
          got[tenant] = 0;
          while (!stop.signal.aborted) {
            const request = {
              tenant,
              weight,
              prompt: new Array<number>(2 + 3 * t).fill(7 + i),
              options: { maxNewTokens: 4 + 5 * t, eosTokenIds: [] },
            };
            for await (const _ of scheduler.submit(request)) {
              if (stop.signal.aborted) break;
              got[tenant]!++;
              if (++given >= total) stop.abort();
            }
          }
        }),
      ),
    );
    return got;
  }

  test("equal for equal weights, whatever is asked", async () => {
    const got = Object.values(await saturate({ a: 1, b: 1, c: 1, d: 1 }, 1600));
    const sum = got.reduce((a, b) => a + b, 0);
    expect(sum ** 2 / (got.length * got.reduce((a, b) => a + b * b, 0))).toBeGreaterThan(0.95);
  });

  test("by weight", async () => {
    // Prompts count, too: of the generated tokens alone the ratio is not quite 3.
    const got = await saturate({ one: 1, three: 3 }, 1600);
    expect(got.three! / got.one!).toBeGreaterThan(2.3);
    expect(got.three! / got.one!).toBeLessThan(4.2);
  });

  test("a cold adapter gets its turn while a hot one has ever more to do", async () => {
    await using scheduler = new Scheduler(engine, { maxBatch: 4, maxAdaptersPerBatch: 1 });
    let cold = false;
    let after = 0;
    const hot = Array.from({ length: 8 }, async (_, i) => {
      while (!cold) {
        const options = { maxNewTokens: 5 + (i % 3), eosTokenIds: [] };
        await collect(scheduler.submit({ tenant: `hot ${i}`, prompt, adapter: adapters[1]!, options }));
        after++;
      }
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    after = 0;
    const options = { maxNewTokens: 3, eosTokenIds: [] };
    const { results } = await collect(scheduler.submit({ tenant: "cold", prompt, options }));
    cold = true;
    expect(results[0]!.tokens).toHaveLength(3);
    expect(after).toBeLessThan(24);
    await Promise.all(hot);
  });
});
