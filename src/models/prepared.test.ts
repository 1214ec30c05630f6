/** @file Prepared weights: the very numbers of loading, mapped; found again, shared by copies, made anew when damaged. */
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs"; // biome-ignore format: one line
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { InputError } from "../base/index.ts";
import { Backbone } from "./backbone.ts";
import { prepareModel } from "./prepare.ts";
import { PREPARED, verifyPrepared } from "./prepared.ts";
import { SafetensorsFile } from "./safetensors.ts";

const UNTIED = "test/fixtures/backbones/llama-untied";
const TINY = "assets/tiny-llama";
let root: string;
let number = 0;
let model: string;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "prepared-"));
});
afterAll(() => rmSync(root, { recursive: true }));
beforeEach(() => {
  number += 1;
  model = join(root, `model-${number}`);
  cpSync(UNTIED, model, { recursive: true });
  vi.stubEnv("MILORA_CACHE", join(root, `cache-${number}`));
});
afterEach(() => {
  vi.unstubAllEnvs();
});

function contents(backbone: Backbone): Map<string, [string, string]> {
  const entries = [...backbone.initializers()].map(([name, { dtype, shape, data }]) => {
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64");
    return [name, [`${dtype} ${shape}`, bytes]] as [string, [string, string]];
  });
  return new Map(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
}

const inode = (path: string) => statSync(path).ino;

describe("the cache", () => {
  test.each([
    ["float32", 32],
    ["int8", 32],
    ["int4", 32],
    ["int4", 64],
  ] as const)(
    "%s, blocks of %i: the same initializers as without, and nothing is read from the model",
    async (weights, blockSize) => {
      const shard = join(model, readdirSync(model).find((name) => name.endsWith(".safetensors"))!);
      utimesSync(shard, 1e9, 1e9); // whole seconds can be set again
      for (const source of [model, TINY]) {
        using plain = await Backbone.load(source, { weights, blockSize, cached: false });
        const { path, digest, reused } = await prepareModel(source, { weights, blockSize });
        expect([digest, reused]).toEqual([plain.digest, false]);
        using mapped = await Backbone.load(source, { weights, blockSize });
        expect(contents(mapped)).toEqual(contents(plain));
        expect(mapped.digest).toBe(plain.digest);
        expect(mapped.byteLength).toBe(plain.byteLength);
        expect((await verifyPrepared(path)).form).toEqual(plain.weights);
      }
      // The shard is garbage now, and its size and time are as before: only the prepared file can have been read.
      writeFileSync(shard, Buffer.alloc(statSync(shard).size));
      utimesSync(shard, 1e9, 1e9);
      (await Backbone.load(model, { weights, blockSize })).dispose();
      await expect(Backbone.load(model, { weights, blockSize, cached: false })).rejects.toThrow(InputError);
    },
  );

  test.runIf(process.platform === "linux")("pages are given back when a session has packed them", async () => {
    await prepareModel(model, { weights: "int4" });
    using mapped = await Backbone.load(model, { weights: "int4" });
    const data = [...mapped.initializers()].find(([name]) => name.endsWith(".q4"))![1].data as Uint8Array;
    const [stored] = data;
    data[0] = stored! ^ 1; // only in this process's copy of the page, which goes with the page
    expect(await mapped.whilePacking(Promise.resolve(7))).toBe(7);
    expect(data[0]).toBe(stored);
    data[0] = stored! ^ 1;
    await expect(mapped.whilePacking(Promise.reject(new Error("no session")))).rejects.toThrow("no session");
    expect(data[0]).toBe(stored);
  });

  test("a model that was prepared is not prepared again, and a copy of it shares the file", async () => {
    const first = await prepareModel(model, { weights: "int4" });
    const ino = inode(first.path);
    expect(await prepareModel(model, { weights: "int4" })).toEqual({ ...first, reused: true });
    const copy = `${model}-copy`;
    cpSync(model, copy, { recursive: true });
    expect(await prepareModel(copy, { weights: "int4" })).toEqual({ ...first, reused: true });
    expect(inode(first.path)).toBe(ino);
    expect((await prepareModel(model, { weights: "int8" })).path).not.toBe(first.path);
  });

  test("a model that has changed is read again", async () => {
    await prepareModel(model, { weights: "int4" });
    const config = join(model, "config.json");
    writeFileSync(config, readFileSync(config, "utf8").replace(/"rms_norm_eps": [^,]*/, '"rms_norm_eps": 0.25'));
    using plain = await Backbone.load(model, { weights: "int4", cached: false });
    using loaded = await Backbone.load(model, { weights: "int4" });
    expect(loaded.config.rmsNormEps).toBe(0.25);
    expect(loaded.digest).toBe(plain.digest);
  });

  test.each([
    ["cut", (path: string) => truncateSync(path, statSync(path).size - 100)],
    ["empty", (path: string) => truncateSync(path, 0)],
    ["another file", (path: string) => cpSync(join(TINY, "model.safetensors"), path)],
    [
      "a header that lies",
      (path: string) => writeFileSync(path, readFileSync(path, "latin1").replace('"U8"', '"I8"'), "latin1"),
    ],
  ])("a damaged file (%s) is made anew", async (_, damage) => {
    const { path } = await prepareModel(model, { weights: "int4" });
    const whole = readFileSync(path);
    damage(path);
    using plain = await Backbone.load(model, { weights: "int4", cached: false });
    using loaded = await Backbone.load(model, { weights: "int4" });
    expect(contents(loaded)).toEqual(contents(plain));
    expect(readFileSync(path).equals(whole)).toBe(true);
  });

  test("a changed number is found by verification", async () => {
    const { path } = await prepareModel(model, { weights: "int8" });
    const bytes = readFileSync(path);
    bytes[bytes.length - 5]! ^= 1;
    writeFileSync(path, bytes);
    await expect(verifyPrepared(path)).rejects.toThrow(/not those that were written/);
  });

  test("two at once: both succeed, and one whole file is there", async () => {
    const results = await Promise.all([1, 2, 3].map(() => prepareModel(model, { weights: "int4" })));
    expect(new Set(results.map(({ path }) => path)).size).toBe(1);
    const { path } = results[0]!;
    await verifyPrepared(path);
    expect(readdirSync(join(path, ".."))).toHaveLength(1);
  });

  test("a cache that cannot be written to is an error of its own", async () => {
    const file = join(root, `file-${number}`);
    writeFileSync(file, "");
    vi.stubEnv("MILORA_CACHE", file);
    await expect(prepareModel(model, { weights: "int4" })).rejects.toMatchObject({ code: "OUTPUT_UNWRITABLE" });
    (await Backbone.load(model, { weights: "int4" })).dispose();
  });

  test("the data are aligned", async () => {
    const { path } = await prepareModel(TINY, { weights: "int4" });
    using file = SafetensorsFile.open(path);
    for (const { begin } of file.entries.values()) expect((file.dataStart + begin) % 64).toBe(0);
    expect(file.entries.has("model.layers.0.self_attn.qkv_proj.weight.q4")).toBe(true);
    expect(file.entries.has("model.layers.0.self_attn.q_proj.weight.q4")).toBe(false);
  });
});

describe("a directory of its own", () => {
  test("is a model: its own form by default, tokenizer included, and no other form", async () => {
    const output = join(root, "own");
    await prepareModel(TINY, { weights: "int4", blockSize: 64, output });
    expect(readdirSync(output)).toEqual(expect.arrayContaining([PREPARED, "config.json", "tokenizer.json"]));
    expect(readdirSync(output)).not.toContain("model.safetensors");
    using plain = await Backbone.load(TINY, { weights: "int4", blockSize: 64 });
    using own = await Backbone.load(output);
    expect(contents(own)).toEqual(contents(plain));
    expect(own.tokenizer.encode("one two")).toEqual(plain.tokenizer.encode("one two"));
    await expect(Backbone.load(output, { weights: "int8" })).rejects.toThrow(/prepared as int4/);
    await expect(prepareModel(TINY, { output })).rejects.toThrow(/exists already/);
    await expect(prepareModel(output)).rejects.toThrow(/is prepared already/);
    const config = join(output, "config.json");
    writeFileSync(config, readFileSync(config, "utf8").replace(/"rope_theta": [^,]*/, '"rope_theta": 5000.0'));
    await expect(Backbone.load(output)).rejects.toThrow(/another config.json/);
  });

  test("whose numbers begin between two addresses at which there can be any is refused", async () => {
    const output = join(root, "shifted");
    await prepareModel(model, { output });
    const path = join(output, PREPARED);
    const bytes = readFileSync(path);
    const header = bytes.readBigUInt64LE(0);
    for (const more of [1, 2, 4]) {
      const size = Buffer.alloc(8);
      size.writeBigUInt64LE(header + BigInt(more));
      const end = 8 + Number(header);
      writeFileSync(path, Buffer.concat([size, bytes.subarray(8, end), Buffer.alloc(more, " "), bytes.subarray(end)]));
      const loaded = Backbone.load(output).then((backbone) => backbone[Symbol.dispose]());
      if (more < 4) await expect(loaded).rejects.toThrow(/begins between two numbers/);
      else await loaded;
    }
  });

  test.each(["llama-gqa-q4_0.gguf", "gemma2.gguf", "phi3.gguf"])("of a GGUF file: %s", async (name) => {
    const file = join("test/fixtures/gguf", name);
    const output = join(root, `own-${name}`);
    await prepareModel(file, { weights: "int4", output });
    using plain = await Backbone.load(file, { weights: "int4" });
    using own = await Backbone.load(output);
    expect(contents(own)).toEqual(contents(plain));
    expect(own.digest).toBe(plain.digest);
    await prepareModel(file, { weights: "int8" });
    using cached = await Backbone.load(file, { weights: "int8" });
    using loaded = await Backbone.load(file, { weights: "int8", cached: false });
    expect(contents(cached)).toEqual(contents(loaded));
  });
});
