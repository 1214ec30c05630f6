/** @file What breaks off half-way (a client that leaves, an adapter that goes) leaves no tensor behind. */
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Backbone } from "../models/index.ts";
import { operators, Tensor } from "../runtime/index.ts";
import { Batch } from "./batch.ts";
import { Engine } from "./engine.ts";
import { Scheduler } from "./scheduler/scheduler.ts";
import { Bench, moved, smallConfig } from "./testing.ts";

const long = Array.from({ length: 41 }, (_, i) => (i * 37 + 5) % smallConfig.vocabSize);
const positions = { prompt: 8, longest: 60 };
/** Has tensors of its own, made when they are first asked for: it goes before they are counted. */
const random = (): Backbone => Backbone.random(smallConfig, { seed: 5 });

/** Every tensor that is made. */
let made: Tensor[];
beforeEach(() => {
  made = [];
  const { allocate, from } = Tensor;
  const { view } = Tensor.prototype;
  const kept = (tensor: Tensor): Tensor => {
    made.push(tensor);
    return tensor;
  };
  vi.spyOn(Tensor, "allocate").mockImplementation((...of) => kept(allocate.apply(Tensor, of)));
  vi.spyOn(Tensor, "from").mockImplementation((...of) => kept(from.apply(Tensor, of)));
  vi.spyOn(Tensor.prototype, "view").mockImplementation(function (this: Tensor, ...of) {
    return kept(view.apply(this, of));
  });
});
afterEach(() => vi.restoreAllMocks());

const left = (): (readonly number[])[] => made.filter(({ disposed }) => !disposed).map(({ shape }) => shape);

/** Aborts when the run of this number begins: after everything for it was made. */
function abortingAt(bench: Bench, run: number): AbortController {
  const abort = new AbortController();
  const { runner } = bench.shared;
  const real = runner.run.bind(runner);
  let runs = 0;
  runner.run = (...of) => {
    if (++runs === run) abort.abort();
    return real(...of);
  };
  return abort;
}

test.each(["lora", "milora", "dora", "iapt"])("a prompt's pass that is cancelled, %s", async (method) => {
  {
    using backbone = random();
    using adapter = moved(backbone, method);
    for (const sliceTokens of [undefined, 16, 1]) {
      for (const at of [1, 2]) {
        using bench = new Bench(backbone);
        using batch = new Batch(bench.shared, 2, positions);
        const { signal } = abortingAt(bench, at + (method === "dora" ? 1 : 0));
        using admission = batch.begin([{ tokens: long, adapter }], sliceTokens ? { sliceTokens } : {});
        const whole = async (): Promise<void> => {
          while (admission.waiting > 0) await admission.advance(signal);
        };
        if (sliceTokens !== undefined || at === 1) {
          await expect(whole()).rejects.toMatchObject({ code: "RUN_CANCELLED" });
        } else await whole();
        expect(made.length).toBeGreaterThan(0);
      }
    }
  }
  await new Promise((resolve) => setImmediate(resolve)); // what was derived goes when its promise has been heard
  expect(left()).toEqual([]);
});

test("steps whose adapter has gone", async () => {
  {
    using backbone = random();
    using bench = new Bench(backbone);
    using batch = new Batch(bench.shared, 2, positions);
    const adapter = moved(backbone, "lora");
    await batch.admit([{ tokens: long, adapter }]);
    adapter.dispose();
    // milora's operators have a copy of its numbers.
    if (operators()) await batch.step([3]);
    else await expect(batch.step([3])).rejects.toMatchObject({ code: "TENSOR_FREED" });
  }
  expect(left()).toEqual([]);
});

test("scores and answers that are cancelled", async () => {
  {
    using backbone = random();
    using adapter = moved(backbone, "milora");
    using engine = Engine.create(backbone);
    const abort = new AbortController();
    const scored = engine.score([{ prompt: long, continuation: [1, 2, 3] }], adapter, { signal: abort.signal });
    abort.abort();
    await expect(scored).rejects.toBeDefined();
    for await (const _ of engine.stream({ prompt: long, adapter, options: { maxNewTokens: 9 } })) break;
  }
  expect(left()).toEqual([]);
});

test("what is kept of prompts, when it makes room and at the end", async () => {
  {
    using backbone = random();
    using engine = Engine.create(backbone, { prefixCache: { bytes: 40_000 } });
    const kept = (): readonly Tensor[] => made.filter(({ shape, disposed }) => !disposed && shape.length === 4);
    for (let seed = 0; seed < 6; seed++) {
      const prompt = long.map((token) => (token + 7 * seed) % smallConfig.vocabSize);
      await engine.generate([{ prompt, options: { maxNewTokens: 2 } }]);
    }
    expect(engine.prefixCache).toMatchObject({ misses: 6 });
    expect(engine.prefixCache!.evictions).toBeGreaterThan(0);
    const bytes = kept().reduce((sum, { byteLength }) => sum + byteLength, 0);
    expect(bytes).toBe(engine.prefixCache!.bytes);
  }
  expect(left()).toEqual([]);
});

test("a batch without work keeps its buffers for the next request, and gives them back when the scheduler drains", async () => {
  {
    using backbone = random();
    using engine = Engine.create(backbone);
    const scheduler = new Scheduler(engine);
    const answer = async (): Promise<void> => {
      for await (const _ of scheduler.submit({ tenant: "a", prompt: long, options: { maxNewTokens: 2 } }));
    };
    const logits = (): number => made.filter(({ shape }) => shape.join() === `16,${smallConfig.vocabSize}`).length;
    await answer();
    const first = logits();
    expect(first).toBeGreaterThan(0);
    await answer();
    expect(logits()).toBe(first);
    expect(() => engine.dispose()).toThrow(expect.objectContaining({ code: "ENGINE_BUSY" }));
    await scheduler.drain();
  }
  expect(left()).toEqual([]);
});
