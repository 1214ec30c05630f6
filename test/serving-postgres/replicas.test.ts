/** @file Two servers on one database: what is changed at one holds at the other, whatever happens to connections and the database. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { makeAdapter, scratch } from "../../src/serving/http/testing.ts";
import { openStore, type Store } from "../../src/serving/index.ts";
import { PASSWORD } from "../../src/serving/store/testing/cluster.ts";
import { NO_OWN_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { Replica, until } from "./replicas.ts";

const { directory, remove } = scratch();
afterAll(remove);

describe.skipIf(NO_OWN_POSTGRES)(`PostgreSQL ${NO_OWN_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use(true);
  let database: string;
  /** As a command has it that works on the database. */
  let store: Store;
  let one: Replica;
  let two: Replica;

  beforeAll(async () => {
    database = await servers.cluster.create();
    store = await openStore({ url: database });
    const admin = (await store.keys.create({ admin: true })).secret;
    const data = `${directory}/data`;
    [one, two] = await Promise.all([Replica.start(database, data, admin), Replica.start(database, data, admin)]);
  });
  afterAll(async () => {
    const codes = [await one?.end("SIGTERM"), await two?.end("SIGTERM")];
    await store?.[Symbol.asyncDispose]();
    expect(codes).toEqual([0, 0]);
    for (const { output } of [one, two]) {
      for (const secret of [PASSWORD, encodeURIComponent(PASSWORD)]) expect(output).not.toContain(secret);
    }
  });

  /** A tenant of the test's own with a key. */
  let tenant: string;
  let key: string;
  let keyId: string;
  let tenants = 0;
  beforeEach(async () => {
    tenant = `acme${tenants++}`;
    await one.admin("POST", "/tenants", { id: tenant });
    const { body } = await one.admin("POST", "/keys", { tenant });
    [key, keyId] = [body.secret as string, (body.key as { id: string }).id];
  });
  afterEach(async () => {
    for (const { owner, name } of await store.adapters.all()) await store.adapters.remove(owner, name);
  });

  const served = async (model?: string): Promise<number[]> =>
    Promise.all([one, two].map(async (replica) => (await replica.ask(key, model)).status));

  test("a key that is revoked at one, or by a command, lets nobody in at the other", async () => {
    expect(await served()).toEqual([200, 200]);
    await one.admin("DELETE", `/keys/${keyId}`);
    await until(async () => (await two.ask(key)).status === 401);
    const made = await store.keys.create({ tenant });
    key = made.secret;
    expect(await served()).toEqual([200, 200]);
    await store.tenants.update(tenant, { disabled: true });
    await until(async () => (await served()).join() === "401,401");
    await store.tenants.update(tenant, { disabled: false });
    await until(async () => (await served()).join() === "200,200");
  });

  test("an adapter that is installed, replaced, pinned and removed at one is so at the other", async () => {
    const [red, blue] = [await makeAdapter(directory, "lora", 1), await makeAdapter(directory, "lora", 2)];
    const text = async (replica: Replica) => JSON.stringify((await replica.ask(key, "color")).body.choices);
    expect(await served("color")).toEqual([404, 404]);
    expect((await one.install("color", red)).status).toBe(201);
    await until(async () => (await served("color")).join() === "200,200");
    const before = await text(one);
    expect(await text(two)).toBe(before);
    expect((await two.install("color", blue)).body.replaced).toBeTruthy();
    await until(async () => (await text(one)) !== before);
    expect(await text(one)).toBe(await text(two));
    const seen = async (replica: Replica) => {
      const { adapters } = (await replica.admin("GET", "/adapters")).body as { adapters: { name: string; resident: boolean; pinned: boolean }[] }; // biome-ignore format: one line
      return adapters.map(({ name, resident, pinned }) => `${name} ${resident} ${pinned}`).join();
    };
    await one.install("other", red);
    await until(async () => (await seen(two)) === "color true false,other false false");
    await one.admin("PUT", "/adapters/other/pin");
    await until(async () => (await seen(two)) === "color true false,other true true");
    expect((await two.admin("PUT", "/adapters/other/resident")).status).toBe(200);
    expect((await two.admin("DELETE", "/adapters/other/resident")).code).toBe("ADAPTER_PINNED");
    await store.adapters.setPinned(null, "other", false);
    await until(async () => (await two.admin("DELETE", "/adapters/other/resident")).status === 200);
    await two.admin("DELETE", "/adapters/color");
    await until(async () => (await served("color")).join() === "404,404");
  });

  test("changes that are made while connections are cut are not missed", async () => {
    for (let round = 0; round < 3; round++) {
      expect(await served()).toEqual([200, 200]);
      const cut = servers.cluster.query(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%'`,
        database,
      );
      const revoked = until(async () => (await store.keys.revoke(keyId).catch(() => undefined)) !== undefined);
      await Promise.all([cut, revoked]);
      await until(async () => (await served()).join() === "401,401");
      await until(async () => (await one.ready()) + (await two.ready()) === 400);
      const made = await store.keys.create({ tenant });
      [key, keyId] = [made.secret, made.key.id];
    }
  });

  const requests = async (): Promise<number> => {
    const [sums] = await store.usage.report({ tenant, by: [] });
    return sums?.requests ?? 0;
  };

  test("limits hold for both together", async () => {
    const perMinute = 6;
    await one.admin("PATCH", `/tenants/${tenant}`, { limits: { requestsPerMinute: perMinute } });
    await until(async () => (await two.ask(key, "none")).status === 404); // refused before it counts
    const began = performance.now();
    const answers = await Promise.all(Array.from({ length: 30 }, (_, i) => [one, two][i % 2]!.ask(key)));
    const minutes = (performance.now() - began) / 60_000;
    const letIn = answers.filter(({ status }) => status === 200).length;
    expect(letIn).toBeGreaterThanOrEqual(perMinute);
    expect(letIn).toBeLessThanOrEqual(perMinute * (1 + minutes));
    for (const { status, code, retryAfter } of answers.filter((answer) => answer.status !== 200)) {
      expect([status, code]).toEqual([429, "QUOTA_EXCEEDED"]);
      expect(retryAfter).toBeGreaterThan(0);
      expect(retryAfter).toBeLessThanOrEqual(60 / perMinute);
    }
    await until(async () => (await requests()) === letIn);
  });

  test("a server that is killed under traffic has counted nothing twice, and holds no place for long", async () => {
    await store.tenants.update(tenant, { limits: { maxConcurrent: 3 } });
    const admin = (await store.keys.create({ admin: true })).secret;
    const three = await Replica.start(database, `${directory}/data`, admin);
    for (let i = 0; i < 5; i++) expect((await three.ask(key)).status).toBe(200);
    await until(async () => (await requests()) === 5);
    let sent = 0;
    let ended = false;
    const busy = async (): Promise<void> => {
      while (!ended) {
        sent++;
        await three.ask(key, undefined, { max_tokens: 200, ignore_eos: true }).catch(() => {});
      }
    };
    const traffic = [busy(), busy(), busy()];
    const running = async () => (await one.admin("GET", `/tenants/${tenant}/quotas`)).body.running;
    await until(async () => (await running()) === 3);
    expect((await one.ask(key)).code).toBe("QUOTA_EXCEEDED");
    await three.end("SIGKILL");
    ended = true;
    await Promise.all(traffic);
    await until(async () => (await running()) === 0);
    expect((await one.ask(key)).status).toBe(200);
    await until(async () => (await requests()) > 5);
    const [sums] = await store.usage.report({ tenant, by: ["key"] });
    expect(sums!.requests).toBeLessThanOrEqual(5 + sent + 1);
    expect(sums!.promptTokens % sums!.requests).toBe(0);
  });

  test("while the database is away requests get 503, and all goes on when it is back", async () => {
    expect(await served()).toEqual([200, 200]);
    await servers.cluster.stop();
    for (const replica of [one, two]) {
      await until(async () => (await replica.ready()) === 503);
      expect(await replica.ask(key)).toMatchObject({ status: 503, code: "DATABASE_UNREACHABLE", retryAfter: 1 });
      expect((await fetch(`${replica.url}/healthz`)).status).toBe(200);
    }
    await servers.cluster.resume();
    await until(async () => (await one.ready()) + (await two.ready()) === 400);
    expect(await served()).toEqual([200, 200]);
    await until(async () => (await requests()) === 4);
  });
});
