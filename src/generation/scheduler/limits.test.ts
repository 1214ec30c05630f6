/** @file What a scheduler refuses, ends and survives: limits, deadlines, cancelling at any time, failures of one request. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Adapter } from "../../methods/index.ts";
import { Backbone } from "../../models/index.ts";
import { Engine } from "../engine.ts";
import type { GenerationResult } from "../request.ts";
import { moved, smallConfig } from "../testing.ts";
import { type SchedulerLimitsInput, schedulerLimitsSchema } from "./limits.ts";
import { Scheduler } from "./scheduler.ts";
import type { ScheduledRequest, SchedulerObserver } from "./types.ts";

let backbone: Backbone;
let engine: Engine;
let adapter: Adapter;
beforeAll(() => {
  backbone = Backbone.random(smallConfig, { seed: 3 });
  engine = Engine.create(backbone);
  adapter = moved(backbone, "milora", { r: 2, top_k: 2 });
});
afterAll(() => {
  adapter.dispose();
  engine.dispose();
  backbone.dispose();
});

const prompt = [1, 44, 23, 90];
const request = (extra: Partial<ScheduledRequest> = {}, maxNewTokens = 10): ScheduledRequest => ({
  tenant: "a",
  prompt,
  options: { maxNewTokens, eosTokenIds: [] },
  ...extra,
});

async function finish(stream: AsyncGenerator<unknown, readonly GenerationResult[]>): Promise<GenerationResult> {
  for (;;) {
    const next = await stream.next();
    if (next.done) return next.value[0]!;
  }
}

/** Nothing is left of what was taken on, and the engine can be used and closed. */
async function expectClean(scheduler: Scheduler): Promise<void> {
  await scheduler.drain();
  const empty = { waiting: 0, running: 0, rows: 0, adapters: 0, kvTokens: 0 };
  expect(scheduler.stats()).toEqual({ ...empty, tenants: new Map(), labels: new Map(), draining: true });
}

describe("limits", () => {
  test("all have defaults, a description, and are checked", () => {
    const limits = schedulerLimitsSchema.parse({});
    for (const [name, field] of Object.entries(schedulerLimitsSchema.shape)) {
      expect(field.description, name).toMatch(/\w+/);
      expect(name in limits || name === "maxTokensPerTenant").toBe(true);
    }
    expect(() => new Scheduler(engine, { maxBatch: 0 })).toThrow(/maxBatch/);
  });

  /** Runs twenty requests and says the most of everything that was seen at once. */
  async function most(limits: SchedulerLimitsInput, requests: readonly ScheduledRequest[]) {
    const seen = { rows: 0, adapters: 0, kvTokens: 0, ofA: 0 };
    const observer: SchedulerObserver = {
      step: ({ rows, adapters }) => {
        const stats = scheduler.stats();
        seen.rows = Math.max(seen.rows, rows);
        seen.adapters = Math.max(seen.adapters, adapters);
        seen.kvTokens = Math.max(seen.kvTokens, stats.kvTokens);
        seen.ofA = Math.max(seen.ofA, stats.tenants.get("a")?.running ?? 0);
      },
    };
    const scheduler = new Scheduler(engine, limits, observer);
    const results = await Promise.all(requests.map((one) => finish(scheduler.submit(one))));
    for (const [i, { tokens }] of results.entries()) expect(tokens).toHaveLength(requests[i]!.options.maxNewTokens);
    await expectClean(scheduler);
    return seen;
  }
  const twenty = Array.from({ length: 20 }, (_, i) => request({ tenant: i % 4 ? "a" : "b" }, 5 + (i % 7)));

  test("rows, of all and of a tenant", async () => {
    expect(await most({}, twenty)).toMatchObject({ rows: 16 });
    expect(await most({ maxBatch: 3 }, twenty)).toMatchObject({ rows: 3 });
    expect(await most({ maxRunningPerTenant: 2 }, twenty)).toMatchObject({ rows: 4, ofA: 2 });
    // 4 + 11 - 1 = 14 positions at most
    expect((await most({ maxTokensPerTenant: 30 }, twenty)).ofA).toBeLessThanOrEqual(3);
  });

  test("memory for the context", async () => {
    const { kvTokens, rows } = await most({ maxKvTokens: 60 }, twenty);
    expect(kvTokens).toBeLessThanOrEqual(60);
    expect(rows).toBeGreaterThan(2);
    expect(rows).toBeLessThanOrEqual(60 / 8);
  });

  test("adapters; the bare model is one", async () => {
    using lora = moved(backbone, "lora", { r: 2 });
    const mixed = twenty.map((one, i) => ({ ...one, ...(i % 3 && { adapter: i % 3 === 1 ? adapter : lora }) }));
    expect(await most({}, mixed)).toMatchObject({ adapters: 3 });
    expect(await most({ maxAdaptersPerBatch: 2 }, mixed)).toMatchObject({ adapters: 2 });
    expect(await most({ maxAdaptersPerBatch: 1 }, mixed)).toMatchObject({ adapters: 1 });
  });

  test("what never fits is refused at once, with everything that is wrong", async () => {
    await using scheduler = new Scheduler(engine, { maxBatch: 4, maxKvTokens: 64 });
    const refused = (extra: Partial<ScheduledRequest>, tokens?: number) =>
      expect(scheduler.submit(request(extra, tokens)).next()).rejects;
    await refused({ n: 5 }).toThrow(/at most 4 sequences/);
    await refused({ n: 0, weight: 0, deadlineMs: -1 }).toThrow(/3 problems: n: .*weight: .*deadlineMs/);
    await refused({ n: 3, options: { maxNewTokens: 3, beams: 2 } }).toThrow(/as many answers as beams \(2\)/);
    await refused({ n: 3 }, 20).toMatchObject({ code: "PROMPT_TOO_LONG", exitCode: 2 });
    await refused({ prompt: [] }).toMatchObject({ code: "PROMPT_INVALID" });
    expect(scheduler.stats().waiting).toBe(0);
  });
});

describe("overload", () => {
  test("of the queue and of a tenant's place in it, told at once with when to come back", async () => {
    const limits = { maxBatch: 1, maxWaiting: 4, maxWaitingPerTenant: 2 };
    await using scheduler = new Scheduler(engine, limits);
    const running = scheduler.submit(request({ tenant: "r" }, 200));
    await running.next();
    const waiting = ["a", "a", "b", "c"].map((tenant) => finish(scheduler.submit(request({ tenant }))));
    for (const [tenant, text] of [
      ["a", "2 requests of this tenant"],
      ["d", "4 requests"],
    ] as const) {
      const error = await scheduler
        .submit(request({ tenant }))
        .next()
        .catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({ code: "OVERLOADED", message: expect.stringContaining(text), exitCode: 1 });
      expect((error as { retryAfterSeconds: number }).retryAfterSeconds).toBeGreaterThanOrEqual(1);
    }
    await expect(scheduler.score([{ prompt, continuation: [5] }], undefined, { tenant: "a" })).rejects.toMatchObject({
      code: "OVERLOADED",
    });
    await Promise.all([...waiting, finish(running)]);
    expect((await finish(scheduler.submit(request()))).tokens).toHaveLength(10); // there is room again
  });

  test("draining answers what was taken and takes nothing more", async () => {
    const scheduler = new Scheduler(engine, { maxBatch: 1 });
    const taken = [1, 2, 3].map(() => finish(scheduler.submit(request())));
    const drained = scheduler.drain();
    await expect(scheduler.submit(request()).next()).rejects.toMatchObject({ code: "DRAINING" });
    await expect(scheduler.score([], undefined, { tenant: "a" })).rejects.toMatchObject({ code: "DRAINING" });
    await drained;
    expect(scheduler.stats().waiting + scheduler.stats().running).toBe(0);
    for (const { tokens } of await Promise.all(taken)) expect(tokens).toHaveLength(10);
  });

  test("disposing ends everything with what it has", async () => {
    const scheduler = new Scheduler(engine, { maxBatch: 1 });
    const streams = [1, 2].map(() => scheduler.submit(request({}, 400)));
    await streams[0]!.next();
    const scores = scheduler.score([{ prompt, continuation: [4, 5] }], undefined, { tenant: "s" });
    const ended = expect(scores).rejects.toMatchObject({ code: "DRAINING" });
    await scheduler[Symbol.asyncDispose]();
    await ended;
    const [first, second] = await Promise.all(streams.map(finish));
    expect(first!.finishReason).toBe("cancelled");
    expect(first!.tokens.length).toBeGreaterThan(0);
    expect(second!).toMatchObject({ finishReason: "cancelled", tokens: [] });
  });
});

describe("ends", () => {
  test("a deadline passes while a request waits, and while it runs", async () => {
    const scheduler = new Scheduler(engine, { maxBatch: 1 });
    const busy = scheduler.submit(request({}, 500));
    await busy.next();
    const waiting = scheduler.submit(request({ tenant: "b", deadlineMs: 5 }));
    await expect(finish(waiting)).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED", exitCode: 1 });
    await busy.return([]);
    const running = scheduler.submit(request({ deadlineMs: 30 }, 500));
    await expect(finish(running)).rejects.toThrow(/after 30 ms/);
    const met = await finish(scheduler.submit(request({ deadlineMs: 1e12 })));
    expect(met.tokens).toHaveLength(10);
    await expectClean(scheduler);
  });

  test("by signal and by leaving: before it begins, waiting, while its prompt is read, and decoding", async () => {
    const finished: unknown[] = [];
    const limits = { maxBatch: 2, maxPrefillTokens: 16 };
    const scheduler = new Scheduler(engine, limits, { finished: (_, outcome) => finished.push(outcome) });
    const long = Array.from({ length: 300 }, (_, i) => 3 + (i % 90));
    let submitted = 0;
    for (const by of ["signal", "leaving"] as const) {
      for (const when of ["at once", "waiting", "reading", "decoding"] as const) {
        const busy = when === "waiting" ? [1, 2].map(() => scheduler.submit(request({}, 60))) : [];
        for (const stream of busy) await stream.next();
        const controller = new AbortController();
        const stream = scheduler.submit(
          request({ adapter, signal: controller.signal, n: 2, ...(when === "reading" && { prompt: long }) }, 150),
        );
        submitted += busy.length + 1;
        if (when === "reading" || when === "waiting") await new Promise((resolve) => setTimeout(resolve, 3));
        if (when === "decoding") await stream.next();
        if (by === "signal") {
          controller.abort();
          const result = await finish(stream);
          expect(result.finishReason).toBe("cancelled");
          expect(result.tokens.length).toBeLessThan(150);
        } else {
          await stream.return([]);
          expect(await stream.next()).toEqual({ done: true, value: undefined });
        }
        expect([...scheduler.stats().tenants.values()].reduce((sum, one) => sum + one.running, 0)).toBeLessThanOrEqual(
          busy.length,
        );
        for (const one of busy) expect((await finish(one)).tokens).toHaveLength(60);
      }
    }
    expect(finished).toHaveLength(submitted);
    await expectClean(scheduler);
  });

  test("an adapter may go as soon as its request has ended", async () => {
    await using scheduler = new Scheduler(engine);
    const other = finish(scheduler.submit(request({ tenant: "b" }, 120)));
    for (let i = 0; i < 12; i++) {
      const own = moved(backbone, i % 2 ? "lora" : "milora", { r: 2 }, i);
      const stream = scheduler.submit(request({ adapter: own }, i % 3 ? 200 : 5));
      if (i % 3 === 0) await finish(stream);
      else {
        await stream.next();
        await stream.return([]);
      }
      own.dispose(); // throws while a run uses it
    }
    expect((await other).tokens).toHaveLength(120);
  });

  test("a consumer that does not read holds nobody up", async () => {
    await using scheduler = new Scheduler(engine, { maxBatch: 2 });
    const slow = scheduler.submit(request({}, 30));
    for (let i = 0; i < 5; i++) await finish(scheduler.submit(request({ tenant: "b" })));
    expect(scheduler.stats().running).toBe(0);
    expect((await finish(slow)).tokens).toHaveLength(30);
  });

  test("scores are cancelled between pieces, while they wait, and before", async () => {
    const scheduler = new Scheduler(engine, { maxBatch: 1, maxPrefillTokens: 8 });
    const rows = Array.from({ length: 200 }, (_, i) => ({ prompt: [1, 3 + (i % 90)], continuation: [5, i % 90] }));
    const controller = new AbortController();
    let seen = 0;
    const cancelled = scheduler.score(rows, adapter, {
      tenant: "a",
      signal: controller.signal,
      onProgress: () => {
        if (++seen === 3) controller.abort(new Error("enough"));
      },
    });
    await expect(cancelled).rejects.toThrow("enough");
    expect(seen).toBeLessThan(10);
    await expect(
      scheduler.score(rows, adapter, { tenant: "a", signal: AbortSignal.abort(new Error("never")) }),
    ).rejects.toThrow("never");
    await expectClean(scheduler);
  });
});

describe("one failing request fails alone", () => {
  test("logits that are not numbers", async () => {
    using broken = moved(backbone, "lora", { r: 2 });
    for (const { key } of broken.specs) broken.values(key).fill(Number.NaN);
    await using scheduler = new Scheduler(engine);
    const good = Array.from({ length: 6 }, (_, i) => request(i % 2 ? { adapter } : {}, 20));
    const alone = await engine.generate(good);
    const mixed = [...good.slice(0, 3), request({ adapter: broken }), ...good.slice(3)];
    mixed.push(request({ adapter: broken, promptLogprobs: { top: 0 } }, 1));
    const settled = await Promise.allSettled(mixed.map((one) => finish(scheduler.submit(one))));
    for (const at of [3, 7]) expect(settled[at]).toMatchObject({ reason: { code: "LOGITS_NOT_FINITE" } });
    const answered = settled.flatMap((one) => (one.status === "fulfilled" ? [one.value.tokens] : []));
    expect(answered).toEqual(alone.map(({ tokens }) => tokens));
  });

  test("an adapter that was disposed, before and meanwhile", async () => {
    await using scheduler = new Scheduler(engine);
    const before = moved(backbone, "lora", { r: 2 }, 1);
    const meanwhile = moved(backbone, "lora", { r: 2 }, 2);
    before.dispose();
    const good = request({ adapter }, 30);
    const [alone] = await engine.generate([good]);
    const stream = scheduler.submit(request({ adapter: meanwhile }, 400));
    const others = [good, request({ adapter: before }), good].map((one) => finish(scheduler.submit(one)));
    await stream.next();
    for (;;) {
      try {
        meanwhile.dispose();
        break;
      } catch {
        await stream.next(); // a run uses it
      }
    }
    await expect(finish(stream)).rejects.toMatchObject({ code: "ADAPTER_DISPOSED" });
    const settled = await Promise.allSettled(others);
    expect(settled.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
    for (const one of [settled[0], settled[2]]) expect(one).toMatchObject({ value: { tokens: alone!.tokens } });
  });

  test("an attention prefix that leaves too little room", async () => {
    using small = Engine.create(backbone, { context: 24 });
    using prefixed = moved(backbone, "p-tuning-v2", { num_virtual_tokens: 12 });
    const scheduler = new Scheduler(small);
    const [bad, good] = await Promise.allSettled(
      [request({ adapter: prefixed }, 15), request({}, 15)].map((one) => finish(scheduler.submit(one))),
    );
    expect(bad).toMatchObject({ reason: { code: "PROMPT_TOO_LONG" } });
    expect(good).toMatchObject({ value: { finishReason: "length" } });
    await scheduler.drain();
  });

  test("an observer that throws changes nothing", async () => {
    const fail = (): never => {
      throw new Error("no");
    };
    const observer = { admitted: fail, firstToken: fail, token: fail, finished: fail, step: fail };
    await using scheduler = new Scheduler(engine, {}, observer);
    expect((await finish(scheduler.submit(request()))).tokens).toHaveLength(10);
  });

  test("an engine that was closed", async () => {
    const closed = Engine.create(backbone);
    const scheduler = new Scheduler(closed);
    expect((await finish(scheduler.submit(request()))).tokens).toHaveLength(10);
    await scheduler.drain();
    closed.dispose();
    await expect(new Scheduler(closed).submit(request()).next()).rejects.toMatchObject({ code: "ENGINE_CLOSED" });
  });
});

test("the observer is told every step of a request's life", async () => {
  const seen: string[] = [];
  await using scheduler = new Scheduler(
    engine,
    {},
    {
      admitted: ({ label }, ms) => seen.push(`admitted ${label} ${ms >= 0}`),
      firstToken: (_, ms) => seen.push(`first ${ms > 0}`),
      token: (_, ms) => seen.push(`token ${ms >= 0}`),
      finished: (_, outcome) => seen.push(`finished ${Array.isArray(outcome)}`),
      step: ({ rows, adapters, ms }) => seen.push(`step ${rows} ${adapters} ${ms > 0}`),
    },
  );
  await finish(scheduler.submit(request({ label: "x" }, 3)));
  const step = ["step 1 1 true", "token true"];
  expect(seen).toEqual(["admitted x true", "first true", ...step, ...step, "finished true"]);
});

test("memory stays flat over many requests that end in every way", async () => {
  await using scheduler = new Scheduler(engine, { maxBatch: 4, maxPrefillTokens: 32 });
  const round = async (): Promise<void> => {
    const streams = Array.from({ length: 8 }, (_, i) =>
      scheduler.submit(
        request({
          tenant: `t${i % 3}`,
          prompt: new Array<number>(i % 4 === 3 ? 60 : 5).fill(4 + i),
          ...(i % 2 && { adapter }),
          ...(i % 5 === 4 && { n: 2 }),
          ...(i % 7 === 6 && { deadlineMs: 5 }),
        }),
      ),
    );
    await Promise.allSettled(streams.map((stream, i) => (i % 3 ? finish(stream) : stream.return([]))));
  };
  for (let i = 0; i < 10; i++) await round();
  const before = process.memoryUsage().rss;
  for (let i = 0; i < 25; i++) await round();
  expect(process.memoryUsage().rss - before).toBeLessThan(16e6);
});
