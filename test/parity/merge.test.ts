/** @file Merged checkpoints: what transformers computes from them, their files and dtypes, and what cannot be merged. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Adapter, mergeAdapter, methodOf } from "../../src/methods/index.ts";
import { Backbone, readBackboneConfig, readSafetensors } from "../../src/models/index.ts";
import { distance, FIXTURES, fixture, pass } from "./support.ts";

interface Expected {
  readonly backbone: string;
  readonly adapter: string;
  readonly sequences: { readonly tokens: number[]; readonly logits: number[][] }[];
}

const TOLERANCE = 1e-4;
const backboneAt = (name: string) => join(FIXTURES, "backbones", name);
const logits = (backbone: Backbone, adapter: Adapter | undefined, tokens: number[]) =>
  pass(backbone, adapter, { tokens: [tokens], promptLengths: [tokens.length] }).logits;

let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "merge-"));
});
afterAll(() => rmSync(scratch, { recursive: true }));

/** LoRA on a few modules, all random. */
function randomAdapter(backbone: string, method = "lora"): Adapter {
  const config = readBackboneConfig(backboneAt(backbone));
  const adapter = Adapter.create(methodOf(method), { r: 2, target_modules: ["q_proj", "down_proj"] }, config, 3);
  for (const { key } of adapter.specs) adapter.values(key).set(adapter.values(key).map((_, i) => Math.sin(i) / 4));
  return adapter;
}

test.each(readdirSync(join(FIXTURES, "merged")))("%s: logits as transformers computes them", async (name) => {
  const expected = fixture<Expected>("merged", name, "expected.json");
  const source = join(FIXTURES, expected.backbone);
  using bare = await Backbone.load(source);
  using adapter = Adapter.load(join(FIXTURES, expected.adapter), bare.config);
  const output = join(scratch, name);
  await mergeAdapter(adapter, source, output, { dtype: "float32" });
  using merged = await Backbone.load(output);
  for (const { tokens, logits: wanted } of expected.sequences) {
    expect(distance(logits(merged, undefined, tokens), wanted.flat())).toBeLessThan(TOLERANCE);
    expect(distance(logits(bare, adapter, tokens), wanted.flat())).toBeLessThan(TOLERANCE);
    expect(distance(logits(bare, undefined, tokens), wanted.flat())).toBeGreaterThan(0.01);
  }
});

describe("files", () => {
  test("shards, their index and settings stay as they are; only the weights aimed at change", async () => {
    using adapter = randomAdapter("llama-untied");
    const [from, to] = [backboneAt("llama-untied"), join(scratch, "sharded")];
    const changed = await mergeAdapter(adapter, from, to);
    expect(readdirSync(to).sort()).toEqual(readdirSync(from).sort());
    expect(changed.every((name) => /(q|down)_proj\.weight$/.test(name))).toBe(true);
    const index = (directory: string) =>
      JSON.parse(readFileSync(join(directory, "model.safetensors.index.json"), "utf8")) as Record<string, object>;
    expect(index(to).weight_map).toEqual(index(from).weight_map);
    expect(index(to).metadata).toMatchObject({
      total_size: (index(from).metadata as { total_size: number }).total_size,
    });
    for (const shard of readdirSync(from).filter((name) => name.endsWith(".safetensors"))) {
      const [before, after] = [from, to].map((directory) => readSafetensors(join(directory, shard)).tensors);
      expect([...after!.keys()]).toEqual([...before!.keys()]);
      for (const [name, { data }] of before!) {
        expect(distance(after!.get(name)!.data as Float32Array, data as Float32Array) > 0).toBe(changed.includes(name));
      }
    }
  });

  test("a tokenizer comes along", async () => {
    const tiny = new URL("../../assets/tiny-llama", import.meta.url).pathname;
    const adapter = Adapter.create(methodOf("lora"), { r: 1, target_modules: ["k_proj"] }, readBackboneConfig(tiny), 3);
    using held = adapter;
    const output = join(scratch, "tiny");
    await mergeAdapter(held, tiny, output);
    using merged = await Backbone.load(output);
    expect(merged.tokenizer.encode("The cell").length).toBeGreaterThan(1);
    expect(existsSync(join(output, "README.md"))).toBe(false); // it describes the model as it was
  });

  test("nothing is left behind when it is ended in between, or fails", async () => {
    using adapter = randomAdapter("llama-gqa");
    const output = join(scratch, "ended");
    const end = new AbortController();
    const options = { signal: end.signal, onProgress: (done: number) => void (done === 3 && end.abort()) };
    await expect(mergeAdapter(adapter, backboneAt("llama-gqa"), output, options)).rejects.toThrow(/abort/);
    expect(readdirSync(scratch).filter((name) => name.includes("ended"))).toEqual([]);
  });
});

describe("shards and GGUF", () => {
  const tensorsOf = (directory: string) =>
    new Map(
      readdirSync(directory)
        .filter((name) => name.endsWith(".safetensors"))
        .flatMap((name) => [...readSafetensors(join(directory, name)).tensors]),
    );

  test("files of at most a size, with an index of them; the same tensors", async () => {
    using adapter = randomAdapter("llama-gqa");
    const [whole, sharded] = [join(scratch, "whole"), join(scratch, "in-shards")];
    await mergeAdapter(adapter, backboneAt("llama-gqa"), whole);
    await mergeAdapter(adapter, backboneAt("llama-gqa"), sharded, { maxShardSize: 40_000 });
    const files = readdirSync(sharded).filter((name) => name.endsWith(".safetensors"));
    expect(files.length).toBeGreaterThan(2);
    expect(files[0]).toBe(`model-00001-of-${String(files.length).padStart(5, "0")}.safetensors`);
    for (const file of files) {
      const { tensors } = readSafetensors(join(sharded, file));
      const bytes = [...tensors.values()].reduce((sum, { data }) => sum + data.byteLength, 0);
      expect(bytes).toBeLessThanOrEqual(40_000);
    }
    expect(new Map([...tensorsOf(sharded)].sort())).toEqual(new Map([...tensorsOf(whole)].sort()));
    using merged = await Backbone.load(sharded);
    using same = await Backbone.load(whole);
    expect(merged.digest).toBe(same.digest);
    // And back into one file.
    const one = join(scratch, "one");
    using other = randomAdapter("llama-untied");
    await mergeAdapter(other, backboneAt("llama-untied"), one, { maxShardSize: 1e9 });
    expect(readdirSync(one).filter((name) => name.startsWith("model"))).toEqual(["model.safetensors"]);
  });

  test.each([
    ["llama-gqa-f32", "float32"],
    ["llama-gqa-q4_0", "float32"],
    ["llama-headdim-bf16", "bfloat16"],
  ])("of a GGUF file, %s: a model directory with its config and tokenizer", async (name, dtype) => {
    const from = join(FIXTURES, "gguf", `${name}.gguf`);
    using bare = await Backbone.load(from);
    using adapter = Adapter.create(methodOf("lora"), { r: 2, target_modules: ["q_proj", "down_proj"] }, bare.config, 3);
    for (const { key } of adapter.specs) adapter.values(key).set(adapter.values(key).map((_, i) => Math.sin(i) / 4));
    const output = join(scratch, `from-${name}`);
    const changed = await mergeAdapter(adapter, from, output, { dtype: "float32" });
    expect(changed).toHaveLength(2 * bare.config.numLayers);
    using merged = await Backbone.load(output);
    expect(merged.config).toEqual(bare.config);
    const tokens = [1, 5, 9, 20];
    expect(distance(logits(merged, undefined, tokens), logits(bare, adapter, tokens))).toBeLessThan(TOLERANCE);
    expect(distance(logits(merged, undefined, tokens), logits(bare, undefined, tokens))).toBeGreaterThan(0.01);
    expect(merged.tokenizer.tokenToId("w7")).toBe(7);
    // Without --dtype weights are as the file has them, and those that were quantised float32.
    const kept = join(scratch, `kept-${name}`);
    await mergeAdapter(adapter, from, kept);
    expect(tensorsOf(kept).get("model.layers.0.mlp.up_proj.weight")!.dtype).toBe(dtype);
    expect(JSON.parse(readFileSync(join(kept, "config.json"), "utf8"))).toMatchObject({ dtype });
  });
});

describe("dtype", () => {
  test("as in the checkpoint: bfloat16, rounded once", async () => {
    using adapter = randomAdapter("llama-headdim");
    const [from, to] = [backboneAt("llama-headdim"), join(scratch, "bfloat16")];
    await mergeAdapter(adapter, from, to);
    const stored = [...readSafetensors(join(to, "model.safetensors")).tensors.values()];
    expect(new Set(stored.map(({ dtype }) => dtype))).toEqual(new Set(["bfloat16"]));
    using bare = await Backbone.load(from);
    using merged = await Backbone.load(to);
    const name = "model.layers.0.mlp.down_proj.weight";
    const values = (backbone: Backbone) => backbone.initializers().get(name)!.data as Float32Array;
    const difference = distance(values(merged), values(bare));
    expect(difference).toBeGreaterThan(0.01);
    const tokens = [1, 5, 9, 20];
    // Rounding to 8 bits of mantissa, no more.
    expect(distance(logits(merged, undefined, tokens), logits(bare, adapter, tokens))).toBeLessThan(0.1);
  });

  test("config.json stays as it is written but for the dtype: 5.0 is no 5 to transformers", async () => {
    const from = join(FIXTURES, "families", "gemma2");
    using adapter = Adapter.load(join(from, "lora"), readBackboneConfig(from));
    const text = (directory: string) => readFileSync(join(directory, "config.json"), "utf8");
    expect(text(from)).toContain('"final_logit_softcapping": 5.0,');
    await mergeAdapter(adapter, from, join(scratch, "literal"), { dtype: "float32" });
    expect(text(join(scratch, "literal"))).toBe(text(from).replace('"dtype": "bfloat16"', '"dtype": "float32"'));
    const gguf = join(FIXTURES, "gguf", "gemma2.gguf");
    using same = Adapter.load(join(from, "lora"), readBackboneConfig(gguf));
    await mergeAdapter(same, gguf, join(scratch, "literal-gguf"));
    expect(text(join(scratch, "literal-gguf"))).toMatch(/"rope_theta": 10000\.0,.*"final_logit_softcapping": 5\.0/s);
  });

  test("float32: exact, and config.json says so", async () => {
    using adapter = randomAdapter("llama-headdim");
    const [from, to] = [backboneAt("llama-headdim"), join(scratch, "float32")];
    await mergeAdapter(adapter, from, to, { dtype: "float32" });
    expect(JSON.parse(readFileSync(join(to, "config.json"), "utf8"))).toMatchObject({ dtype: "float32" });
    using bare = await Backbone.load(from);
    using merged = await Backbone.load(to);
    const tokens = [1, 5, 9, 20];
    expect(distance(logits(merged, undefined, tokens), logits(bare, adapter, tokens))).toBeLessThan(TOLERANCE);
  });
});

describe("refusals", () => {
  test.each([
    ["milora", /ADAPTER_NOT_MERGEABLE.*what it changes depends on the prompt/],
    ["bitfit", /ADAPTER_NOT_MERGEABLE.*what it adds is no change of a weight/],
  ])("%s", async (method, message) => {
    using adapter = Adapter.create(methodOf(method), {}, readBackboneConfig(backboneAt("llama-gqa")), 0);
    const merging = mergeAdapter(adapter, backboneAt("llama-gqa"), join(scratch, method));
    await expect(merging.catch((error) => Promise.reject(new Error(`${error.code} ${error.message}`)))).rejects.toThrow(
      message,
    );
  });

  test("another backbone, a directory that exists, numbers too large for float16", async () => {
    using adapter = randomAdapter("llama-gqa");
    const merge = (from: string, to: string) => mergeAdapter(adapter, from, to);
    await expect(merge(backboneAt("llama-tied"), join(scratch, "other"))).rejects.toMatchObject({
      code: "ADAPTER_MISMATCH",
    });
    await expect(merge(backboneAt("llama-gqa"), scratch)).rejects.toMatchObject({ code: "OUTPUT_EXISTS" });
    adapter.values(adapter.specs[0]!.key).fill(1e30);
    adapter.values(adapter.specs[1]!.key).fill(1e30);
    await expect(merge(backboneAt("llama-gqa"), join(scratch, "large"))).rejects.toMatchObject({
      code: "WEIGHT_NOT_FINITE",
    });
    expect(existsSync(join(scratch, "large"))).toBe(false);
  });
});
