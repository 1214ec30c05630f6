/** @file The registry: adapters come in whole or not at all, are found by those who may use them, and stay while in use. */
import { execFileSync } from "node:child_process";
import { mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { openStore } from "../store/index.ts";
import type { AdapterRecord } from "./record.ts";
import {
  backbone,
  changed,
  drafts,
  entriesOf,
  fixture,
  inChunks,
  newAdapter,
  openRegistry,
  Rows,
  tar,
  temporary,
  visible,
} from "./testing.ts";

const shared = { owner: null, name: "a" };

describe("installing", () => {
  test("from a directory and from archives gives one and the same adapter, stored once", async () => {
    const { registry, files, directory } = await openRegistry();
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
    const { registry, files, rows } = await openRegistry();
    const directory = changed(fixture, change);
    const error = await registry.install({ directory }, shared).catch((thrown: unknown) => thrown as Error);
    expect(error).toMatchObject({ code });
    expect((error as Error).message).not.toContain(files);
    expect([...visible(files), ...drafts(files), ...rows.rows]).toEqual([]);
  });

  test("an adapter of another backbone is refused with all that does not fit", async () => {
    const { registry, files } = await openRegistry();
    const other = await openRegistry({ backbone: { ...backbone, hiddenSize: backbone.hiddenSize * 2 } });
    await expect(other.registry.install({ directory: fixture }, shared)).rejects.toThrow(
      /adapter_model\.safetensors does not fit .*: \d+ problems: .*lora_A.* expected/,
    );
    expect(visible(other.files)).toEqual([]);
    await registry.install({ directory: fixture }, shared);
    expect(visible(files)).toHaveLength(1);
  });

  test("an adapter that changes nothing is refused", async () => {
    const { registry } = await openRegistry();
    const { Adapter, methodOf } = await import("../../methods/index.ts");
    const directory = join(temporary(), "identity");
    using adapter = Adapter.create(methodOf("lora"), { r: 2 }, backbone, 1);
    await adapter.save(directory);
    await expect(registry.install({ directory }, shared)).rejects.toThrow("would change nothing");
  });

  test.each(["", "a/b", "a:b", "base", "BASE", "tiny", "../x", ".x", "a\nb", "a b", "ä", "x".repeat(129)])(
    "the name %j is refused",
    async (name) => {
      const { registry, files } = await openRegistry();
      const installing = registry.install({ directory: fixture }, { owner: null, name });
      await expect(installing).rejects.toMatchObject({ code: "ADAPTER_NAME_INVALID" });
      expect(visible(files)).toEqual([]);
    },
  );

  test("more bytes than are allowed, or than there is memory for, are refused", async () => {
    const { registry, files } = await openRegistry({ limits: { maxResidentBytes: 4096 } });
    await expect(registry.install({ directory: fixture }, { ...shared, maxBytes: 1000 })).rejects.toMatchObject({
      code: "PAYLOAD_TOO_LARGE",
    });
    await expect(registry.install({ directory: fixture }, shared)).rejects.toMatchObject({ code: "ADAPTER_TOO_LARGE" });
    expect([...visible(files), ...drafts(files)]).toEqual([]);
  });

  test("a directory outside of the one allowed is refused, by name or by link", async () => {
    const { registry } = await openRegistry();
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
    const { registry, files, rows } = await openRegistry({ limits: { graceMs: 0 } });
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
    const { registry, rows } = await openRegistry();
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
    const { registry } = await openRegistry();
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
    const { registry, forgotten } = await openRegistry();
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
    const { registry, forgotten } = await openRegistry({ limits: { removeTimeoutMs: 20 } });
    const record = await registry.install({ directory: fixture }, shared);
    const leases = await Promise.all(Array.from({ length: 8 }, () => registry.lease(record)));
    expect(registry.stats).toMatchObject({ loads: 1, resident: 1 });
    expect(new Set(leases.map(({ adapter }) => adapter)).size).toBe(1);
    expect(await registry.remove(null, "a")).toMatchObject({ inFlight: 8 });
    await expect(registry.resolve({ tenant: "t" }, "a")).rejects.toMatchObject({ code: "MODEL_NOT_FOUND" });
    const { adapter } = leases[0]!;
    const tensors = [...adapter.tensors.values()];
    for (const lease of leases) {
      expect(forgotten).toEqual([]);
      lease[Symbol.dispose]();
    }
    expect(forgotten).toEqual([adapter]);
    expect(tensors.length).toBeGreaterThan(0);
    expect(tensors.every((tensor) => tensor.disposed)).toBe(true);
    expect(adapter.disposed).toBe(true);
    expect(registry.stats).toMatchObject({ resident: 0, residentBytes: 0 });
  });

  test("removing waits for requests, and ends with the last one", async () => {
    const { registry } = await openRegistry();
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
    const { registry, files } = await openRegistry({ limits: { graceMs: 0 } });
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

test("with the database: owners, grants and what a tenant may store", async () => {
  await using store = await openStore({ memory: true });
  await store.tenants.create({ id: "ann", limits: { maxAdapters: 1 } });
  await store.tenants.create({ id: "bob" });
  const { registry, files } = await openRegistry({ adapters: store.adapters, limits: { graceMs: 0 } });
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

test("an adapter installed for other weights of the same shapes is told to the log, once", async () => {
  const rows = new Rows();
  const { registry } = await openRegistry({ adapters: rows, backboneDigest: "one" });
  const record = await registry.install({ directory: fixture }, shared);
  const warnings: object[] = [];
  const log = { info() {}, warn: (fields: object) => void warnings.push(fields) };
  for (const backboneDigest of ["one", "two"]) {
    const later = await openRegistry({ adapters: rows, directory: temporary(), backboneDigest, log });
    await later.registry.install({ directory: fixture }, { owner: "t", name: "own" });
    for (let i = 0; i < 2; i++) await later.registry.load(record);
    await later.registry.load((await rows.get("t", "own"))!);
  }
  expect(warnings).toEqual([{ adapter: "a", backbone: "one" }]);
});
