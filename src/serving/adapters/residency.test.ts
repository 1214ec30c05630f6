/** @file Adapters in memory: who goes, who stays, who waits; damaged files; what a restart finds. */
import { execFileSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { Engine } from "../../generation/index.ts";
import { Adapter, methodOf } from "../../methods/index.ts";
import { Backbone } from "../../models/index.ts";
import { operators } from "../../runtime/index.ts";
import { HOST, signatureOf } from "./files.ts";
import type { AdapterRecord } from "./record.ts";
import type { AdapterRegistry } from "./registry.ts";
import { BACKBONE, backbone, drafts, fixture, flipByte, newAdapter, openRegistry, Rows } from "./testing.ts";

const shared = { owner: null, name: "a" };

describe("memory", () => {
  const bytesOf = async (registry: AdapterRegistry, record: AdapterRecord): Promise<number> => {
    await registry.load(record);
    return registry.residency().find(({ digest }) => digest === record.digest)!.bytes;
  };

  test("the least recently used go, the pinned stay, those in use stay", async () => {
    const { registry, forgotten } = await openRegistry({ limits: { maxResident: 2 } });
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
    const { registry } = await openRegistry({ limits: { maxResident: 1, leaseTimeoutMs: 50 } });
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
    const probe = await openRegistry();
    const small = await newAdapter(1);
    const large = await newAdapter(2, { r: 8 });
    const bytes = await bytesOf(probe.registry, await probe.registry.install({ directory: small }, shared));
    const { registry } = await openRegistry({ limits: { maxResidentBytes: 5 * bytes } });
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

  test.skipIf(operators() === undefined)(
    "what is held counts: of numbers that are packed, the packed ones",
    async () => {
      using weights = await Backbone.load(BACKBONE, { weights: "int4" });
      using engine = Engine.create(weights);
      using probe = Adapter.create(methodOf("lora"), { r: 32 }, backbone, 0);
      const tensors = probe.byteLength;
      const { registry } = await openRegistry({ engine, limits: { maxResidentBytes: 2 * tensors } });
      for (let i = 0; i < 4; i++) {
        const directory = await newAdapter(i, { r: 32 });
        await registry.load(await registry.install({ directory }, { owner: null, name: `n${i}` }));
      }
      expect(registry.stats).toMatchObject({ resident: 4, evictions: 0 });
      const { residentBytes } = registry.stats;
      expect(residentBytes).toBeGreaterThan(tensors); // int8 of four
      expect(residentBytes).toBeLessThan(1.6 * tensors);
      await registry[Symbol.asyncDispose]();
      expect(registry.stats.residentBytes).toBe(0);
    },
  );
});

describe("damage", () => {
  test("files that changed on disk fail their requests and no others, until they are installed again", async () => {
    const { registry, files } = await openRegistry();
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

  test("files that nobody has written to since are not hashed again", async () => {
    const { registry, rows, files } = await openRegistry();
    const record = await registry.install({ directory: fixture }, shared);
    const other = await registry.install({ directory: await newAdapter(1) }, { owner: null, name: "b" });
    const directory = join(files, record.digest);
    const restarted = async () => (await openRegistry({ directory: dirname(files), adapters: rows })).registry;
    const replace = () => {
      for (const file of ["adapter_config.json", "adapter_model.safetensors"]) {
        copyFileSync(join(files, other.digest, file), join(directory, file));
      }
    };
    await new Promise((resolve) => setTimeout(resolve, 30)); // a tick of the file system's clock
    await registry.load(record);
    expect(existsSync(join(directory, "checked"))).toBe(true);
    await registry.unload(record);
    replace();
    await expect(registry.lease(record)).rejects.toMatchObject({ code: "ADAPTER_CORRUPT" });
    writeFileSync(join(directory, "checked"), `${signatureOf(directory)}\n`);
    using lease = await (await restarted()).lease(record); // which hashing would have refused
    expect(lease.adapter.specs.length).toBeGreaterThan(0);
    replace();
    await expect((await restarted()).lease(record)).rejects.toMatchObject({ code: "ADAPTER_CORRUPT" });
  });

  test.each<[string, (directory: string) => void]>([
    ["a file is missing", (d) => rmSync(join(d, "adapter_model.safetensors"))],
    ["all are missing", (d) => rmSync(d, { recursive: true })],
    ["the config is empty", (d) => writeFileSync(join(d, "adapter_config.json"), "")],
    ["the header is overwritten", (d) => writeFileSync(join(d, "adapter_model.safetensors"), Buffer.alloc(100, 255))],
  ])("%s", async (_, damage) => {
    const { registry, files } = await openRegistry();
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

describe("a restart", () => {
  test("keeps what was installed and pinned, and clears what was not finished", async () => {
    const rows = new Rows();
    const before = await openRegistry({ adapters: rows });
    const { directory, files } = before;
    const a = await before.registry.install({ directory: fixture }, shared);
    const b = await before.registry.install({ directory: await newAdapter(1) }, { owner: "t", name: "b" });
    await before.registry.install({ directory: await newAdapter(2) }, { owner: "t", name: "c" });
    await before.registry.pin(a);
    await before.registry[Symbol.asyncDispose]();
    mkdirSync(join(files, ".drafts", "somewhere-else.1.abc.0"));
    const ended = execFileSync("sh", ["-c", "echo $$"], { encoding: "utf8" }).trim();
    for (const pid of [ended, process.pid]) mkdirSync(join(files, ".drafts", `${HOST}.${pid}.abc.0`));
    flipByte(join(files, b.digest, "adapter_model.safetensors"));
    const warnings: object[] = [];
    const log = { info() {}, warn: (fields: object) => void warnings.push(fields) };
    const { registry } = await openRegistry({ directory, adapters: rows, preload: ["t/b", "nothing"], log });
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
