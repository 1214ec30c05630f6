/** @file A server with a store of objects under kill -9: what it acknowledged is there, whole, and nothing else for long. */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Random } from "../../src/base/index.ts";
import { NO_OBJECT_STORE, ObjectStore } from "../../src/serving/adapters/storage/testing.ts";
import { makeAdapter, scratch } from "../../src/serving/http/testing.ts";
import { openStore } from "../../src/serving/index.ts";
import { Replica, until } from "../serving-postgres/replicas.ts";

/** `MILORA_KILLS=100 npx vitest run test/fleet/store-kill.test.ts` looks longer. */
const KILLS = Number(process.env.MILORA_KILLS) || 4;
const NAMES = ["a", "b", "c"] as const;

const { directory, remove } = scratch();
afterAll(remove);

describe.skipIf(NO_OBJECT_STORE)(`kills ${NO_OBJECT_STORE ?? ""}`, () => {
  let store: ObjectStore;
  beforeAll(async () => {
    store = await ObjectStore.start();
  });
  afterAll(() => store?.[Symbol.asyncDispose]());

  test(`${KILLS} while adapters are installed and fetched`, { timeout: 120_000 + KILLS * 20_000 }, async () => {
    const bucket = await store.bucket("adapters");
    const data = join(directory, "data");
    const cache = join(data, "adapter-cache");
    let admin = "";
    {
      await using database = await openStore({ directory: data });
      admin = (await database.keys.create({ admin: true })).secret;
    }
    const flags = ["--adapter-store", `s3://${bucket}/x`, "--threads", "1", "--set", "residency.graceMs=1000"];
    const start = () => Replica.start(undefined, data, admin, flags, store.environment);
    const sources = await Promise.all([1, 2, 3, 4, 5].map((seed) => makeAdapter(directory, "milora", seed)));
    const random = new Random(Number(process.env.MILORA_KILLS) ? Date.now() : 11);

    /** Digests by name that were acknowledged, and those that may be there instead since nobody was told. */
    const acknowledged = new Map<string, string>();
    let begun: string | undefined;
    /** All that is registered works, and is what was acknowledged. */
    const check = async (replica: Replica): Promise<string[]> => {
      const { adapters } = (await replica.admin("GET", "/adapters")).body as { adapters: { name: string; digest: string }[] }; // biome-ignore format: one line
      for (const name of acknowledged.keys()) expect(adapters.map((adapter) => adapter.name)).toContain(name);
      for (const { name, digest } of adapters) {
        if (name !== begun) expect(digest).toBe(acknowledged.get(name));
        acknowledged.set(name, digest);
      }
      begun = undefined;
      const answers = await Promise.all(adapters.map(({ name }) => replica.ask(admin, name)));
      expect(answers.map(({ status, code }) => [status, code])).toEqual(adapters.map(() => [200, undefined]));
      return adapters.map(({ digest }) => digest);
    };

    for (let kill = 0; kill < KILLS; kill++) {
      const replica = await start();
      await check(replica);
      if (kill % 2 === 0 || acknowledged.size === 0) {
        const killed = sleep(50 + random.integer(600)).then(() => replica.end("SIGKILL"));
        for (let i = 0; ; i++) {
          const name = NAMES[(kill + i) % NAMES.length]!;
          begun = name;
          const answer = await replica.install(name, sources[random.integer(sources.length)]!).catch(() => undefined);
          if (!answer) break;
          expect(answer.status).toBe(201);
          acknowledged.set(name, (answer.body as { digest: string }).digest);
          begun = undefined;
        }
        await killed;
      } else {
        await replica.end("SIGKILL");
        rmSync(cache, { recursive: true });
        const fetching = await start();
        const asked = [...acknowledged.keys()].map((name) => fetching.ask(admin, name).catch(() => undefined));
        await sleep(random.integer(150));
        await fetching.end("SIGKILL");
        await Promise.all(asked);
      }
      // What is in the cache under a digest is whole.
      const digests = existsSync(cache) ? readdirSync(cache).filter((name) => /^[0-9a-f]{64}$/.test(name)) : [];
      for (const digest of digests) {
        expect(readdirSync(join(cache, digest))).toEqual(expect.arrayContaining(["adapter_config.json", "adapter_model.safetensors"])); // biome-ignore format: one line
      }
    }

    const last = await start();
    const registered = [...new Set(await check(last))];
    const expected = registered.flatMap((digest) => ["adapter_config.json", "adapter_model.safetensors"].map((file) => `x/${digest}/${file}`)); // biome-ignore format: one line
    await until(async () => (await store.keys(bucket)).toSorted().join() === expected.toSorted().join());
    expect(readdirSync(join(cache, ".drafts"))).toEqual([]);
    expect(await last.end("SIGTERM")).toBe(0);
  });
});
