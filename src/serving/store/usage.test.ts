/** @file Usage: sums by whatever is asked, written once and only once. */
import { setTimeout as sleep } from "node:timers/promises";
import { sql } from "drizzle-orm";
import { expect, test } from "vitest";
import { migrate } from "./migrations/index.ts";
import { usage } from "./schema.ts";
import { Store, writeBatch } from "./store.ts";
import { Tenants } from "./tenants.ts";
import { Clock, onBoth } from "./testing.ts";

const at = (tenant: string, keyId = "key_1") => ({ tenant, keyId });

onBoth((place) => {
  test("is summed by tenant, adapter, key, day and hour", async () => {
    const { store, clock } = await place.store(new Clock("2026-03-01T22:59:00Z"));
    await store.tenants.create({ id: "a" });
    await store.tenants.create({ id: "b" });
    const charge = (tenant: string, adapter: string, key = "key_1") =>
      store.usage.charge(at(tenant, key), { adapter, promptTokens: 10, completionTokens: 3 });
    charge("a", "x");
    charge("a", "x");
    charge("a", "", "key_2");
    clock.pass(3600);
    charge("b", "x");
    await store.flush();
    charge("a", "x"); // the same row again, and one that is only in memory so far
    clock.pass(3600);
    charge("a", "x");
    const sums = (n: number) => ({ requests: n, promptTokens: 10 * n, completionTokens: 3 * n });
    const { usage } = store;
    expect(await usage.report()).toEqual([
      { tenant: "a", adapter: "", ...sums(1) },
      { tenant: "a", adapter: "x", ...sums(4) },
      { tenant: "b", adapter: "x", ...sums(1) },
    ]);
    expect(await usage.report({ by: [] })).toEqual([sums(6)]);
    expect(await usage.report({ tenant: "nobody", by: [] })).toEqual([]);
    expect(await usage.report({ tenant: "a", by: ["day"] })).toEqual([
      { day: "2026-03-01", ...sums(4) },
      { day: "2026-03-02", ...sums(1) },
    ]);
    expect(await usage.report({ tenant: "a", adapter: "x", by: ["hour", "key"] })).toEqual([
      { hour: "2026-03-01T22:00Z", key: "key_1", ...sums(2) },
      { hour: "2026-03-01T23:00Z", key: "key_1", ...sums(1) },
      { hour: "2026-03-02T00:00Z", key: "key_1", ...sums(1) },
    ]);
    const [from, to] = [new Date("2026-03-01T23:00Z"), new Date("2026-03-02T00:00Z")];
    expect(await usage.report({ from, to, by: ["tenant"] })).toEqual([
      { tenant: "a", ...sums(1) },
      { tenant: "b", ...sums(1) },
    ]);
    await expect(usage.report({ from: to, to: from })).rejects.toThrow(
      expect.objectContaining({ code: "CONFIG_INVALID" }),
    );
  });

  test("goes with its tenant, also what comes in afterwards", async () => {
    const { store } = await place.store();
    await store.tenants.create({ id: "a" });
    await store.tenants.create({ id: "b" });
    for (const tenant of ["a", "b"])
      store.usage.charge(at(tenant), { adapter: "", promptTokens: 1, completionTokens: 1 });
    await store.flush();
    await store.tenants.remove("a");
    const late = store.quotas.admit({ tenant: "a", limits: {} }, 5);
    if (late.ok) late.admission.settle(5);
    for (const tenant of ["a", "b"])
      store.usage.charge(at(tenant), { adapter: "", promptTokens: 1, completionTokens: 1 });
    expect(await store.usage.report({ by: ["tenant"] })).toMatchObject([{ tenant: "b", requests: 2 }]);
    await store.tenants.create({ id: "a" }); // another of the same name begins at nothing
    expect(await store.usage.report({ tenant: "a" })).toEqual([]);
  });

  test("a batch that is sent again counts once, also across a restart of the number", async () => {
    await using opened = await place.open();
    const { database } = opened;
    await migrate(database, "test");
    const clock = new Clock();
    await new Tenants(database, clock.now, () => {}).create({ id: "a" });
    const batch = (number: number) => ({
      number,
      usage: [
        { tenant: "a", key: "k", adapter: "", hour: new Date(0), requests: 1, promptTokens: 2, completionTokens: 3 },
      ],
      days: [{ tenant: "a", day: 0, tokens: 5 }],
      uses: new Map(),
    });
    expect(await writeBatch(database, "one", batch(1), clock.time)).toEqual([{ tenant: "a", day: 0, tokens: 5 }]);
    expect(await writeBatch(database, "one", batch(1), clock.time)).toEqual([]);
    await writeBatch(database, "one", batch(2), clock.time);
    await writeBatch(database, "one", batch(1), clock.time);
    expect(await writeBatch(database, "two", batch(1), clock.time)).toEqual([{ tenant: "a", day: 0, tokens: 15 }]);
    expect(await database.select().from(usage)).toMatchObject([{ requests: 3, promptTokens: 6, completionTokens: 9 }]);
  });

  test("what cannot be written is kept and written later, once", async () => {
    await using opened = await place.open();
    const { database } = opened;
    await migrate(database, "test");
    const store = new Store(database, { now: new Clock().now }, { async [Symbol.asyncDispose]() {} });
    await store.tenants.create({ id: "a" });
    const charge = () => {
      store.usage.charge(at("a"), { adapter: "", promptTokens: 1, completionTokens: 0 });
      const answer = store.quotas.admit({ tenant: "a", limits: {} }, 10);
      if (answer.ok) answer.admission.settle(7);
    };
    charge();
    await database.execute(sql`ALTER TABLE quota_windows RENAME TO away`); // after the usage is written: all of it is taken back
    await expect(store.flush()).rejects.toThrow();
    charge();
    await expect(store.flush()).rejects.toThrow();
    expect(await database.select().from(usage)).toEqual([]);
    await database.execute(sql`ALTER TABLE away RENAME TO quota_windows`);
    charge();
    expect(await store.usage.report({ by: [] })).toMatchObject([{ requests: 3, promptTokens: 3 }]);
    const limits = { tokensPerDay: 22 };
    expect(store.quotas.admit({ tenant: "a", limits }, 2).ok).toBe(false);
    expect(store.quotas.admit({ tenant: "a", limits }, 1).ok).toBe(true);
    await store[Symbol.asyncDispose]();
  });

  test("counts are written by themselves", async () => {
    await using opened = await place.open();
    const { database } = opened;
    await migrate(database, "test");
    await using store = new Store(database, {}, { async [Symbol.asyncDispose]() {} });
    await store.load();
    await store.tenants.create({ id: "a" });
    store.usage.charge(at("a"), { adapter: "", promptTokens: 1, completionTokens: 0 });
    while ((await database.select().from(usage)).length === 0) await sleep(20);
  });

  test("numbers that are none are a caller's mistake, and spoil nothing", async () => {
    const { store } = await place.store();
    await store.tenants.create({ id: "a" });
    for (const wrong of [Number.NaN, -1, 0.5, Number.POSITIVE_INFINITY]) {
      expect(() => store.usage.charge(at("a"), { adapter: "", promptTokens: wrong, completionTokens: 0 })).toThrow(
        RangeError,
      );
      expect(() => store.quotas.admit({ tenant: "a", limits: {} }, wrong)).toThrow(RangeError);
      const answer = store.quotas.admit({ tenant: "a", limits: {} }, 1);
      if (answer.ok) expect(() => answer.admission.settle(wrong)).toThrow(RangeError);
    }
    expect(await store.usage.report()).toEqual([]);
  });

  test("many rows at once", async () => {
    const { store } = await place.store();
    await store.tenants.create({ id: "a" });
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < 2500; i++) {
        store.usage.charge(at("a"), { adapter: `adapter-${i}`, promptTokens: 1, completionTokens: 1 });
      }
      await store.flush();
    }
    expect(await store.usage.report({ by: [] })).toMatchObject([{ requests: 5000 }]);
    expect(await store.usage.report({ by: ["adapter"] })).toHaveLength(2500);
  });
});
