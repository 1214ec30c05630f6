/** @file `--adapter-store` at the command line: servers and commands that share a database and a bucket. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { NO_OBJECT_STORE, ObjectStore, SECRET } from "../../src/serving/adapters/storage/testing.ts";
import { makeAdapter, scratch } from "../../src/serving/http/testing.ts";
import { openStore } from "../../src/serving/index.ts";
import { NO_OWN_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { milora, tiny } from "../cli/milora.ts";
import { Replica, until } from "../serving-postgres/replicas.ts";

const { directory, remove } = scratch();
afterAll(remove);
const MISSING = NO_OWN_POSTGRES ?? NO_OBJECT_STORE;

test("a name that is none, and an environment without a key, are input to correct", async () => {
  const serve = ["serve", "--model", tiny, "--data", join(directory, "none"), "--port", "0"];
  const wrong = await milora([...serve, "--adapter-store", "https://bucket"]);
  expect([wrong.code, wrong.stderr]).toEqual([2, expect.stringContaining("s3://BUCKET/PREFIX")]);
  const env = { AWS_ACCESS_KEY_ID: "", AWS_SECRET_ACCESS_KEY: "" };
  const keyless = await milora([...serve, "--adapter-store", "s3://bucket"], { env });
  expect([keyless.code, keyless.stderr]).toEqual([2, expect.stringContaining("AWS_ACCESS_KEY_ID")]);
});

describe.skipIf(MISSING)(`a store of objects ${MISSING ?? ""}`, () => {
  const servers = new Servers();
  servers.use(true);
  let store: ObjectStore;
  beforeAll(async () => {
    store = await ObjectStore.start();
  });
  afterAll(() => store?.[Symbol.asyncDispose]());

  test("a command installs where the servers have their adapters, and both servers answer", async () => {
    const bucket = await store.bucket("commands");
    const url = await servers.database();
    await using database = await openStore({ url });
    const admin = (await database.keys.create({ admin: true })).secret;
    const flags = ["--adapter-store", `s3://${bucket}/x`, "--threads", "1"];
    const start = (data: string) => Replica.start(url, join(directory, data), admin, flags, store.environment);
    const [one, two] = await Promise.all([start("one"), start("two")]);
    const env = { DATABASE_URL: url, ...store.environment };

    const third = await milora(["serve", "--model", tiny, "--data", join(directory, "two"), "--port", "0", "--auth", "required", ...flags], { env }); // biome-ignore format: one line
    expect([third.code, third.stderr]).toEqual([2, expect.stringContaining("a --data of its own")]);
    const denied = await milora(["serve", "--model", tiny, "--data", join(directory, "four"), "--port", "0", "--auth", "required", ...flags], { env: { ...env, AWS_SECRET_ACCESS_KEY: "wrong" } }); // biome-ignore format: one line
    expect([denied.code, denied.stderr]).toEqual([2, expect.stringContaining("403 SignatureDoesNotMatch")]);

    const source = await makeAdapter(directory, "milora", 5);
    const data = join(directory, "command");
    const install = ["adapters", "install", source, "--name", "color", "--model", tiny, "--data", data];
    const installed = await milora([...install, "--json"], { env });
    expect([installed.code, installed.stderr]).toEqual([0, ""]);
    const { digest } = JSON.parse(installed.stdout) as { digest: string };
    expect((await store.keys(bucket)).every((key) => key.startsWith(`x/${digest}/`))).toBe(true);
    expect(existsSync(join(data, "adapters", digest))).toBe(false);
    await until(async () => (await one.ask(admin, "color")).status === 200);
    await until(async () => (await two.ask(admin, "color")).status === 200);
    const text = async (replica: Replica) => JSON.stringify((await replica.ask(admin, "color")).body.choices);
    expect(await text(one)).toBe(await text(two));
    for (const name of ["one", "two"]) expect(readdirSync(join(directory, name, "adapter-cache"))).toContain(digest);

    // The store is away: what is there is served, what is not is refused for now, and an operator is told why.
    const other = await makeAdapter(directory, "milora", 6);
    expect((await one.install("other", other)).status).toBe(201);
    await until(async () => (await two.ask(admin, "none")).status === 404);
    await store.stop();
    try {
      expect(await text(two)).toBe(await text(one));
      const refused = await two.ask(admin, "other");
      expect(refused).toMatchObject({ status: 503, code: "ADAPTER_STORE_UNREACHABLE", retryAfter: 2 });
      expect(await two.install("third", other)).toMatchObject({ status: 503, code: "ADAPTER_STORE_UNREACHABLE" });
      expect(two.output).toMatch(/"reason":"[^"]*ECONNREFUSED.*the adapter store cannot be used/);
      expect(await two.ready()).toBe(200);
    } finally {
      await store.resume();
    }
    await until(async () => (await two.ask(admin, "other")).status === 200);
    const metrics = await (await fetch(`${two.url}/metrics`, { headers: { authorization: `Bearer ${admin}` } })).text();
    expect(metrics).toMatch(/milora_adapter_fetches_total [3-9]/);
    expect(await Promise.all([one.end("SIGTERM"), two.end("SIGTERM")])).toEqual([0, 0]);
    for (const { output } of [one, two]) expect(output).not.toContain(SECRET);
  });
});
