/** @file Memory for adapters is short: nobody waits for ever, and who has been served least goes first. */
import { expect, test } from "vitest";
import type { AdapterRecord } from "./record.ts";
import { newAdapter, openRegistry } from "./testing.ts";

async function installed(count: number, maxResident: number) {
  const { registry } = await openRegistry({ limits: { maxResident } });
  const records: AdapterRecord[] = [];
  for (let i = 0; i < count; i++) {
    records.push(await registry.install({ directory: await newAdapter(i) }, { owner: null, name: `n${i}` }));
  }
  return { registry, records };
}

test("an adapter that is always in use goes when its present users have ended, if another waits", async () => {
  const { registry, records } = await installed(2, 1);
  const [popular, cold] = records as [AdapterRecord, AdapterRecord];
  const order: string[] = [];
  const first = await registry.lease(popular);
  const second = await registry.lease(popular);
  const waiting = registry.lease(cold).then((lease) => {
    order.push("cold");
    return lease;
  });
  while (registry.stats.waiting === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  const late = registry.lease(popular).then((lease) => {
    order.push("popular");
    return lease;
  });
  first[Symbol.dispose]();
  second[Symbol.dispose]();
  (await waiting)[Symbol.dispose]();
  using _again = await late;
  expect(order).toEqual(["cold", "popular"]);
  expect(registry.stats).toMatchObject({ resident: 1, waiting: 0 });
});

test("of those who wait, who was served least goes first", async () => {
  const { registry, records } = await installed(6, 1);
  const held = await registry.lease(records[0]!);
  const order: number[] = [];
  const served = [0, 30, 20, 50, 60, 40];
  const begin = async (i: number, until?: () => boolean) => {
    const lease = await registry.lease(records[i]!, { claim: () => served[i]! });
    order.push(i);
    while (until?.() === false) await new Promise((resolve) => setTimeout(resolve, 1));
    lease[Symbol.dispose]();
  };
  // Two are read at a time: 4 and 5 come in as 2 and 1 are done, and 1 stays until both wait for its memory.
  const first = [begin(1, () => registry.stats.waiting === 2), begin(2)];
  while (registry.stats.waiting < 2) await new Promise((resolve) => setTimeout(resolve, 1));
  const others = [begin(3), begin(4), begin(5)];
  served[4] = 10; // what counts is how much it is when there is room
  held[Symbol.dispose]();
  await Promise.all([...first, ...others]);
  expect(order).toEqual([2, 1, 4, 5, 3]);
});

test("when nobody waits any more, all stay as they are", async () => {
  const { registry, records } = await installed(2, 1);
  const [popular, other] = records as [AdapterRecord, AdapterRecord];
  const held = await registry.lease(popular);
  const gone = new AbortController();
  const waiting = registry.lease(other, { signal: gone.signal });
  while (registry.stats.waiting === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  gone.abort(new Error("the client has gone"));
  await expect(waiting).rejects.toThrow("the client has gone");
  const { loads } = registry.stats;
  using again = await registry.lease(popular);
  expect(again.adapter).toBe(held.adapter);
  held[Symbol.dispose]();
  expect(registry.residency()).toMatchObject([{ digest: popular.digest, inFlight: 1, resident: true }]);
  expect(registry.stats.loads).toBe(loads);
});
