/** @file Quotas of several servers are those of one: in any history, for many at once, and when a server is gone. */
import fc from "fast-check";
import { describe, expect, onTestFinished, test } from "vitest";
import { type Admission, Quotas } from "./quotas.ts";
import { openStore, type Store } from "./store.ts";
import { Clock, NO_POSTGRES, Servers } from "./testing.ts";
import type { TenantLimits } from "./types.ts";

/** An admission, or what the refusal says. */
async function outcome(entering: Promise<Admission>): Promise<Admission | object> {
  try {
    return await entering;
  } catch (error) {
    const { message, retryAfterSeconds } = error as { message: string; retryAfterSeconds: number };
    return { message, retryAfterSeconds };
  }
}

const isAdmission = (answer: object): answer is Admission => "settle" in answer;

describe.skipIf(NO_POSTGRES)(`PostgreSQL ${NO_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use();

  async function replicas(count: number, clock: Clock, limits: TenantLimits): Promise<Store[]> {
    const url = await servers.database();
    const stores: Store[] = [];
    for (let i = 0; i < count; i++) {
      const store = await openStore({ url }, { now: clock.now });
      onTestFinished(() => store[Symbol.asyncDispose]());
      stores.push(store);
    }
    await stores[0]!.tenants.create({ id: "acme", limits });
    return stores;
  }

  const step = fc.oneof(
    fc.record({ admit: fc.integer({ min: 1, max: 400 }), at: fc.nat({ max: 1 }) }),
    fc.record({ settle: fc.nat({ max: 400 }), which: fc.nat() }),
    fc.record({ pass: fc.constantFrom(1, 7, 30, 61) }),
    fc.record({ flush: fc.nat({ max: 1 }) }),
  );
  const limit = (most: number) => fc.option(fc.integer({ min: 1, max: most }), { nil: undefined });
  const someLimits = fc
    .record({
      requestsPerMinute: limit(8),
      tokensPerMinute: limit(900),
      tokensPerDay: limit(3000),
      maxConcurrent: limit(4),
    })
    .map((limits) => JSON.parse(JSON.stringify(limits)) as TenantLimits);

  test("any history at two servers is answered as by one alone", async () => {
    const clock = new Clock("2026-03-01T23:40:00Z");
    const stores = await replicas(2, clock, {});
    let histories = 0;
    await fc.assert(
      fc.asyncProperty(someLimits, fc.array(step, { maxLength: 40 }), async (limits, steps) => {
        const tenant = `t${histories++}`;
        await stores[0]!.tenants.create({ id: tenant });
        const principal = { tenant, limits };
        const alone = new Quotas(clock.now);
        const open: [Admission, Admission, Store][] = [];
        for (const one of steps) {
          if ("pass" in one) {
            clock.pass(one.pass);
            for (const { quotas } of stores) quotas.renew();
            for (const { quotas } of stores) await quotas.told();
          } else if ("flush" in one) await stores[one.flush]!.flush();
          else if ("admit" in one) {
            const store = stores[one.at]!;
            const expected = await outcome(alone.enter(principal, one.admit));
            const answer = await outcome(store.quotas.enter(principal, one.admit));
            if (isAdmission(expected) && isAdmission(answer)) open.push([expected, answer, store]);
            else expect(answer).toEqual(expected);
          } else if (open.length > 0) {
            const [[expected, answer, store]] = open.splice(one.which % open.length, 1) as [(typeof open)[number]];
            expected.settle(one.settle);
            answer.settle(one.settle);
            await store.quotas.told();
          }
        }
        if (Object.keys(limits).length > 0) {
          const { running, reserved } = alone.state(tenant);
          expect(await stores[0]!.quotaState(tenant)).toMatchObject({ running });
          expect((await stores[1]!.quotaState(tenant)).reserved).toBeGreaterThanOrEqual(reserved);
        }
        for (const [expected, answer] of open) for (const admission of [expected, answer]) admission.settle(0);
      }),
      { numRuns: 60 },
    );
  });

  test.each<[TenantLimits, string, number]>([
    [{ requestsPerMinute: 30 }, "requests a minute", 2],
    [{ tokensPerMinute: 300 }, "tokens a minute", 2],
    [{ tokensPerDay: 300 }, "tokens a day", 12 * 3600],
    [{ maxConcurrent: 30 }, "requests at a time", 1],
  ])("of many at once at three servers exactly so many are let in: %j", async (limits, which, retryAfterSeconds) => {
    const stores = await replicas(3, new Clock(), limits);
    const principal = { tenant: "acme", limits };
    const answers = await Promise.all(
      Array.from({ length: 90 }, (_, i) => outcome(stores[i % 3]!.quotas.enter(principal, 10))),
    );
    expect(answers.filter(isAdmission)).toHaveLength(30);
    const message = expect.stringContaining(which);
    for (const answer of answers.filter((one) => !isAdmission(one)))
      expect(answer).toEqual({ message, retryAfterSeconds });
  });

  test("what a server has under way is free when it ends, and a while after it has died", async () => {
    const clock = new Clock();
    const limits = { maxConcurrent: 2, tokensPerDay: 1000 };
    const [one, two] = (await replicas(2, clock, limits)) as [Store, Store];
    const principal = { tenant: "acme", limits };
    const first = await one.quotas.enter(principal, 600);
    expect(await two.quotaState("acme")).toEqual({ running: 1, reserved: 600, tokensToday: 0 });
    expect(await outcome(two.quotas.enter(principal, 500))).toMatchObject({ retryAfterSeconds: 12 * 3600 });
    first.settle(100);
    await one.quotas.told();
    const second = await two.quotas.enter(principal, 900); // the 100 are not in the database yet
    expect(isAdmission(await outcome(one.quotas.enter(principal, 1)))).toBe(false);
    await one.flush();
    second.settle(0);
    await two.quotas.told();
    // A server that was killed: nobody renews this one.
    await two.quotas.close();
    await two.quotas.enter(principal, 1);
    await two.quotas.enter(principal, 1);
    expect(isAdmission(await outcome(one.quotas.enter(principal, 1)))).toBe(false);
    clock.pass(10);
    expect(isAdmission(await outcome(one.quotas.enter(principal, 900)))).toBe(true);
    expect(isAdmission(await outcome(one.quotas.enter(principal, 1)))).toBe(false);
  });

  test("when the clock is set back, by a little or a lot, nobody waits until it has caught up", async () => {
    for (const back of [5, 59, 61, 3600, 365 * 86_400]) {
      const clock = new Clock();
      const limits = { maxConcurrent: 1, requestsPerMinute: 600, tokensPerMinute: 6000, tokensPerDay: 5000 };
      const [one, two] = (await replicas(2, clock, limits)) as [Store, Store];
      const principal = { tenant: "acme", limits };
      await two.quotas.close();
      await two.quotas.enter(principal, 4000); // as of one that was killed: nobody renews or settles it
      clock.pass(-back);
      expect(isAdmission(await outcome(one.quotas.enter(principal, 2000)))).toBe(false);
      clock.pass(Math.min(back, 60) + 11);
      expect(isAdmission(await outcome(one.quotas.enter(principal, 2000)))).toBe(true);
      expect(await one.quotaState("acme")).toMatchObject({ running: 1, reserved: 2000 });
    }
  });

  test("a tenant without limits asks nobody; one that is removed leaves nothing", async () => {
    const [store] = (await replicas(1, new Clock(), {})) as [Store];
    (await store.quotas.enter({ tenant: "acme", limits: {} }, 1e9)).settle(5);
    const limits = { requestsPerMinute: 1 };
    (await store.quotas.enter({ tenant: "acme", limits }, 1)).settle(1);
    expect(isAdmission(await outcome(store.quotas.enter({ tenant: "acme", limits }, 1)))).toBe(false);
    await store.tenants.remove("acme");
    await store.tenants.create({ id: "acme" });
    expect(isAdmission(await outcome(store.quotas.enter({ tenant: "acme", limits }, 1)))).toBe(true);
  });
});
