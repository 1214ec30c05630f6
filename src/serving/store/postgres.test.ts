/** @file A PostgreSQL that many share: what keeps one from being opened, started by several at once, and gone for a while. */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { inspect } from "node:util";
import { describe, expect, test } from "vitest";
import { openStore } from "./store.ts";
import { PASSWORD } from "./testing/cluster.ts";
import { NO_OWN_POSTGRES, Servers, temporary } from "./testing.ts";
import { isDatabaseUrl } from "./url.ts";

const row = (name: string, digest: string) => ({ owner: null, name, digest, method: "lora", rank: 8, bytes: 1 });

/** Why a store cannot be opened. The password is in no form a part of it. */
async function refusal(url: string, directory?: string): Promise<{ code: string; message: string; exitCode: number }> {
  const error: unknown = await openStore({ url, ...(directory !== undefined && { directory }) }).then(
    async (store) => store[Symbol.asyncDispose](),
    (reason: unknown) => reason,
  );
  const all = inspect(error, { depth: 20, showHidden: true });
  for (const secret of [PASSWORD, encodeURIComponent(PASSWORD), "wrong-one"]) expect(all).not.toContain(secret);
  expect(error).toBeInstanceOf(Error);
  return error as { code: string; message: string; exitCode: number };
}

test.each([
  "",
  "mysql://u:wrong-one@h/d",
  "postgres://u:wrong-one@:5432/d",
  "postgres://u:wrong-one%@h/d",
  "wrong-one",
])("%j is no URL of one", async (url) => {
  expect(isDatabaseUrl(url)).toBe(false);
  expect(await refusal(url)).toMatchObject({ code: "DATABASE_URL_INVALID", exitCode: 2 });
});

test("who is not there is named, without the password", async () => {
  const refused = await refusal("postgres://u:wrong-one@127.0.0.1:1/d");
  expect(refused).toMatchObject({ code: "DATABASE_UNREACHABLE", exitCode: 2 });
  expect(refused.message).toMatch(/^the database 127\.0\.0\.1:1\/d: .*ECONNREFUSED/);
});

describe.skipIf(NO_OWN_POSTGRES)(`a server ${NO_OWN_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use(true);

  test("wrong passwords, names and contents are told apart", async () => {
    const url = new URL(await servers.database());
    const changed = (change: Partial<URL>) => Object.assign(new URL(url), change).href;
    expect((await refusal(changed({ password: "wrong-one" }))).message).toContain("password authentication failed");
    expect((await refusal(changed({ pathname: "/nowhere" }))).message).toContain('"nowhere" does not exist');
    await servers.cluster.query("CREATE TABLE keys (x int)", url.href);
    expect(await refusal(url.href)).toMatchObject({ code: "DATA_UNSUPPORTED", exitCode: 2 });
    expect(await servers.cluster.query("SELECT to_regclass('meta') AS t", url.href)).toEqual([{ t: null }]);
  });

  test("many that start at once make one schema, and one name of an adapter", async () => {
    const url = await servers.database();
    const stores = await Promise.all(Array.from({ length: 6 }, () => openStore({ url })));
    const replaced = await Promise.all(stores.map((store, i) => store.adapters.put(row("x", `d${i}`))));
    expect(replaced.filter((old) => old === undefined)).toHaveLength(1);
    expect(await stores[0]!.adapters.all()).toHaveLength(1);
    expect(new Set(await Promise.all(stores.map((store) => store.id()))).size).toBe(1);
    for (const store of stores) await store[Symbol.asyncDispose]();
  });

  test("a directory of adapters is one database's", async () => {
    const [url, other] = [await servers.database(), await servers.database()];
    const directory = join(temporary(), "new");
    const open = async (location: Parameters<typeof openStore>[0]) =>
      (await openStore(location))[Symbol.asyncDispose]();
    await open({ url, directory });
    await open({ url, directory });
    expect(await refusal(other, directory)).toMatchObject({ code: "DATA_MISMATCH" });
    await expect(openStore({ directory })).rejects.toThrow(expect.objectContaining({ code: "DATA_MISMATCH" }));
    expect(existsSync(join(directory, "lock"))).toBe(false);
    const embedded = temporary();
    mkdirSync(join(embedded, "database"));
    expect(await refusal(url, embedded)).toMatchObject({ code: "DATA_MISMATCH" });
  });

  test("while it is away requests are told so; what was counted is written once when it is back", async () => {
    const url = await servers.database();
    const failures: unknown[] = [];
    await using store = await openStore({ url }, { onError: (error) => failures.push(error) });
    await store.tenants.create({ id: "a" });
    const { secret } = await store.keys.create({ tenant: "a" });
    const charge = () => store.usage.charge({ tenant: "a", keyId: "k" }, { adapter: "", promptTokens: 2, completionTokens: 1 }); // biome-ignore format: one line
    charge();
    await store.flush();
    charge();
    await servers.cluster.stop();
    const gone = { code: "DATABASE_UNREACHABLE", status: 503, retryAfterSeconds: 1 };
    const other = (await store.keys.list().catch((error: unknown) => error)) as object;
    expect(other).toMatchObject(gone);
    await expect(store.tenants.create({ id: "b" })).rejects.toThrow(expect.objectContaining(gone));
    await expect(store.adapters.put(row("x", "d"))).rejects.toThrow(expect.objectContaining(gone));
    charge();
    while (failures.length < 2) await sleep(20);
    expect(failures[0]).toMatchObject(gone);
    charge();
    await servers.cluster.resume();
    expect(await store.authenticate(secret)).toMatchObject({ tenant: "a" });
    expect(await store.usage.report({ by: [] })).toEqual([{ requests: 4, promptTokens: 8, completionTokens: 4 }]);
    await store.flush();
    expect(await store.usage.report({ by: [] })).toMatchObject([{ requests: 4 }]);
  });

  test("a server that is stopped meanwhile waits for it a little", async () => {
    const url = await servers.database();
    const store = await openStore({ url });
    await store.tenants.create({ id: "a" });
    store.usage.charge({ tenant: "a", keyId: "k" }, { adapter: "", promptTokens: 2, completionTokens: 1 });
    await servers.cluster.stop();
    const closed = store[Symbol.asyncDispose]();
    await sleep(300);
    await servers.cluster.resume();
    await closed;
    expect(await servers.cluster.query("SELECT requests FROM usage", url)).toEqual([{ requests: "1" }]);
  });

  test("connections that are ended between two questions are not noticed", async () => {
    const url = await servers.database();
    await using store = await openStore({ url });
    await store.tenants.create({ id: "a" });
    for (let i = 0; i < 5; i++) {
      await Promise.all([store.tenants.get("a"), store.tenants.list(), store.keys.list()]);
      const killed = await servers.cluster.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()",
        url,
      );
      expect(killed.length).toBeGreaterThan(0);
      expect(await store.tenants.get("a")).toMatchObject({ id: "a" });
    }
  });
});
