/** @file Processes that are killed at any point, again and again: nothing that was confirmed is lost, nothing is counted twice. */
import { rmSync } from "node:fs";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { openStore, type Store } from "./store.ts";
import { bundle, child, onBoth } from "./testing.ts";

/** MILORA_KILLS=300 for a night of it. */
const KILLS = Number(process.env.MILORA_KILLS ?? 8);
/** Kills come at any point of this time after the first line, which opens are long gone by. */
const SPREAD_MS = 400;

/** The same delays each time, spread evenly but in no order. */
const delay = (i: number) => ((i * 0.618034) % 1) * SPREAD_MS;

let bundled: string;
beforeAll(async () => {
  bundled = await bundle();
});
afterAll(() => rmSync(dirname(bundled), { recursive: true, force: true }));

/** Charges and makes tenants and keys all the time, and says what it begins and what is done. */
const WRITER = `
  const store = await openStore(location);
  let charged = 0;
  const say = (line) => process.stdout.write(line + "\\n");
  const use = async () => {
    for (let j = 0; j < 7; j++) {
      const answer = store.quotas.admit({ tenant: "a", limits: {} }, 5);
      store.usage.charge({ tenant: "a", keyId: "k" }, { adapter: "xyz"[charged++ % 3], promptTokens: 2, completionTokens: 1 });
      answer.admission.settle(3);
    }
    const written = charged;
    say("charged " + written);
    await store.flush();
    say("flushed " + written);
  };
  const make = async (j) => {
    const id = "t" + process.pid + "-" + j;
    await store.tenants.create({ id, limits: { maxConcurrent: 2 } });
    say("tenant " + id);
    const { key, secret } = await store.keys.create({ tenant: id });
    say("key " + id + " " + secret);
    if (j % 3 === 0) say("revoked " + (await store.keys.revoke(key.id)).tenant);
    if (j % 3 === 1) await store.adapters.put({ owner: id, name: "x", digest: "d", method: "lora", rank: 8, bytes: 1 });
  };
  for (let j = 0; ; j++) await Promise.all([use(), make(j)]);`;

/** At most what was not confirmed is lost, and nothing counts twice. */
async function checkUsage(store: Store, least: number, most: number): Promise<number> {
  const [sums] = await store.usage.report({ by: [] });
  const { requests } = sums!;
  expect(requests).toBeGreaterThanOrEqual(least);
  expect(requests).toBeLessThanOrEqual(most);
  expect(sums).toEqual({ requests, promptTokens: 2 * requests, completionTokens: requests });
  // The day's quota was written in the same transactions.
  const left = (n: number) => store.quotas.admit({ tenant: "a", limits: { tokensPerDay: 3 * requests + 10 } }, n);
  expect([left(11).ok, left(10).ok]).toEqual([false, true]);
  return requests;
}

/** Tenants and keys that were confirmed are there, and no part of one that was not. */
async function checkKeys(
  store: Store,
  secrets: ReadonlyMap<string, string>,
  revoked: ReadonlySet<string>,
): Promise<void> {
  const tenants = new Map((await store.tenants.list()).map((tenant) => [tenant.id, tenant]));
  const keys = await store.keys.list();
  for (const [id, secret] of secrets) {
    expect(tenants.get(id)).toMatchObject({ limits: { maxConcurrent: 2 } });
    if (secret === "") continue;
    const known = keys.find((key) => key.tenant === id)!;
    if (revoked.has(id)) expect(known.revokedAt).not.toBeNull(); // others may be revoked without having said so
    expect((await store.authenticate(secret))?.tenant).toBe(known.revokedAt ? undefined : id);
  }
  for (const key of keys) expect(tenants.has(key.tenant)).toBe(true);
  for (const { owner } of await store.adapters.all()) expect(tenants.has(owner!)).toBe(true);
}

onBoth((place) => {
  test(`a process killed ${KILLS} times`, async () => {
    const location = await place.lasting();
    {
      await using store = await openStore(location);
      await store.tenants.create({ id: "a" });
    }
    let [least, most] = [0, 0]; // requests that must be, and may be, in the database
    const secrets = new Map<string, string>(); // by tenant; empty: no key confirmed
    const revoked = new Set<string>();
    for (let i = 0; i < KILLS; i++) {
      const writer = child(bundled, location, WRITER);
      await writer.until(5);
      await sleep(delay(i));
      await writer.kill();
      const counts = (word: string) => writer.lines.filter((l) => l.startsWith(word)).map((l) => Number(l.slice(8)));
      least += counts("flushed ").at(-1) ?? 0;
      most += counts("charged ").at(-1) ?? 0;
      for (const line of writer.lines) {
        const [word, id, secret = ""] = line.split(" ") as [string, string, string?];
        if (word === "tenant" || word === "key") secrets.set(id, secret);
        if (word === "revoked") revoked.add(id);
      }
      if (i % 4 < 3 && i < KILLS - 1) continue; // the next child opens what this one left behind
      await using store = await openStore(location);
      const requests = await checkUsage(store, least, most);
      [least, most] = [requests, requests]; // what was lost stays lost
      await checkKeys(store, secrets, revoked);
    }
    expect(least).toBeGreaterThanOrEqual(KILLS * 7);
    expect(secrets.size).toBeGreaterThanOrEqual(KILLS);
  });

  test("a process killed while it makes a new data directory leaves one that can be opened", async () => {
    for (let i = 0; i < Math.max(3, KILLS / 5); i++) {
      const location = await place.lasting();
      const maker = child(bundled, location, `console.log("begin"); await openStore(location); console.log("open"); await new Promise(() => {});`); // biome-ignore format: one line
      await maker.until(1);
      await sleep(delay(i));
      await maker.kill();
      await using store = await openStore(location);
      await store.tenants.create({ id: "a" });
      expect(await store.tenants.list()).toHaveLength(1);
    }
  });
});
