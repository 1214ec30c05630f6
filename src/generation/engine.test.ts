/** @file The engine's manners: refusals, seeds, stop strings, streams, cancellation, and memory that stays flat. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone, type Tokenizer } from "../models/index.ts";
import { Engine } from "./engine.ts";
import type { GenerationResult, StreamedToken } from "./request.ts";
import { distance, loadTiny, smallConfig } from "./testing.ts";

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

const prompt = [1, 44, 23, 90];

async function collect(
  stream: AsyncGenerator<StreamedToken, GenerationResult>,
): Promise<{ tokens: StreamedToken[]; result: GenerationResult }> {
  const tokens: StreamedToken[] = [];
  for (;;) {
    const next = await stream.next();
    if (next.done) return { tokens, result: next.value };
    tokens.push(next.value);
  }
}

describe("refusals, before anything runs", () => {
  test("a prompt that does not fit is told with numbers", async () => {
    const long = new Array<number>(500).fill(5);
    const wrong = engine.generate([{ prompt: long, options: { maxNewTokens: 20 } }]);
    await expect(wrong).rejects.toMatchObject({ code: "PROMPT_TOO_LONG", exitCode: 2 });
    await expect(wrong).rejects.toThrow(/500 tokens, with 20 new ones 520; the context holds 512/);
    await expect(engine.stream({ prompt: long, options: { maxNewTokens: 20 } }).next()).rejects.toThrow(/520/);
    await expect(engine.inspectTokens(new Array<number>(513).fill(5))).rejects.toThrow(/513/);
    await expect(engine.score([{ prompt: long, continuation: long }])).rejects.toThrow(/1000/);
    expect(engine.sessions).toBe(0);
  });

  test("every problem of every request is listed", async () => {
    const wrong = engine.generate([
      { prompt: [], options: { maxNewTokens: 1 } },
      { prompt: [1, 96], options: { maxNewTokens: 0, topP: 2 } },
      { prompt: [1], options: { maxNewTokens: 1, beams: 2, temperature: 1 } },
      { prompt: [1], options: { maxNewTokens: 1, stop: ["x"] } },
    ]);
    await expect(wrong).rejects.toThrow(
      /6 problems: prompt 0 is empty.*maxNewTokens.*topP.*96 at position 1.*beams need.*stop strings need/,
    );
  });

  test("an adapter of another backbone", async () => {
    const config = { ...smallConfig, hiddenSize: 64 };
    using adapter = Adapter.create(methodOf("lora"), { r: 2 }, config, 1);
    await expect(engine.generate([{ prompt, adapter, options: { maxNewTokens: 1 } }])).rejects.toMatchObject({
      code: "ADAPTER_MISMATCH",
    });
  });

  test("a disposed engine", async () => {
    const closed = Engine.create(backbone);
    closed.dispose();
    closed.dispose();
    await expect(closed.generate([{ prompt, options: { maxNewTokens: 1 } }])).rejects.toMatchObject({
      code: "ENGINE_CLOSED",
    });
  });
});

test("an engine in use is not torn down", async () => {
  const busy = Engine.create(backbone);
  const running = busy.generate([{ prompt, options: { maxNewTokens: 3, eosTokenIds: [] } }]);
  expect(() => busy.dispose()).toThrow(expect.objectContaining({ code: "ENGINE_BUSY" }));
  expect((await running)[0]!.tokens).toHaveLength(3);
  const stream = busy.stream({ prompt, options: { maxNewTokens: 3 } });
  await stream.next();
  expect(() => busy.dispose()).toThrow(/1 call/);
  await stream.return(undefined as never);
  busy.dispose();
});

test("prompt and new tokens may fill the context to the last position", async () => {
  using small = Engine.create(backbone, { context: 12 });
  const [result] = await small.generate([{ prompt, options: { maxNewTokens: 8, eosTokenIds: [] } }]);
  expect(result!.tokens).toHaveLength(8);
});

test("a cache that has to grow changes nothing", async () => {
  const request = { prompt, options: { maxNewTokens: 400, eosTokenIds: [] } };
  using fixed = Engine.create(backbone, { capacity: 512 });
  const [growing] = await engine.generate([request]);
  const [whole] = await fixed.generate([request]);
  expect(growing!.tokens).toEqual(whole!.tokens);
  expect(distance(growing!.logprobs, whole!.logprobs)).toBeLessThan(1e-5);
});

test("a stream gives the tokens of generate, and its result", async () => {
  const request = { prompt, options: { maxNewTokens: 10, eosTokenIds: [] } };
  const [expected] = await engine.generate([request]);
  const { tokens, result } = await collect(engine.stream(request));
  expect(tokens.map(({ token }) => token)).toEqual(expected!.tokens);
  expect(tokens.map(({ logprob }) => logprob)).toEqual(result.logprobs);
  expect(result.finishReason).toBe("length");
  expect(result.timing.steps).toBe(9);
});

test("an end token ends the sequence and belongs to it", async () => {
  const [free] = await engine.generate([{ prompt, options: { maxNewTokens: 10, eosTokenIds: [] } }]);
  const end = free!.tokens[4]!;
  const at = free!.tokens.indexOf(end);
  const [ended] = await engine.generate([{ prompt, options: { maxNewTokens: 10, eosTokenIds: [end] } }]);
  expect(ended!.tokens).toEqual(free!.tokens.slice(0, at + 1));
  expect(ended!.finishReason).toBe("stop");
});

test("a seed decides the draws, whatever runs beside it", async () => {
  const sampled = (seed: number) => ({
    prompt,
    options: { maxNewTokens: 12, temperature: 1.2, topK: 50, seed, eosTokenIds: [] },
  });
  const [alone] = await engine.generate([sampled(5)]);
  const beside = await engine.generate([sampled(1), sampled(5), sampled(2), sampled(5)]);
  expect(beside[1]!.tokens).toEqual(alone!.tokens);
  expect(beside[3]!.tokens).toEqual(alone!.tokens);
  expect(beside[0]!.tokens).not.toEqual(alone!.tokens);
});

test("calls may overlap", async () => {
  using adapter = Adapter.create(methodOf("milora"), { r: 2, top_k: 2 }, backbone.config, 1);
  const requests = [
    { prompt, options: { maxNewTokens: 20, eosTokenIds: [] } },
    { prompt: [9, 8, 7], adapter, options: { maxNewTokens: 25, eosTokenIds: [] } },
    { prompt: [5], options: { maxNewTokens: 12, eosTokenIds: [], beams: 3 } },
  ];
  const apart: number[][] = [];
  for (const request of requests) apart.push((await engine.generate([request]))[0]!.tokens);
  const [streamed, generated, inspected] = await Promise.all([
    collect(engine.stream(requests[0]!)),
    engine.generate(requests),
    engine.inspectTokens(prompt, adapter),
  ]);
  expect(streamed.result.tokens).toEqual(apart[0]);
  expect(generated.map(({ tokens }) => tokens)).toEqual(apart);
  expect(inspected.route!.experts).toHaveLength(2);
});

test("progress counts finished requests", async () => {
  const seen: [number, number][] = [];
  const requests = Array.from({ length: 11 }, (_, i) => ({ prompt, options: { maxNewTokens: 1 + (i % 4) } }));
  await engine.generate(requests, (finished, total) => seen.push([finished, total]));
  expect(seen.at(-1)).toEqual([11, 11]);
  expect(seen.every(([finished], i) => i === 0 || finished > seen[i - 1]![0])).toBe(true);
  expect(await engine.generate([])).toEqual([]);
});

describe("cancellation", () => {
  test("a cancelled request ends with what it has, the others go on", async () => {
    const controller = new AbortController();
    const options = { maxNewTokens: 40, eosTokenIds: [] };
    const [undisturbed] = await engine.generate([{ prompt, options }]);
    setTimeout(() => controller.abort(), 1);
    const [cancelled, other] = await engine.generate([
      { prompt: [9, 8], options: { ...options, maxNewTokens: 500 }, signal: controller.signal },
      { prompt, options },
    ]);
    expect(cancelled!.finishReason).toBe("cancelled");
    expect(cancelled!.tokens.length).toBeLessThan(500);
    expect(other!.finishReason).toBe("length");
    expect(other!.tokens).toEqual(undisturbed!.tokens);
  });

  test("before it begins", async () => {
    const signal = AbortSignal.abort();
    for (const beams of [1, 3]) {
      const [result] = await engine.generate([{ prompt, options: { maxNewTokens: 9, beams }, signal }]);
      expect(result).toMatchObject({ finishReason: "cancelled", tokens: [], text: "" });
    }
  });

  test("of a stream, by its signal and by leaving it", async () => {
    const controller = new AbortController();
    const options = { maxNewTokens: 500, eosTokenIds: [] };
    const stream = engine.stream({ prompt, options, signal: controller.signal });
    for (let i = 0; i < 3; i++) await stream.next();
    controller.abort();
    const { tokens, result } = await collect(stream);
    expect(tokens).toEqual([]);
    expect(result.finishReason).toBe("cancelled");
    expect(result.tokens).toHaveLength(3);
    for await (const { token } of engine.stream({ prompt, options })) {
      expect(token).toBe(result.tokens[0]);
      break;
    }
    // The engine is as good as before.
    const [again] = await engine.generate([{ prompt, options: { maxNewTokens: 3, eosTokenIds: [] } }]);
    expect(again!.tokens).toEqual(result.tokens);
  });
});

test("memory stays flat over many generations", async () => {
  using adapter = Adapter.create(methodOf("milora"), { r: 2, top_k: 2 }, backbone.config, 1);
  const round = async (): Promise<void> => {
    const requests = [4, 9, 2, 30, 7, 12].map((length, i) => ({
      prompt: new Array<number>(length).fill(3 + i),
      ...(i % 2 ? { adapter } : {}),
      options: { maxNewTokens: 20 + i, eosTokenIds: [], beams: i % 3 ? 1 : 2 },
    }));
    await engine.generate(requests);
    await engine.score([{ prompt, continuation: prompt }], adapter);
    for await (const _ of engine.stream(requests[1]!)) break;
  };
  for (let i = 0; i < 8; i++) await round();
  const before = process.memoryUsage().rss;
  for (let i = 0; i < 25; i++) await round();
  expect(process.memoryUsage().rss - before).toBeLessThan(16e6);
});

describe("with text", () => {
  let tiny: Backbone;
  let writer: Engine;
  let tokenizer: Tokenizer;
  let start: number[];
  beforeAll(async () => {
    tiny = await loadTiny();
    writer = Engine.create(tiny);
    tokenizer = tiny.tokenizer;
    start = tokenizer.encode("The heart is a muscle that");
  });
  afterAll(() => {
    writer.dispose();
    tiny.dispose();
  });

  test("text goes on where the prompt ends, streamed as a whole", async () => {
    const request = { prompt: start, options: { maxNewTokens: 24 } };
    const { tokens, result } = await collect(writer.stream(request));
    const whole = tokenizer.decode([...start, ...result.tokens]);
    expect(tokenizer.decode(start) + result.text).toBe(whole);
    expect(tokens.map(({ text }) => text).join("")).toBe(result.text);
    expect(result.text.length).toBeGreaterThan(20);
  });

  test("a stop string across token borders ends the text before it", async () => {
    const [free] = await writer.generate([{ prompt: start, options: { maxNewTokens: 24 } }]);
    const middle = Math.floor(free!.text.length / 2);
    const stop = free!.text.slice(middle, middle + 7); // begins and ends anywhere in tokens
    for (const beams of [1, 2]) {
      const { tokens, result } = await collect(
        writer.stream({ prompt: start, options: { maxNewTokens: 24, stop: [stop], beams } }),
      );
      expect(tokens.map(({ text }) => text).join("")).toBe(result.text);
      expect(result.text).not.toContain(stop);
      if (beams > 1) continue;
      expect(result.finishReason).toBe("stop");
      expect(result.text).toBe(free!.text.slice(0, free!.text.indexOf(stop)));
      expect(result.tokens).toEqual(free!.tokens.slice(0, result.tokens.length));
    }
  });

  test("the event loop runs on while text is written", async () => {
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    await writer.generate([{ prompt: start, options: { maxNewTokens: 200, eosTokenIds: [] } }]);
    clearInterval(timer);
    expect(turns).toBeGreaterThan(3);
  });
});
