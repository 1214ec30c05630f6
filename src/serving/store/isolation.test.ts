/** @file No tenant lists, reads, uses, overwrites or infers what is another's, whatever happened before. */
import fc from "fast-check";
import { expect, test } from "vitest";
import type { NewAdapter } from "../adapters/index.ts";
import { Adapters } from "./adapters.ts";
import { migrate } from "./migrations/index.ts";
import { Tenants } from "./tenants.ts";
import { Clock, onBoth } from "./testing.ts";

const TENANTS = ["a", "b", "c"] as const;
const NAMES = ["x", "y"] as const;
type Owner = (typeof TENANTS)[number] | null;

const owner = fc.constantFrom<Owner>(...TENANTS, null);
const tenant = fc.constantFrom(...TENANTS);
const name = fc.constantFrom(...NAMES);
const action = fc.oneof(
  fc.record({ do: fc.constant("put" as const), owner, name, digest: fc.integer({ min: 0, max: 5 }).map(String) }),
  fc.record({ do: fc.constant("remove" as const), owner, name }),
  fc.record({ do: fc.constant("grant" as const), owner: tenant, name, to: tenant }),
  fc.record({ do: fc.constant("revoke" as const), owner: tenant, name, to: tenant }),
);

const row = (owner: Owner, name: string, digest: string): NewAdapter => ({
  owner,
  name,
  digest,
  method: "lora",
  rank: 8,
  bytes: 1,
});

onBoth((place) => {
  test("after any history a tenant sees its own, what is granted to it, and what is shared", async () => {
    const { store } = await place.store();
    for (const id of TENANTS) await store.tenants.create({ id });
    const { adapters, grants } = store;
    const check = async (adapterOf: Map<string, string>, granted: Set<string>) => {
      for (const who of TENANTS) {
        const usable = (owner: Owner, name: string) =>
          owner === null || owner === who || granted.has(`${owner}/${name}/${who}`);
        const expected: string[] = [];
        for (const name of NAMES) {
          const plain = adapterOf.get(`${who}/${name}`) ?? adapterOf.get(`null/${name}`);
          expect((await adapters.find(who, name))?.digest).toBe(plain);
          for (const owner of [...TENANTS, null]) {
            const digest = adapterOf.get(`${owner}/${name}`);
            if (digest !== undefined && usable(owner, name)) expected.push(`${owner}/${name} ${digest}`);
            if (owner === null) continue;
            expect((await adapters.find(who, name, owner))?.digest).toBe(usable(owner, name) ? digest : undefined);
          }
        }
        const listed = (await adapters.list(who)).map((row) => `${row.owner}/${row.name} ${row.digest}`);
        expect(listed.sort()).toEqual(expected.sort());
      }
    };
    await fc.assert(
      fc
        .asyncProperty(fc.array(action, { minLength: 1, maxLength: 25 }), async (actions) => {
          const adapterOf = new Map<string, string>();
          const granted = new Set<string>();
          for (const act of actions) {
            const id = `${act.owner}/${act.name}`;
            if (act.do === "put") {
              expect((await adapters.put(row(act.owner, act.name, act.digest)))?.digest).toBe(adapterOf.get(id));
              adapterOf.set(id, act.digest);
            } else if (act.do === "remove") {
              expect((await adapters.remove(act.owner, act.name))?.digest).toBe(adapterOf.get(id));
              adapterOf.delete(id);
              for (const grant of granted) if (grant.startsWith(`${id}/`)) granted.delete(grant);
            } else if (act.do === "grant") {
              const done = grants.grant(act.owner, act.name, act.to);
              if (adapterOf.has(id)) await done.then(() => granted.add(`${id}/${act.to}`));
              else await expect(done).rejects.toThrow(expect.objectContaining({ code: "ADAPTER_NOT_FOUND" }));
            } else {
              const done = grants.revoke(act.owner, act.name, act.to);
              if (granted.delete(`${id}/${act.to}`)) await done;
              else await expect(done).rejects.toThrow(expect.objectContaining({ code: "GRANT_NOT_FOUND" }));
            }
            if (actions.length < 6) await check(adapterOf, granted);
          }
          await check(adapterOf, granted);
        })
        .afterEach(async () => {
          for (const { owner, name } of await adapters.all()) await adapters.remove(owner, name);
        }),
      { numRuns: 25 },
    );
  });

  test("names and owners are only ever data", async () => {
    const { store } = await place.store();
    await store.tenants.create({ id: "a" });
    await store.tenants.create({ id: "b" });
    await store.adapters.put(row("b", "secret", "d"));
    const tricks = ["b' OR '1'='1", '"b"', "%", "_", "b\0", "b/secret", "B", " b", "b ", "null", ""];
    for (const trick of tricks) {
      expect(await store.adapters.find("a", "secret", trick).catch(() => undefined)).toBeUndefined();
      expect(await store.adapters.find("a", trick).catch(() => undefined)).toBeUndefined();
    }
    expect(await store.adapters.find("a", "secret", "b")).toBeUndefined();
    expect(await store.adapters.list("a")).toEqual([]);
  });

  test("storage limits are the owner's own, also for many at once", async () => {
    const { store } = await place.store();
    await store.tenants.create({ id: "a", limits: { maxAdapters: 3, maxStoredBytes: 100 } });
    await store.tenants.create({ id: "b" });
    for (let i = 0; i < 9; i++) await store.adapters.put({ ...row("b", `b${i}`, "d"), bytes: 1e9 });
    const puts = Array.from({ length: 8 }, (_, i) => store.adapters.put({ ...row("a", `a${i}`, "d"), bytes: 30 }));
    const outcomes = await Promise.allSettled(puts);
    const refused = outcomes.filter((o) => o.status === "rejected").map((o) => o.reason as { code: string });
    expect(refused.map(({ code }) => code)).toEqual(Array(5).fill("STORAGE_EXCEEDED"));
    const kept = (await store.adapters.list("a")).map(({ name }) => name);
    expect(kept).toHaveLength(3);
    await store.adapters.put({ ...row("a", kept[0]!, "new"), bytes: 40 }); // in place of 30: 100 in all
    await expect(store.adapters.put({ ...row("a", kept[0]!, "new"), bytes: 41 })).rejects.toThrow("101 bytes");
    expect(await store.adapters.get("a", kept[0]!)).toMatchObject({ bytes: 40, digest: "new" });
    await expect(store.adapters.put(row("nobody" as Owner, "x", "d"))).rejects.toThrow(
      expect.objectContaining({ code: "TENANT_NOT_FOUND" }),
    );
  });

  test("replacing keeps grants and pin; a tenant with adapters stays; quotas and usage are kept apart", async () => {
    const { store } = await place.store();
    for (const id of TENANTS) await store.tenants.create({ id });
    await store.adapters.put(row("a", "x", "1"));
    await store.grants.grant("a", "x", "b");
    await store.grants.grant("a", "x", "b");
    await store.adapters.setPinned("a", "x", true);
    await store.adapters.put(row("a", "x", "2"));
    expect(await store.adapters.find("b", "x", "a")).toMatchObject({ digest: "2", pinned: true });
    expect(await store.adapters.pinned()).toMatchObject([{ owner: "a", name: "x" }]);
    expect(await store.adapters.digests()).toEqual(new Set(["2"]));
    expect(await store.grants.list("a")).toMatchObject([{ owner: "a", name: "x", tenant: "b" }]);
    expect(await store.grants.list("b")).toEqual([]);
    await expect(store.tenants.remove("a")).rejects.toThrow(expect.objectContaining({ code: "TENANT_NOT_EMPTY" }));
    await store.tenants.remove("b"); // its grant goes with it
    await store.tenants.create({ id: "b" });
    expect(await store.adapters.find("b", "x", "a")).toBeUndefined();
    const limits = { requestsPerMinute: 1, tokensPerDay: 10, maxConcurrent: 1 };
    expect(store.quotas.admit({ tenant: "a", limits }, 10).ok).toBe(true);
    expect(store.quotas.admit({ tenant: "a", limits }, 10).ok).toBe(false);
    expect(store.quotas.admit({ tenant: "b", limits }, 10).ok).toBe(true);
    store.usage.charge({ tenant: "a", keyId: "k" }, { adapter: "x", promptTokens: 1, completionTokens: 1 });
    expect(await store.usage.report({ tenant: "b" })).toEqual([]);
  });

  test("to the database a foreign name is the very question that one is which does not exist", async () => {
    const queries: string[] = [];
    await using opened = await place.open({ logQuery: (query) => queries.push(query) });
    await migrate(opened.database, "test");
    const { now } = new Clock();
    const tenants = new Tenants(opened.database, now, () => {});
    const adapters = new Adapters(opened.database, now);
    for (const id of ["a", "b"]) await tenants.create({ id });
    await adapters.put(row("b", "secret", "d"));
    const asked = async (...question: Parameters<Adapters["find"]>) => {
      queries.length = 0;
      expect(await adapters.find(...question)).toBeUndefined();
      return [...queries];
    };
    const foreign = await asked("a", "secret", "b");
    expect(foreign).toHaveLength(1);
    expect(await asked("a", "none", "b")).toEqual(foreign);
    expect(await asked("a", "secret", "nobody")).toEqual(foreign);
    expect(await asked("a", "secret", "b")).toEqual([]); // both are remembered alike
    expect(await asked("a", "none", "b")).toEqual([]);
    expect(await asked("a", "secret")).toEqual(await asked("a", "nothing"));
  });
});
