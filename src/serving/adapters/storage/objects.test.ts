/** @file Files of adapters in a real store of objects: whole or not at all, fetched once, and the store may be away. */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { readDirectory } from "../files.ts";
import type { RegistryLimits } from "../limits.ts";
import type { AdapterRecord } from "../record.ts";
import { drafts, fixture, flipByte, newAdapter, openRegistry, Rows, temporary, visible } from "../testing.ts";
import { Bucket } from "./bucket.ts";
import { bucketLocation } from "./location.ts";
import { ObjectStorage } from "./objects.ts";
import { NO_OBJECT_STORE, ObjectStore, SECRET } from "./testing.ts";

const MIB = 1024 * 1024;
const shared = { owner: null, name: "a" };
const WEIGHTS = "adapter_model.safetensors";

async function until(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 50));
}

describe.skipIf(NO_OBJECT_STORE)(`a store of objects ${NO_OBJECT_STORE ?? ""}`, () => {
  let store: ObjectStore;
  let bucket: string;
  let buckets = 0;
  let rows: Rows;
  beforeAll(async () => {
    store = await ObjectStore.start();
  });
  afterAll(() => store?.[Symbol.asyncDispose]());
  beforeEach(async () => {
    bucket = await store.bucket(`adapters-${buckets++}`);
    rows = new Rows();
  });

  const prefix = "some/where";
  const storageIn = (directory: string, { maxBytes = 64 * MIB, stallMs = 10_000, secret = SECRET } = {}) => {
    const name = `s3://${bucket}/${prefix}`;
    const location = bucketLocation(name, { ...store.environment, AWS_SECRET_ACCESS_KEY: secret });
    return new ObjectStorage(name, new Bucket(location, { stallMs }), { directory, maxBytes });
  };

  /** A server's registry with a cache of its own; all of a test have the same rows. */
  async function replica({
    cache = temporary(),
    limits = {},
    ...more
  }: {
    cache?: string;
    limits?: Partial<RegistryLimits>;
    maxBytes?: number;
    stallMs?: number;
  } = {}) {
    // biome-ignore format: one line
    const storage = storageIn(cache, more);
    const { registry } = await openRegistry({ storage, adapters: rows, limits });
    /** Loads it, and lets it go out of memory. */
    const use = async (record: AdapterRecord): Promise<string> => {
      using lease = await registry.lease(record);
      const { digest } = lease.adapter;
      await registry.unload(record, { timeoutMs: 0 });
      return digest;
    };
    return { registry, storage, cache, use };
  }

  const keyOf = (digest: string, file = WEIGHTS) => `${bucket}/${prefix}/${digest}/${file}`;

  test("what one server installs another fetches when it is first asked for, once for all who ask", async () => {
    const [one, two] = [await replica(), await replica()];
    const { digest } = await one.registry.install({ directory: fixture }, shared);
    expect((await store.keys(bucket)).sort()).toEqual([`${prefix}/${digest}/adapter_config.json`, `${prefix}/${digest}/${WEIGHTS}`]); // biome-ignore format: one line
    expect(await store.get(keyOf(digest))).toEqual(readFileSync(join(fixture, WEIGHTS)));
    const record = (await rows.get(null, "a"))!;
    expect(visible(two.cache)).toEqual([]);
    const first = await one.use(record);
    expect(one.storage.cache).toMatchObject({ fetches: 0, adapters: 1 });
    const held = await Promise.all(Array.from({ length: 8 }, () => two.storage.hold(digest)));
    expect(two.storage.cache).toMatchObject({ fetches: 1, failures: 0, adapters: 1 });
    for (const hold of held) hold[Symbol.dispose]();
    expect(visible(two.cache)).toEqual([digest]);
    expect(await two.use(record)).toBe(first);
    expect(await two.use(record)).toBe(first);
    expect(two.storage.cache).toMatchObject({ fetches: 1, adapters: 1 });
    expect([...drafts(one.cache), ...drafts(two.cache)]).toEqual([]);
  });

  test("an object that is cut, changed or missing is told, and never gets into the cache", async () => {
    const [one, two] = [await replica(), await replica()];
    const { digest } = await one.registry.install({ directory: fixture }, shared);
    const record = (await rows.get(null, "a"))!;
    const whole = await store.get(keyOf(digest));
    const changed = Buffer.from(whole);
    changed[whole.length - 8]! ^= 1;
    const damages: [() => Promise<void>, string][] = [
      [() => store.put(keyOf(digest), whole.subarray(0, 1000)), "is not what was installed"],
      [() => store.put(keyOf(digest), changed), "is not what was installed"],
      [() => store.delete(keyOf(digest)), "a file is missing"],
    ];
    for (const [damage, reason] of damages) {
      await damage();
      const three = await replica();
      await expect(three.use(record)).rejects.toMatchObject({ code: "ADAPTER_CORRUPT", message: expect.stringContaining(reason) as string }); // biome-ignore format: one line
      expect(three.registry.presenceOf(record).corrupt).toBe(true);
      expect([...visible(three.cache), ...drafts(three.cache)]).toEqual([]);
      await expect(three.use(record)).rejects.toMatchObject({ code: "ADAPTER_CORRUPT" });
      expect(three.storage.cache).toMatchObject({ fetches: 1, failures: 1, bytes: 0 }); // not asked for each time
    }
    await expect(two.use(record)).rejects.toMatchObject({ code: "ADAPTER_CORRUPT" });
    await one.use(record); // has its copy
    await one.registry.install({ directory: fixture }, shared);
    await until(async () => two.use(record).then(() => true, () => false)); // biome-ignore format: one line
    expect(two.registry.presenceOf(record).corrupt).toBe(false);
  });

  test("a copy that is damaged or removed on this machine is fetched again", async () => {
    const { registry, storage, cache, use } = await replica();
    const { digest } = await registry.install({ directory: fixture }, shared);
    const record = (await rows.get(null, "a"))!;
    const good = await use(record);
    flipByte(join(cache, digest, WEIGHTS));
    expect(await use(record)).toBe(good);
    expect(storage.cache).toMatchObject({ fetches: 1, failures: 0, adapters: 1 });
    rmSync(join(cache, digest), { recursive: true });
    expect(await use(record)).toBe(good);
    expect(storage.cache).toMatchObject({ fetches: 2, failures: 0, adapters: 1 });
    expect(readFileSync(join(cache, digest, WEIGHTS))).toEqual(readFileSync(join(fixture, WEIGHTS)));
  });

  test.each(["stopped", "hung"])(
    "while the store is %s what is cached is served, the rest is refused for now",
    async (how) => {
      const { registry, use, cache } = await replica({ stallMs: 200 });
      const other = await replica({ stallMs: 200 });
      await registry.install({ directory: fixture }, shared);
      await other.registry.install({ directory: await newAdapter(7) }, { owner: null, name: "b" });
      const [a, b] = [(await rows.get(null, "a"))!, (await rows.get(null, "b"))!];
      if (how === "hung") store.hang();
      else await store.stop();
      try {
        const refused = { code: "ADAPTER_STORE_UNREACHABLE", status: 503, retryAfterSeconds: 2 };
        await use(a);
        await expect(use(b)).rejects.toMatchObject(refused);
        await expect(use(b)).rejects.toThrow(/^(?!.*(127\.0\.0\.1|adapters-)).*try again/);
        await expect(registry.install({ directory: await newAdapter(8) }, { owner: null, name: "c" })).rejects.toMatchObject(refused); // biome-ignore format: one line
        expect(await rows.get(null, "c")).toBeUndefined();
        expect(await registry.sweep()).toEqual([]);
        const restarted = await replica({ cache, stallMs: 200 });
        await restarted.use(a);
        expect([...drafts(cache), ...visible(cache)]).toEqual([a.digest]);
      } finally {
        if (how === "hung") store.wake();
        else await store.resume();
      }
      await until(async () => use(b).then(() => true, () => false)); // biome-ignore format: one line
      expect((await registry.install({ directory: await newAdapter(8) }, { owner: null, name: "c" })).name).toBe("c");
    },
  );

  test("who leaves ends a fetch that nobody else waits for", async () => {
    const one = await replica();
    const { digest } = await one.registry.install({ directory: fixture }, shared);
    const two = await replica();
    store.hang();
    try {
      const [leaving, staying] = [new AbortController(), new AbortController()];
      const first = two.storage.hold(digest, leaving.signal);
      const second = two.storage.hold(digest, staying.signal);
      leaving.abort(new Error("left"));
      await expect(first).rejects.toThrow("left");
      staying.abort(new Error("left, too"));
      await expect(second).rejects.toThrow("left, too");
    } finally {
      store.wake();
    }
    using held = await two.storage.hold(digest);
    expect(existsSync(join(held.directory, WEIGHTS))).toBe(true);
    expect(two.storage.cache).toMatchObject({ fetches: 2, failures: 0 });
  });

  test("the cache keeps to its size by what was used longest ago, never by what is in use", async () => {
    const one = await replica();
    const records: AdapterRecord[] = [];
    for (const seed of [1, 2, 3, 4]) {
      await one.registry.install({ directory: await newAdapter(seed) }, { owner: null, name: `n${seed}` });
      records.push((await rows.get(null, `n${seed}`))!);
    }
    const digests = records.map(({ digest }) => digest);
    const most = records[0]!.bytes * 2 + 100;
    const cache = temporary();
    const two = await replica({ cache, maxBytes: most });
    await two.use(records[0]!);
    await two.use(records[1]!);
    await two.use(records[0]!);
    await two.use(records[2]!); // in place of the second
    expect(visible(cache).sort()).toEqual([digests[0]!, digests[2]!].sort());
    {
      using _first = await two.registry.lease(records[0]!);
      using _third = await two.registry.lease(records[2]!);
      using _fourth = await two.registry.lease(records[3]!); // more than there is room for
      expect(visible(cache).sort()).toEqual([digests[0]!, digests[2]!, digests[3]!].sort());
      expect(two.storage.cache!.bytes).toBeGreaterThan(most);
    }
    for (const record of records) await two.registry.unload(record, { timeoutMs: 0 });
    expect(two.storage.cache).toMatchObject({ adapters: 2, evictions: 2 });
    await two.registry[Symbol.asyncDispose]();
    expect(visible(cache)).toHaveLength(2);
    const smaller = await replica({ cache, maxBytes: records[0]!.bytes + 100 });
    expect(smaller.storage.cache).toMatchObject({ adapters: 1, fetches: 0 });
    await expect(smaller.registry.install({ directory: await newAdapter(9, { r: 64 }) }, shared)).rejects.toMatchObject({ code: "PAYLOAD_TOO_LARGE" }); // biome-ignore format: one line
  });

  test("objects that nothing refers to go after the grace time, those of others stay", async () => {
    const graceMs = 1500;
    const { registry, storage } = await replica({ limits: { graceMs } });
    const kept = await registry.install({ directory: fixture }, shared);
    const gone = await registry.install({ directory: await newAdapter(1) }, { owner: null, name: "b" });
    await store.put(`${bucket}/${prefix}/readme.txt`, Buffer.from("somebody's"));
    await store.put(`${bucket}/elsewhere/${gone.digest}/${WEIGHTS}`, Buffer.from("somebody else's"));
    await using orphan = await storage.draft(64 * MIB);
    await readDirectory(await newAdapter(2), orphan.receive);
    await storage.upload(orphan); // and never registered
    await registry.remove(null, "b");
    await registry.sweep();
    expect(await store.keys(bucket)).toHaveLength(8);
    await until(async () => {
      await registry.sweep();
      return (await store.keys(bucket)).length === 4;
    });
    expect((await store.keys(bucket)).sort()).toEqual(
      [
        ...[`${prefix}/readme.txt`, `elsewhere/${gone.digest}/${WEIGHTS}`],
        ...[`${prefix}/${kept.digest}/adapter_config.json`, `${prefix}/${kept.digest}/${WEIGHTS}`],
      ].sort(),
    );
    expect(await storage.publish(orphan)).toBe(false); // an installation uploads it again then
    await storage.upload(orphan);
    expect(await storage.publish(orphan)).toBe(true);
  });

  test("a store that refuses keeps a server from starting, and says why without the secret", async () => {
    const secret = "wrong-secret";
    const storage = storageIn(temporary(), { secret });
    onTestFinished(() => storage[Symbol.asyncDispose]());
    const refused = storage.open();
    await expect(refused).rejects.toMatchObject({ code: "ADAPTER_STORE_REFUSED" });
    await expect(refused).rejects.toThrow(/^(?!.*(wrong-secret|s3cret)).*403 SignatureDoesNotMatch/);
    bucket = "not-there";
    await expect(storageIn(temporary()).open()).rejects.toThrow(/404 NoSuchBucket/);
  });
});
