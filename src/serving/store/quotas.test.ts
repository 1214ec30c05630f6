/** @file Quotas: exact in any order of calls, honest about when to come back, days that survive a restart. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Bucket } from "./bucket.ts";
import { type Admission, Quotas } from "./quotas.ts";
import { openStore } from "./store.ts";
import { Clock, onBoth } from "./testing.ts";
import type { LimitName, TenantLimits } from "./types.ts";

const tenant = (limits: TenantLimits) => ({ tenant: "acme", limits });

function admitted(answer: ReturnType<Quotas["admit"]>): Admission {
  if (!answer.ok) throw new Error(`refused by ${answer.which}`);
  return answer.admission;
}

/** Each limit with an estimate that uses it up a little at a time. */
const CASES: [LimitName, TenantLimits, number][] = [
  ["requestsPerMinute", { requestsPerMinute: 7 }, 10],
  ["tokensPerMinute", { tokensPerMinute: 700 }, 90],
  ["tokensPerDay", { tokensPerDay: 700 }, 90],
];

test.each(CASES)("%s: Retry-After is right to the second", (which, limits, estimate) => {
  const clock = new Clock();
  const quotas = new Quotas(clock.now);
  const ask = () => quotas.admit(tenant(limits), estimate);
  for (let round = 0; round < 3; round++) {
    let count = 0;
    let answer = ask();
    for (; answer.ok; answer = ask(), count++) answer.admission.settle(estimate);
    if (round === 0) expect(count).toBe(7);
    expect(answer).toMatchObject({ which, limit: limits[which] });
    const { retryAfterSeconds } = answer as { retryAfterSeconds: number };
    clock.pass(retryAfterSeconds - 1);
    expect(ask().ok).toBe(false);
    clock.pass(1);
    const next = ask();
    expect(next.ok).toBe(true);
    admitted(next).settle(estimate);
  }
});

test("a day ends at midnight UTC", () => {
  const clock = new Clock("2026-03-01T23:59:30.500Z");
  const quotas = new Quotas(clock.now);
  admitted(quotas.admit(tenant({ tokensPerDay: 100 }), 100)).settle(100);
  expect(quotas.admit(tenant({ tokensPerDay: 100 }), 1)).toMatchObject({
    which: "tokensPerDay",
    retryAfterSeconds: 30,
  });
  clock.pass(30);
  expect(quotas.admit(tenant({ tokensPerDay: 100 }), 1).ok).toBe(true);
});

test("concurrency counts until settled or disposed, once", () => {
  const quotas = new Quotas(new Clock().now);
  const ask = () => quotas.admit(tenant({ maxConcurrent: 2 }), 5);
  const first = admitted(ask());
  {
    using _second = admitted(ask());
    expect(ask()).toMatchObject({ ok: false, which: "maxConcurrent", retryAfterSeconds: 1 });
  }
  first.settle(3);
  first.settle(3);
  first[Symbol.dispose]();
  expect(quotas.state("acme").running).toBe(0);
  admitted(ask());
  admitted(ask());
  expect(ask().ok).toBe(false);
});

test("an estimate is replaced by what was taken", () => {
  const clock = new Clock();
  const quotas = new Quotas(clock.now);
  const limits = { tokensPerMinute: 600, tokensPerDay: 1000 };
  const request = admitted(quotas.admit(tenant(limits), 500));
  expect(quotas.admit(tenant(limits), 200).ok).toBe(false);
  request.settle(100); // 500 left of the minute
  admitted(quotas.admit(tenant(limits), 500)).settle(800); // 300 more than estimated: owed, at 10 tokens a second
  expect(quotas.admit(tenant(limits), 1)).toMatchObject({ which: "tokensPerMinute", retryAfterSeconds: 31 });
  clock.pass(60);
  expect(quotas.admit(tenant(limits), 101)).toMatchObject({ which: "tokensPerDay" });
  admitted(quotas.admit(tenant(limits), 100));
});

test("an estimate beyond the whole quota runs when all of it is there", () => {
  const clock = new Clock();
  const quotas = new Quotas(clock.now);
  admitted(quotas.admit(tenant({ tokensPerMinute: 60, tokensPerDay: 100 }), 5000)).settle(10);
  expect(quotas.admit(tenant({ tokensPerMinute: 60 }), 5000)).toMatchObject({ retryAfterSeconds: 10 });
  expect(quotas.admit(tenant({ tokensPerDay: 100 }), 5000)).toMatchObject({ which: "tokensPerDay" });
});

test("of several limits the one that takes longest is told, and nothing is taken", () => {
  const quotas = new Quotas(new Clock().now);
  const limits = { requestsPerMinute: 60, tokensPerMinute: 60, maxConcurrent: 1 };
  const request = admitted(quotas.admit(tenant(limits), 60));
  for (let i = 0; i < 100; i++) {
    expect(quotas.admit(tenant(limits), 30)).toMatchObject({ which: "tokensPerMinute", retryAfterSeconds: 30 });
  }
  request.settle(0);
  expect(quotas.admit(tenant(limits), 60).ok).toBe(true);
});

test("without limits everything runs", () => {
  const quotas = new Quotas(new Clock().now);
  for (let i = 0; i < 1000; i++) expect(quotas.admit(tenant({}), 1e9).ok).toBe(true);
});

test("the error says which quota, and when to come back", async () => {
  const quotas = new Quotas(new Clock().now);
  await quotas.enter(tenant({ requestsPerMinute: 1 }), 1);
  const expected = { code: "QUOTA_EXCEEDED", status: 429, retryAfterSeconds: 60 };
  await expect(quotas.enter(tenant({ requestsPerMinute: 1 }), 1)).rejects.toThrow(expect.objectContaining(expected));
});

describe("any history", () => {
  const step = fc.record({ pass: fc.integer({ min: 0, max: 20_000 }), amount: fc.integer({ min: 1, max: 50 }) });

  test("a bucket never gives more than a minute's allowance and what has flowed in", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 200 }), fc.array(step, { maxLength: 60 }), (perMinute, steps) => {
        const bucket = new Bucket();
        let now = 1e12;
        const taken: { at: number; amount: number }[] = [];
        for (const { pass, amount } of steps) {
          now += pass;
          if (bucket.wait(amount, perMinute, now) > 0 || amount > perMinute) continue;
          bucket.take(amount, perMinute, now);
          taken.push({ at: now, amount });
          for (const { at } of taken) {
            const since = taken.filter((t) => t.at >= at).reduce((sum, t) => sum + t.amount, 0);
            expect(since).toBeLessThanOrEqual(perMinute * (1 + (now - at) / 60_000) + 1e-6);
          }
        }
      }),
    );
  });

  test("running requests and a day's tokens are what was admitted and settled", () => {
    const call = fc.oneof(
      fc.record({ admit: fc.integer({ min: 1, max: 400 }) }),
      fc.record({ settle: fc.nat({ max: 400 }), which: fc.nat() }),
    );
    fc.assert(
      fc.property(fc.array(call, { maxLength: 80 }), (calls) => {
        const quotas = new Quotas(new Clock().now);
        const limits = { tokensPerDay: 1000, maxConcurrent: 3 };
        const open: { admission: Admission; estimate: number }[] = [];
        let used = 0;
        for (const one of calls) {
          if ("admit" in one) {
            const reserved = open.reduce((sum, { estimate }) => sum + estimate, 0);
            const answer = quotas.admit(tenant(limits), one.admit);
            expect(answer.ok).toBe(open.length < 3 && used + reserved + one.admit <= 1000);
            if (answer.ok) open.push({ admission: answer.admission, estimate: one.admit });
          } else if (open.length > 0) {
            const [{ admission }] = open.splice(one.which % open.length, 1) as [(typeof open)[number]];
            admission.settle(one.settle);
            used += one.settle;
          }
          expect(quotas.state("acme").running).toBe(open.length);
        }
        expect(quotas.take().reduce((sum, { tokens }) => sum + tokens, 0)).toBe(used);
      }),
    );
  });
});

test("a clock that jumps takes no quota away and gives no day back", () => {
  const clock = new Clock();
  const quotas = new Quotas(clock.now);
  const limits = { requestsPerMinute: 60, tokensPerDay: 100 };
  admitted(quotas.admit(tenant(limits), 100)).settle(100);
  clock.pass(-2 * 86_400);
  expect(quotas.admit(tenant(limits), 1)).toMatchObject({ which: "tokensPerDay" });
  for (let i = 0; i < 59; i++) admitted(quotas.admit(tenant({ requestsPerMinute: 60 }), 0)).settle(0);
  expect(quotas.admit(tenant({ requestsPerMinute: 60 }), 0)).toMatchObject({ retryAfterSeconds: 1 });
});

test("a clock that was ahead by more than a week keeps nobody waiting for the day that it told", () => {
  const clock = new Clock("2027-03-01T12:00:00Z");
  const quotas = new Quotas(clock.now);
  const limits = { tokensPerDay: 100 };
  admitted(quotas.admit(tenant(limits), 100)).settle(100);
  clock.pass(-365 * 86_400);
  admitted(quotas.admit(tenant(limits), 60)).settle(60);
  expect(quotas.admit(tenant(limits), 60)).toMatchObject({ which: "tokensPerDay", retryAfterSeconds: 43_200 });
  expect(quotas.take()).toEqual([
    { tenant: "acme", day: Date.parse("2027-03-01"), tokens: 100 },
    { tenant: "acme", day: Date.parse("2026-03-01"), tokens: 60 },
  ]);
});

onBoth((place) => {
  test("a day's tokens survive a restart, those of other tenants and days apart", async () => {
    const location = await place.lasting();
    const clock = new Clock();
    const limits = { tokensPerDay: 100 };
    for (let restart = 0; restart < 3; restart++) {
      await using store = await openStore(location, { now: clock.now });
      if (restart === 0) await store.tenants.create({ id: "acme", limits });
      const answer = store.quotas.admit(tenant(limits), 40);
      expect(answer.ok).toBe(restart < 2);
      if (answer.ok) answer.admission.settle(40);
      expect(store.quotas.admit({ tenant: "other", limits }, 100).ok).toBe(true);
    }
    clock.pass(86_400);
    await using store = await openStore(location, { now: clock.now });
    expect(store.quotas.admit(tenant(limits), 100).ok).toBe(true);
  });

  test("what another server has added to a day counts here after the next write", async () => {
    const { store, clock } = await place.store();
    await store.tenants.create({ id: "acme" });
    const limits = { tokensPerDay: 100 };
    const settle = (tokens: number) => admitted(store.quotas.admit(tenant(limits), tokens)).settle(tokens);
    settle(10);
    await store.flush();
    const day = Math.floor(clock.time / 86_400_000) * 86_400_000;
    store.quotas.learn([{ tenant: "acme", day, tokens: 90 }]);
    expect(store.quotas.admit(tenant(limits), 11).ok).toBe(false);
    settle(10);
  });
});
