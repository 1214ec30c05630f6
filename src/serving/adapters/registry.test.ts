/** @file The registry: adapters come in whole or not at all, are found by those who may use them, and stay while in use. */
import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, onTestFinished, test } from "vitest";
import type { Adapter } from "../../methods/index.ts";
import { openStore } from "../store/index.ts";
import type { AdapterRecord } from "./record.ts";
import { AdapterRegistry, type RegistryOptions } from "./registry.ts";
import {
  backbone,
  changed,
  entriesOf,
  fixture,
  flipByte,
  inChunks,
  newAdapter,
  Rows,
  tar,
  temporary,
} from "./testing.ts";

async function open(options: Partial<RegistryOptions> = {}) {
  const directory = options.directory ?? temporary();
  const rows = options.adapters instanceof Rows ? options.adapters : new Rows();
  const forgotten: Adapter[] = [];
  const engine = { forget: (adapter: Adapter) => forgotten.push(adapter) };
  const registry = await AdapterRegistry.open({
    ...{ directory, adapters: rows, backbone, bases: ["tiny", "org/tiny"], engine },
    ...options,
  });
  onTestFinished(() => registry[Symbol.asyncDispose]());
  return { registry, directory, rows, forgotten, files: join(directory, "adapters") };
}

const visible = (files: string): string[] => readdirSync(files).filter((name) => !name.startsWith("."));
const drafts = (files: string): string[] => readdirSync(join(files, ".drafts"));
const shared = { owner: null, name: "a" };

describe("installing", () => {
  test("from a directory and from archives gives one and the same adapter, stored once", async () => {
    const { registry, files, directory } = await open();
    const first = await registry.install({ directory: fixture }, shared);
    expect(first).toMatchObject({ ...shared, method: "lora", pinned: false, skipped: [] });
    expect(first.parameters).toBeGreaterThan(1000);
    expect(visible(files)).toEqual([first.digest]);
    const archive = await tar(entriesOf(fixture, "x/"));
    for (const [i, bytes] of [archive, gzipSync(archive)].entries()) {
      const again = await registry.install({ archive: inChunks(bytes) }, { owner: "t", name: `n${i}` });
      expect(again.digest).toBe(first.digest);
    }
    expect(visible(files)).toEqual([first.digest]);
    expect(drafts(files)).toEqual([]);
    // The digest is what anybody computes.
    const sum = "sha256sum adapter_config.json adapter_model.safetensors | sha256sum";
    const printed = execFileSync("sh", ["-c", sum], {
      cwd: join(directory, "adapters", first.digest),
      encoding: "utf8",
    });
    expect(printed.slice(0, 64)).toBe(first.digest);
  });

  test.each<[string, string, (directory: string) => void]>([
    ["no tensors", "FILE_UNREADABLE", (d) => rmSync(join(d, "adapter_model.safetensors"))],
    ["a method that is not known", "METHOD_UNKNOWN", (d) => writeFileSync(join(d, "adapter_config.json"), '{"peft_type":"X"}')], // biome-ignore format: one line
    ["a config that is no JSON", "JSON_INVALID", (d) => writeFileSync(join(d, "adapter_config.json"), "{")],
    ["tensors that are none", "SAFETENSORS_INVALID", (d) => writeFileSync(join(d, "adapter_model.safetensors"), "nonsense!")], // biome-ignore format: one line
  ])("%s: refused, nothing left, no path told", async (_, code, change) => {
    const { registry, files, rows } = await open();
    const directory = changed(fixture, change);
    const error = await registry.install({ directory }, shared).catch((thrown: unknown) => thrown as Error);
    expect(error).toMatchObject({ code });
    expect((error as Error).message).not.toContain(files);
    expect([...visible(files), ...drafts(files), ...rows.rows]).toEqual([]);
  });

  test("an adapter of another backbone is refused with all that does not fit", async () => {
    const { registry, files } = await open();
    const other = await open({ backbone: { ...backbone, hiddenSize: backbone.hiddenSize * 2 } });
    await expect(other.registry.install({ directory: fixture }, shared)).rejects.toThrow(
      /adapter_model\.safetensors does not fit .*: \d+ problems: .*lora_A.* expected/,
    );
    expect(visible(other.files)).toEqual([]);
    await registry.install({ directory: fixture }, shared);
    expect(visible(files)).toHaveLength(1);
  });

  test("an adapter that changes nothing is refused", async () => {
    const { registry } = await open();
    const { Adapter, methodOf } = await import("../../methods/index.ts");
    const directory = join(temporary(), "identity");
    using adapter = Adapter.create(methodOf("lora"), { r: 2 }, backbone, 1);
    await adapter.save(directory);
    await expect(registry.install({ directory }, shared)).rejects.toThrow("would change nothing");
  });

  test.each(["", "a/b", "a:b", "base", "BASE", "tiny", "../x", ".x", "a\nb", "a b", "ä", "x".repeat(129)])(
    "the name %j is refused",
    async (name) => {
      const { registry, files } = await open();
      const installing = registry.install({ directory: fixture }, { owner: null, name });
      await expect(installing).rejects.toMatchObject({ code: "ADAPTER_NAME_INVALID" });
      expect(visible(files)).toEqual([]);
    },
  );

  test("more bytes than are allowed, or than there is memory for, are refused", async () => {
    const { registry, files } = await open({ limits: { maxResidentBytes: 4096 } });
    await expect(registry.install({ directory: fixture }, { ...shared, maxBytes: 1000 })).rejects.toMatchObject({
      code: "PAYLOAD_TOO_LARGE",
    });
    await expect(registry.install({ directory: fixture }, shared)).rejects.toMatchObject({ code: "ADAPTER_TOO_LARGE" });
    expect([...visible(files), ...drafts(files)]).toEqual([]);
  });

  test("a directory outside of the one allowed is refused, by name or by link", async () => {
    const { registry } = await open();
    const within = temporary();
    const inside = join(within, "inside");
    mkdirSync(inside);
    for (const file of readdirSync(fixture)) symlinkSync(join(process.cwd(), fixture, file), join(inside, file));
    for (const directory of [fixture, inside, join(within, "..", "..", process.cwd(), fixture)]) {
      await expect(registry.install({ directory, within }, shared)).rejects.toMatchObject({ code: "FILE_UNREADABLE" });
    }
    const copy = changed(fixture, () => {});
    await registry.install({ directory: copy, within: join(copy, "..") }, shared);
    await registry.install({ directory: inside }, shared); // no bounds, no harm
  });

  test("a row that is refused leaves the files invisible, and the next sweep takes them", async () => {
    const { registry, files, rows } = await open({ limits: { graceMs: 0 } });
    rows.put = async () => {
      throw new Error("quota");
    };
    await expect(registry.install({ directory: fixture }, shared)).rejects.toThrow("quota");
    await expect(registry.resolve({ tenant: "t" }, "a")).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
    expect(visible(files)).toHaveLength(1);
    await registry.sweep();
    expect(visible(files)).toEqual([]);
  });
});

describe("names", () => {
  test("own before shared, granted by owner, and one answer for all others", async () => {
    const { registry, rows } = await open();
    const install = (owner: string | null, name: string) => registry.install({ directory: fixture }, { owner, name });
    await install(null, "common");
    await install(null, "x");
    await install("ann", "x");
    await install("ann", "secret");
    await install("bob", "own");
    const find = (tenant: string, model: string) => registry.resolve({ tenant }, model);
    expect(await find("ann", "x")).toMatchObject({ owner: "ann" });
    expect(await find("bob", "x")).toMatchObject({ owner: null });
    expect(await find("bob", "tiny:common")).toMatchObject({ name: "common" });
    expect(await find("bob", "org/tiny:own")).toMatchObject({ owner: "bob" });
    expect(await find("bob", "bob/own")).toMatchObject({ owner: "bob" });
    expect(await find("bob", "tiny")).toBeUndefined();
    const answers = [];
    for (const model of [
      "ann/secret",
      "ann/nothing",
      "secret",
      "nothing",
      "nobody/x",
      "other:own",
      "../x",
      "a\u0000",
    ]) {
      const error = (await find("bob", model).catch((thrown: unknown) => thrown)) as Error;
      expect(error).toMatchObject({ code: "MODEL_NOT_FOUND" });
      answers.push(error.message.replace(/"[^"]*"/, "…"));
    }
    expect(new Set(answers).size).toBe(1);
    rows.grants.add("ann/secret → bob");
    expect(await find("bob", "ann/secret")).toMatchObject({ owner: "ann", name: "secret" });
    await expect(find("bob", "secret")).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
    expect((await registry.list({ tenant: "bob" })).map(({ name }) => name).sort()).toEqual(["common", "own", "secret", "x"]); // biome-ignore format: one line
  });

  test("what is in memory through another tenant's name is not told", async () => {
    const { registry } = await open();
    const ann = await registry.install({ directory: fixture }, { owner: "ann", name: "x" });
    const bob = await registry.install({ directory: fixture }, { owner: "bob", name: "y" });
    expect(bob.digest).toBe(ann.digest);
    using _lease = await registry.lease(ann);
    expect((await registry.list({ tenant: "ann" }))[0]).toMatchObject({ resident: true, inFlight: 1 });
    const unseen = { resident: false, residentBytes: 0, inFlight: 0, lastUsed: null };
    expect((await registry.list({ tenant: "bob" }))[0]).toMatchObject(unseen);
  });
});

describe("in use", () => {
  test("a new adapter of the name leaves requests under way alone; later ones get it", async () => {
    const { registry, forgotten } = await open();
    const old = await registry.install({ directory: await newAdapter(1) }, shared);
    const lease = await registry.lease(old);
    const numbers = [...lease.adapter.values([...lease.adapter.tensors.keys()][0]!)];
    const next = await registry.install({ directory: await newAdapter(2) }, shared);
    expect(next.replaced).toBe(old.digest);
    const resolved = (await registry.resolve({ tenant: "t" }, "a")) as AdapterRecord;
    expect(resolved.digest).toBe(next.digest);
    using second = await registry.lease(resolved);
    expect(second.adapter).not.toBe(lease.adapter);
    expect([...lease.adapter.values([...lease.adapter.tensors.keys()][0]!)]).toEqual(numbers);
    expect(forgotten).toEqual([]);
    // Resolved before the change, leased after it: still what it was.
    using late = await registry.lease(old);
    expect(late.adapter).toBe(lease.adapter);
    lease[Symbol.dispose]();
    lease[Symbol.dispose](); // once more does nothing
    expect(lease.adapter.tensors.values().next().value?.disposed).toBe(false);
  });

  test("one load serves all who ask; the last one to leave lets a removed adapter go", async () => {
    const { registry, forgotten } = await open({ limits: { removeTimeoutMs: 20 } });
    const record = await registry.install({ directory: fixture }, shared);
    const leases = await Promise.all(Array.from({ length: 8 }, () => registry.lease(record)));
    expect(registry.stats).toMatchObject({ loads: 1, resident: 1 });
    expect(new Set(leases.map(({ adapter }) => adapter)).size).toBe(1);
    expect(await registry.remove(null, "a")).toMatchObject({ inFlight: 8 });
    await expect(registry.resolve({ tenant: "t" }, "a")).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
    const { adapter } = leases[0]!;
    for (const lease of leases) {
      expect(forgotten).toEqual([]);
      lease[Symbol.dispose]();
    }
    expect(forgotten).toEqual([adapter]);
    expect([...adapter.tensors.values()].every((tensor) => tensor.disposed)).toBe(true);
    expect(registry.stats).toMatchObject({ resident: 0, residentBytes: 0 });
  });

  test("removing waits for requests, and ends with the last one", async () => {
    const { registry } = await open();
    const record = await registry.install({ directory: fixture }, shared);
    const lease = await registry.lease(record);
    const removing = registry.remove(null, "a");
    let removed = false;
    void removing.then(() => {
      removed = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 10));
    expect(removed).toBe(false);
    lease[Symbol.dispose]();
    expect(await removing).toMatchObject({ inFlight: 0 });
    await expect(registry.remove(null, "a")).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
  });

  test("files outlive their name for the grace time, then go; those of other names stay", async () => {
    const { registry, files } = await open({ limits: { graceMs: 0 } });
    const record = await registry.install({ directory: fixture }, shared);
    await registry.install({ directory: fixture }, { owner: "t", name: "same" });
    await registry.install({ directory: await newAdapter(1) }, { owner: "t", name: "other" });
    await registry.remove(null, "a");
    expect(await registry.sweep()).toEqual([]);
    await registry.remove("t", "same");
    expect(visible(files)).toHaveLength(2); // a request that was let in just before may still load it
    expect(await registry.sweep()).toEqual([record.digest]);
    expect(visible(files)).toHaveLength(1);
    await expect(registry.lease(record)).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
  });
});

describe("memory", () => {
  const bytesOf = async (registry: AdapterRegistry, record: AdapterRecord): Promise<number> => {
    await registry.load(record);
    return registry.residency().find(({ digest }) => digest === record.digest)!.bytes;
  };

  test("the least recently used go, the pinned stay, those in use stay", async () => {
    const { registry, forgotten } = await open({ limits: { maxResident: 2 } });
    const records: AdapterRecord[] = [];
    for (let i = 0; i < 4; i++) {
      records.push(await registry.install({ directory: await newAdapter(i) }, { owner: null, name: `n${i}` }));
    }
    const [a, b, c, d] = records as [AdapterRecord, AdapterRecord, AdapterRecord, AdapterRecord];
    const resident = () => records.filter(({ digest }) => registry.residency().some((slot) => slot.digest === digest)).map(({ name }) => name); // biome-ignore format: one line
    await registry.load(a);
    await registry.load(b);
    await registry.load(a);
    await registry.load(c);
    expect(resident()).toEqual(["n0", "n2"]);
    await registry.pin(a);
    await registry.load(b);
    await registry.load(d);
    expect(resident()).toEqual(["n0", "n3"]);
    using _lease = await registry.lease(d);
    await expect(
      registry.lease(b, { signal: AbortSignal.timeout(20) }), // all in use
    ).rejects.toMatchObject({ name: "TimeoutError" });
    expect(resident()).toEqual(["n0", "n3"]);
    await registry.unpin(a);
    await registry.load(c);
    expect(resident()).toEqual(["n2", "n3"]);
    expect(forgotten).toHaveLength(registry.stats.evictions);
  });

  test("who waits for memory gets it when it is free; the time is limited", async () => {
    const { registry } = await open({ limits: { maxResident: 1, leaseTimeoutMs: 50 } });
    const a = await registry.install({ directory: await newAdapter(1) }, { owner: null, name: "a" });
    const b = await registry.install({ directory: await newAdapter(2) }, { owner: null, name: "b" });
    const lease = await registry.lease(a);
    await expect(registry.lease(b)).rejects.toMatchObject({ code: "ADAPTERS_BUSY", status: 503, retryAfterSeconds: 1 });
    const waiting = registry.lease(b);
    lease[Symbol.dispose]();
    using second = await waiting;
    expect(second.record.name).toBe("b");
    expect(registry.stats).toMatchObject({ resident: 1, waiting: 0, evictions: 1 });
  });

  test("bytes count, whatever the number of adapters", async () => {
    const probe = await open();
    const small = await newAdapter(1);
    const large = await newAdapter(2, { r: 8 });
    const bytes = await bytesOf(probe.registry, await probe.registry.install({ directory: small }, shared));
    const { registry } = await open({ limits: { maxResidentBytes: 5 * bytes } });
    for (const [name, directory] of [
      ["small", small],
      ["large", large],
    ] as const) {
      // biome-ignore format: one line
      const record = await registry.install({ directory }, { owner: null, name });
      await registry.load(record);
    }
    expect(registry.stats.residentBytes).toBeLessThanOrEqual(5 * bytes);
    expect(registry.stats).toMatchObject({ resident: 2, evictions: 0 });
    const third = await registry.install({ directory: await newAdapter(3, { r: 4 }) }, { owner: null, name: "third" });
    await registry.load(third);
    expect(registry.stats).toMatchObject({ evictions: 2, resident: 1 });
  });
});

describe("damage", () => {
  test("files that changed on disk fail their requests and no others, until they are installed again", async () => {
    const { registry, files } = await open();
    const record = await registry.install({ directory: fixture }, shared);
    const other = await registry.install({ directory: await newAdapter(1) }, { owner: null, name: "b" });
    flipByte(join(files, record.digest, "adapter_model.safetensors"));
    for (let i = 0; i < 2; i++) {
      await expect(registry.lease(record)).rejects.toMatchObject({ code: "ADAPTER_CORRUPT", exitCode: 1 });
    }
    expect((await registry.all()).map(({ corrupt }) => corrupt)).toEqual([true, false]);
    await registry.load(other);
    await registry.install({ directory: fixture }, { owner: "t", name: "again" });
    await registry.load(record);
    expect((await registry.all()).map(({ corrupt }) => corrupt)).toEqual([false, false, false]);
    expect(registry.stats.residentBytes).toBeGreaterThan(0);
  });

  test.each<[string, (directory: string) => void]>([
    ["a file is missing", (d) => rmSync(join(d, "adapter_model.safetensors"))],
    ["all are missing", (d) => rmSync(d, { recursive: true })],
    ["the config is empty", (d) => writeFileSync(join(d, "adapter_config.json"), "")],
    ["the header is overwritten", (d) => writeFileSync(join(d, "adapter_model.safetensors"), Buffer.alloc(100, 255))],
  ])("%s", async (_, damage) => {
    const { registry, files } = await open();
    const record = await registry.install({ directory: fixture }, shared);
    damage(join(files, record.digest));
    const error = (await registry.lease(record).catch((thrown: unknown) => thrown)) as Error;
    expect(error).toMatchObject({ code: "ADAPTER_CORRUPT" });
    expect(error.message).not.toContain(files);
    expect(registry.stats).toMatchObject({ resident: 0, residentBytes: 0, failures: 1 });
    const repaired = await registry.install({ directory: fixture }, shared);
    await registry.load(repaired);
  });
});

test("with the database: owners, grants and what a tenant may store", async () => {
  await using store = await openStore({ memory: true });
  await store.tenants.create({ id: "ann", limits: { maxAdapters: 1 } });
  await store.tenants.create({ id: "bob" });
  const { registry, files } = await open({ adapters: store.adapters, limits: { graceMs: 0 } });
  const record = await registry.install({ directory: fixture }, { owner: "ann", name: "x" });
  const other = { directory: await newAdapter(1) };
  await expect(registry.install(other, { owner: "ann", name: "y" })).rejects.toMatchObject({
    code: "STORAGE_EXCEEDED",
  });
  await expect(registry.install(other, { owner: "nobody", name: "y" })).rejects.toMatchObject({
    code: "TENANT_NOT_FOUND",
  });
  expect(await registry.sweep()).toHaveLength(1);
  expect(visible(files)).toEqual([record.digest]);
  const asBob = () => registry.resolve({ tenant: "bob" }, "ann/x");
  await expect(asBob()).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
  await store.grants.grant("ann", "x", "bob");
  using _lease = await registry.lease((await asBob())!);
  expect(await registry.list({ tenant: "bob" })).toMatchObject([{ owner: "ann", name: "x", inFlight: 1 }]);
  const replaced = await registry.install(other, { owner: "ann", name: "x" });
  expect(replaced.replaced).toBe(record.digest);
  expect(await asBob()).toMatchObject({ digest: replaced.digest });
  await registry.pin((await asBob())!);
  expect(await registry.all()).toMatchObject([{ pinned: true, resident: true }]);
  await store.grants.revoke("ann", "x", "bob");
  await expect(asBob()).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
  await registry.remove("ann", "x", { timeoutMs: 1 });
  expect(await registry.all()).toEqual([]);
});

describe("a restart", () => {
  test("keeps what was installed and pinned, and clears what was not finished", async () => {
    const rows = new Rows();
    const before = await open({ adapters: rows });
    const { directory, files } = before;
    const a = await before.registry.install({ directory: fixture }, shared);
    const b = await before.registry.install({ directory: await newAdapter(1) }, { owner: "t", name: "b" });
    await before.registry.install({ directory: await newAdapter(2) }, { owner: "t", name: "c" });
    await before.registry.pin(a);
    await before.registry[Symbol.asyncDispose]();
    mkdirSync(join(files, ".drafts", "somewhere-else.1.abc.0"));
    const ended = execFileSync("sh", ["-c", "echo $$"], { encoding: "utf8" }).trim();
    const host = (await import("node:os")).hostname().replace(/[^A-Za-z0-9-]/g, "") || "host";
    for (const pid of [ended, process.pid]) mkdirSync(join(files, ".drafts", `${host}.${pid}.abc.0`));
    flipByte(join(files, b.digest, "adapter_model.safetensors"));
    const warnings: object[] = [];
    const log = { info() {}, warn: (fields: object) => void warnings.push(fields) };
    const { registry } = await open({ directory, adapters: rows, preload: ["t/b", "nothing"], log });
    expect(drafts(files)).toEqual(["somewhere-else.1.abc.0"]);
    expect((await registry.all()).map(({ name, resident, corrupt }) => ({ name, resident, corrupt }))).toEqual([
      { name: "a", resident: true, corrupt: false },
      { name: "b", resident: false, corrupt: true },
      { name: "c", resident: false, corrupt: false },
    ]);
    expect(warnings).toHaveLength(3);
    expect(existsSync(join(files, b.digest))).toBe(true);
  });
});
