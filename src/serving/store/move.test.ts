/** @file Moving a database: every row arrives as it was, or none; nothing is moved from under a server or over other data. */
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { getTableName, is } from "drizzle-orm";
import { PgTable } from "drizzle-orm/pg-core";
import { describe, expect, test } from "vitest";
import { lockDirectory } from "./lock.ts";
import { moveDatabase, TABLES } from "./move.ts";
import * as schema from "./schema.ts";
import { openStore, type Store, type StoreLocation } from "./store.ts";
import { NO_POSTGRES, Servers, temporary } from "./testing.ts";

const STRANGE = `"quoted" \\ back, 'single', ü — 猫 🐈, {"json": null}`;

/** Data of all kinds. @returns secrets of keys */
async function fill(location: StoreLocation): Promise<{ key: string; revoked: string }> {
  await using store = await openStore(location);
  await store.tenants.create({ id: "acme", name: STRANGE, weight: 0.1, limits: { tokensPerDay: 2 ** 52 + 1 } });
  await store.tenants.create({ id: "other", weight: 1 / 3 });
  await store.tenants.update("other", { disabled: true });
  const key = (await store.keys.create({ tenant: "acme" }, { label: STRANGE, expiresAt: new Date("2099-12-31T23:59:59.987Z") })).secret; // biome-ignore format: one line
  const revoked = await store.keys.create({ tenant: "acme" });
  await store.keys.revoke(revoked.key.id);
  await store.keys.create({ admin: true });
  expect(await store.authenticate(key)).toBeDefined(); // which is noted as its last use
  const facts = { digest: "a".repeat(64), method: "milora", bytes: 2 ** 40 };
  for (let i = 0; i < 30; i++) await store.adapters.put({ owner: i % 2 ? "acme" : null, name: `n${i}`, rank: i % 3 ? 8 : null, ...facts }); // biome-ignore format: one line
  await store.adapters.setPinned(null, "n0", true);
  await store.grants.grant("acme", "n1", "other");
  for (let i = 0; i < 2500; i++) {
    store.usage.charge({ tenant: "acme", keyId: `k${i}` }, { adapter: `${STRANGE}\n\t\u0001`, promptTokens: i, completionTokens: 2 * i }); // biome-ignore format: one line
  }
  const place = await store.quotas.admit({ tenant: "acme", limits: { tokensPerDay: 1e9 } }, 5);
  if (place.ok) place.admission.settle(3);
  await store.secret("studio");
  await store.flush();
  return { key, revoked: revoked.secret };
}

/** What a store says that reads it anew. */
async function contents(store: Store) {
  return {
    tenants: await store.tenants.list(),
    keys: await store.keys.list(),
    adapters: await store.adapters.all(),
    grants: await store.grants.list(),
    usage: await store.usage.report({ by: ["tenant", "key", "adapter", "hour"] }),
    secret: (await store.secret("studio")).toString("hex"),
  };
}

async function read(location: StoreLocation) {
  await using store = await openStore(location);
  return await contents(store);
}

test("no table is forgotten", () => {
  const all = Object.values(schema).filter((value) => is(value, PgTable));
  expect([...TABLES].sort()).toEqual(all.map((table) => getTableName(table)).sort());
});

describe.skipIf(NO_POSTGRES)(`moving ${NO_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use();

  test("there and back: all rows are the same, and keys open", async () => {
    const first = join(temporary(), "data");
    const { key, revoked } = await fill({ directory: first });
    const before = await read({ directory: first });
    const url = await servers.database();
    const there = await moveDatabase({ directory: first }, { url });
    expect(Object.keys(there.rows)).toEqual(TABLES);
    expect(there.rows).toMatchObject({ tenants: 3, keys: 3, adapters: 30, grants: 1, usage: 2500 });
    expect(there.rows.quota_windows).toBeGreaterThan(0);
    expect(there.rows.writers).toBeGreaterThan(0);
    expect(await read({ url })).toEqual(before);
    // The directory's adapters are the PostgreSQL's now, and its own database is no more found.
    expect(existsSync(there.kept!)).toBe(true);
    await expect(openStore({ directory: first })).rejects.toMatchObject({ code: "DATA_MISMATCH" });
    await (await openStore({ url, directory: first }))[Symbol.asyncDispose]();

    const second = join(temporary(), "data");
    mkdirSync(join(second, "adapters", "a".repeat(64)), { recursive: true });
    const back = await moveDatabase({ url }, { directory: second });
    expect(back.missing).toEqual([]);
    expect(await read({ directory: second })).toEqual(before);
    await using store = await openStore({ directory: second });
    expect(await store.authenticate(key)).toMatchObject({ tenant: "acme" });
    expect(await store.authenticate(revoked)).toBeUndefined();
    expect((await store.tenants.get("acme")).limits).toEqual({ tokensPerDay: 2 ** 52 + 1 });
  });

  test("the digest tells what was moved", async () => {
    const directory = join(temporary(), "data");
    await fill({ directory });
    const [one, two] = [await servers.database(), await servers.database()];
    const first = await moveDatabase({ directory }, { url: one });
    const second = await moveDatabase({ url: one }, { url: two });
    // An opened store has noted nothing since.
    expect(second).toEqual({ rows: first.rows, digest: first.digest, missing: [] });
    const third = await servers.database();
    await servers.cluster.query("UPDATE tenants SET name = name || '!' WHERE id = 'other'", two);
    expect((await moveDatabase({ url: two }, { url: third })).digest).not.toBe(first.digest);
  });

  test("a directory that has the adapters of a PostgreSQL gets its database", async () => {
    const url = await servers.database();
    const directory = join(temporary(), "data");
    await fill({ url, directory });
    const { missing } = await moveDatabase({ url }, { directory });
    expect(missing).toHaveLength(30);
    expect(missing).toContain("acme/n1");
    expect((await read({ directory })).tenants).toHaveLength(2);
  });

  test("a target with data is refused, and is as it was", async () => {
    const directory = join(temporary(), "data");
    await fill({ directory });
    const url = await servers.database();
    {
      await using store = await openStore({ url });
      await store.tenants.create({ id: "there" });
    }
    const before = await read({ url });
    const refused = moveDatabase({ directory }, { url });
    await expect(refused).rejects.toMatchObject({ code: "DATA_NOT_EMPTY" });
    await expect(refused).rejects.toThrow(/rows in .*tenants: 1/);
    expect(await read({ url })).toEqual(before);
    expect((await read({ directory })).tenants).toHaveLength(2);
    const other = join(temporary(), "data");
    await fill({ directory: other });
    await expect(moveDatabase({ directory }, { directory: other })).rejects.toMatchObject({ code: "DATA_NOT_EMPTY" });
    await expect(moveDatabase({ directory }, { directory })).rejects.toMatchObject({ code: "FLAG_INVALID" });
  });

  test("a source or target that a server has is refused", async () => {
    const directory = join(temporary(), "data");
    await fill({ directory });
    const url = await servers.database();
    {
      using _held = lockDirectory(directory);
      await expect(moveDatabase({ directory }, { url })).rejects.toMatchObject({ code: "DATA_IN_USE" });
    }
    {
      await using _store = await openStore({ url });
      await expect(moveDatabase({ directory }, { url })).rejects.toMatchObject({ code: "DATA_IN_USE" });
    }
    await moveDatabase({ directory }, { url });
    const target = join(temporary(), "data");
    {
      await using _store = await openStore({ url });
      await expect(moveDatabase({ url }, { directory: target })).rejects.toMatchObject({ code: "DATA_IN_USE" });
    }
    expect(existsSync(target)).toBe(false);
  });

  test("a source that is none, and an address that nobody answers at", async () => {
    const url = await servers.database();
    const directory = join(temporary(), "data");
    await expect(moveDatabase({ directory }, { url })).rejects.toMatchObject({ code: "FILE_UNREADABLE" });
    expect(existsSync(directory)).toBe(false);
    await expect(moveDatabase({ url }, { directory })).rejects.toMatchObject({ code: "DATA_UNSUPPORTED" });
    expect(await servers.cluster.query("SELECT to_regclass('meta') AS meta", url)).toEqual([{ meta: null }]);
    const nobody = { url: "postgres://u:secret@127.0.0.1:1/d" };
    await expect(moveDatabase(nobody, { directory })).rejects.toMatchObject({ code: "DATABASE_UNREACHABLE" });
    await fill({ directory });
    await expect(moveDatabase({ directory }, nobody)).rejects.toThrow(/^(?!.*secret).*127\.0\.0\.1:1\/d/);
  });

  test("what a move that was cut short at its last step has left is told apart", async () => {
    const directory = join(temporary(), "data");
    await fill({ directory });
    const url = await servers.database();
    const { kept } = await moveDatabase({ directory }, { url });
    const { cpSync } = await import("node:fs");
    cpSync(kept!, join(directory, "database"), { recursive: true });
    for (const location of [{ directory }, { directory, url }]) {
      await expect(openStore(location)).rejects.toThrow("cut short");
    }
    rmSync(join(directory, "database"), { recursive: true });
    await (await openStore({ directory, url }))[Symbol.asyncDispose]();
  });
});
