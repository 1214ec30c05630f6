/** @file Loading backbones: weights as on disk, one clear error for everything wrong, int4, random weights, digests. */
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { float16Value, InputError } from "../base/index.ts";
import type { Tensor } from "../runtime/index.ts";
import { Backbone } from "./backbone.ts";
import { dequantize, quantize } from "./quantize.ts";
import { ropeTables } from "./rope.ts";
import { readSafetensors, type StoredTensor, writeSafetensors } from "./safetensors.ts";

const TINY = "assets/tiny-llama";
const BACKBONES = "test/fixtures/backbones";
const EMBEDDING = "model.embed_tokens.weight";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "backbone-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

let copies = 0;
/** A copy of a small checkpoint that a test may damage. */
function copyOf(source: string): string {
  const path = join(directory, `copy-${copies++}`);
  cpSync(source, path, { recursive: true });
  return path;
}

/** A copy of llama-tied with its tensors edited. */
function edited(edit: (tensors: Map<string, StoredTensor>) => void): string {
  const path = copyOf(`${BACKBONES}/llama-tied`);
  const file = join(path, "model.safetensors");
  const { tensors, metadata } = readSafetensors(file);
  edit(tensors);
  writeSafetensors(file, tensors, metadata);
  return path;
}

async function errorOf(path: string): Promise<InputError> {
  try {
    (await Backbone.load(path)).dispose();
  } catch (error) {
    expect(error).toBeInstanceOf(InputError);
    expect((error as InputError).message).not.toContain("\n");
    return error as InputError;
  }
  throw new Error("loaded without an error");
}

const floats = (tensor: Tensor | undefined): Float32Array => tensor!.data as Float32Array;

function contents(backbone: Backbone): Map<string, string> {
  const entries = [...backbone.initializers()].map(([name, tensor]) => {
    const { buffer, byteOffset, byteLength } = tensor.data;
    return [name, Buffer.from(buffer, byteOffset, byteLength).toString("base64")] as const;
  });
  return new Map(entries.sort());
}

describe("float32", () => {
  test("every weight of the file, bfloat16 widened, under its own name and shape", async () => {
    using backbone = await Backbone.load(TINY);
    const { tensors } = readSafetensors(join(TINY, "model.safetensors"));
    const weights = backbone.initializers();
    for (const [name, { shape, data }] of tensors) {
      const loaded = weights.get(name)!;
      expect([loaded.dtype, loaded.shape]).toEqual(["float32", shape]);
      const bits = new Uint32Array(floats(loaded).buffer, floats(loaded).byteOffset, data.length);
      expect(Buffer.from(bits.map((value) => value >>> 16)).equals(Buffer.from(data as Uint16Array))).toBe(true);
      expect(bits.every((value) => (value & 0xffff) === 0)).toBe(true);
    }
    const tables = ropeTables(backbone.config);
    expect(weights.size).toBe(tensors.size + tables.size);
    expect(backbone.sites).toHaveLength(42);
    expect(backbone.sites[8]).toEqual({
      path: "model.layers.1.self_attn.k_proj",
      layer: 1,
      module: "k_proj",
      inFeatures: 192,
      outFeatures: 96,
      readsBlockInput: true,
    });
    // Every site is a weight of the shape it says.
    for (const { path, outFeatures, inFeatures } of backbone.sites) {
      expect(weights.get(`${path}.weight`)!.shape).toEqual([outFeatures, inFeatures]);
    }
  });

  test.each(readdirSync(BACKBONES))("%s loads", async (name) => {
    using backbone = await Backbone.load(join(BACKBONES, name));
    expect(backbone.initializers().has("lm_head.weight")).toBe(!backbone.config.tieWordEmbeddings);
  });

  test("shards give what one file gives, and the same digest", async () => {
    const path = copyOf(`${BACKBONES}/llama-untied`);
    using sharded = await Backbone.load(path);
    const all = new Map<string, StoredTensor>();
    for (const file of readdirSync(path).filter((name) => name.endsWith(".safetensors"))) {
      for (const [name, tensor] of readSafetensors(join(path, file)).tensors) all.set(name, tensor);
      rmSync(join(path, file));
    }
    rmSync(join(path, "model.safetensors.index.json"));
    writeSafetensors(join(path, "model.safetensors"), all);
    using single = await Backbone.load(path);
    expect(contents(single)).toEqual(contents(sharded));
    expect(single.digest).toBe(sharded.digest);
  });

  test("the digest follows the numbers: one bit of a weight, or the config, but not special tokens", async () => {
    using plain = await Backbone.load(`${BACKBONES}/llama-tied`);
    expect(plain.digest).toMatch(/^[0-9a-f]{64}$/);
    using changed = await Backbone.load(
      edited((tensors) => {
        const data = tensors.get("model.norm.weight")!.data as Float32Array;
        new Uint32Array(data.buffer, data.byteOffset)[0]! ^= 1;
      }),
    );
    expect(changed.digest).not.toBe(plain.digest);
    // The same bytes under another dtype are other numbers.
    const retyped = (dtype: "float16" | "bfloat16") =>
      edited((tensors) => {
        tensors.set("model.norm.weight", { dtype, shape: [32], data: new Uint16Array(32).fill(0x3c00) });
      });
    using half = await Backbone.load(retyped("float16"));
    using brain = await Backbone.load(retyped("bfloat16"));
    expect(half.digest).not.toBe(brain.digest);
    const path = copyOf(`${BACKBONES}/llama-tied`);
    const file = join(path, "config.json");
    const config = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    writeFileSync(file, JSON.stringify({ ...config, pad_token_id: 5 }));
    using tokens = await Backbone.load(path);
    expect(tokens.digest).toBe(plain.digest);
    writeFileSync(file, JSON.stringify({ ...config, rms_norm_eps: 0.5 }));
    using epsilon = await Backbone.load(path);
    expect(epsilon.digest).not.toBe(plain.digest);
  });
});

describe("int4", () => {
  test("linear weights and a head are quantised, tables for lookup and norms are not", async () => {
    using float = await Backbone.load(TINY);
    using backbone = await Backbone.load(TINY, { weights: "int4" });
    const weights = backbone.initializers();
    expect(backbone.digest).toBe(float.digest);
    expect(backbone.byteLength).toBeLessThan(0.6 * float.byteLength);
    expect([...floats(weights.get(EMBEDDING))]).toEqual([...floats(float.initializers().get(EMBEDDING))]);
    expect(weights.get("model.norm.weight")!.dtype).toBe("float32");
    const matrices = [...backbone.sites.map(({ path }) => `${path}.weight`), "lm_head.weight"];
    for (const name of matrices) {
      expect(weights.has(name)).toBe(false);
      const original = float.initializers().get(name === "lm_head.weight" ? EMBEDDING : name)!;
      const [N, K] = original.shape as [number, number];
      const expected = quantize(floats(original), N, K);
      const levels = weights.get(`${name}.q4`)!;
      expect([levels.dtype, levels.shape]).toEqual(["uint8", [N, K / 32, 16]]);
      expect(Buffer.compare(levels.data as Uint8Array, expected.quantized)).toBe(0);
      expect(weights.get(`${name}.scales`)!.data).toEqual(expected.scales);
    }
  });

  test("blocks of another size, and rows that are no whole number of blocks", async () => {
    using backbone = await Backbone.load(`${BACKBONES}/llama-untied`, { weights: "int4", blockSize: 64 });
    const { tensors } = readSafetensors(`${BACKBONES}/llama-untied/model-00001-of-00003.safetensors`);
    const name = [...tensors.keys()].find((key) => key.endsWith("q_proj.weight"))!;
    const [N, K] = tensors.get(name)!.shape as [number, number];
    expect(K).toBe(32);
    const levels = backbone.initializers().get(`${name}.q4`)!;
    expect(levels.shape).toEqual([N, 1, 32]);
    const scales = backbone.initializers().get(`${name}.scales`)!.data as Uint16Array;
    const weight = tensors.get(name)!.data as Float32Array;
    const back = dequantize({
      bits: 4,
      blockSize: 64,
      outFeatures: N,
      inFeatures: K,
      quantized: levels.data as Uint8Array,
      scales,
    });
    for (let i = 0; i < weight.length; i++) {
      expect(Math.abs(weight[i]! - back[i]!)).toBeLessThan(1.5 * Math.abs(float16Value(scales[Math.floor(i / K)]!)));
    }
  });

  test("a weight that is not finite is named", async () => {
    const path = edited((tensors) => {
      (tensors.get("model.layers.1.mlp.up_proj.weight")!.data as Float32Array)[40] = Number.NaN;
    });
    const load = Backbone.load(path, { weights: "int4" });
    await expect(load).rejects.toThrow(/model.layers.1.mlp.up_proj.weight: row 1 .* not finite/);
  });
});

describe("what is wrong is said in one line", () => {
  test("missing, superfluous, ill-shaped and ill-typed tensors, all at once", async () => {
    const error = await errorOf(
      edited((tensors) => {
        tensors.delete("model.layers.0.self_attn.q_proj.weight");
        tensors.set("model.layers.0.self_attn.q_proj.bias", tensors.get("model.norm.weight")!);
        const norm = tensors.get("model.norm.weight")!;
        tensors.set("model.norm.weight", { ...norm, shape: [1, ...norm.shape] });
        const down = tensors.get("model.layers.1.mlp.down_proj.weight")!;
        const integers = new Int8Array(down.data.length);
        tensors.set("model.layers.1.mlp.down_proj.weight", { dtype: "int8", shape: down.shape, data: integers });
      }),
    );
    expect(error.problems).toEqual([
      "model.layers.0.self_attn.q_proj.weight [32, 32] is missing",
      "model.layers.1.mlp.down_proj.weight is I8; weights may be F32, F16, BF16, F64",
      "model.norm.weight is [1, 32], the config asks for [32]",
      "model.layers.0.self_attn.q_proj.bias is not a weight of this architecture",
    ]);
  });

  test("known extras do no harm: rotary frequencies, the table under the name of a tied head", async () => {
    const path = edited((tensors) => {
      tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", tensors.get("model.norm.weight")!);
      tensors.set("lm_head.weight", tensors.get(EMBEDDING)!);
    });
    using plain = await Backbone.load(`${BACKBONES}/llama-tied`);
    using backbone = await Backbone.load(path);
    expect(contents(backbone)).toEqual(contents(plain));
    expect(backbone.digest).toBe(plain.digest);
  });

  test("missing files and truncated weights", async () => {
    expect((await errorOf(join(directory, "none"))).message).toMatch(/no such model directory/);
    const path = copyOf(`${BACKBONES}/llama-tied`);
    truncateSync(join(path, "model.safetensors"), 5000);
    expect((await errorOf(path)).message).toMatch(/model.safetensors: .*truncated/);
    rmSync(join(path, "model.safetensors"));
    expect((await errorOf(path)).message).toMatch(/has neither model.safetensors nor model.safetensors.index.json/);
    writeFileSync(join(path, "pytorch_model.bin"), "");
    expect((await errorOf(path)).message).toMatch(/as pickle \(pytorch_model.bin\).*save_pretrained/);
    rmSync(join(path, "config.json"));
    expect((await errorOf(path)).message).toMatch(/has no config.json/);
  });

  test("an index that lies", async () => {
    const path = copyOf(`${BACKBONES}/llama-untied`);
    const file = join(path, "model.safetensors.index.json");
    const index = JSON.parse(readFileSync(file, "utf8")) as { weight_map: Record<string, string> };
    const write = (change: Record<string, string>) =>
      writeFileSync(file, JSON.stringify({ weight_map: { ...index.weight_map, ...change } }));
    for (const outside of ["../evil.safetensors", "/etc/passwd", "a\\b.safetensors", "pytorch_model.bin"]) {
      write({ "model.norm.weight": outside });
      expect((await errorOf(path)).message).toMatch(/not a file of this directory/);
    }
    write({ "model.norm.weight": "model-00009-of-00003.safetensors", extra: "model-00008-of-00003.safetensors" });
    expect((await errorOf(path)).problems).toEqual([
      "the shard model-00008-of-00003.safetensors is missing",
      "the shard model-00009-of-00003.safetensors is missing",
    ]);
    write({ extra: "model-00001-of-00003.safetensors" });
    expect((await errorOf(path)).problems).toEqual(["extra is not in model-00001-of-00003.safetensors"]);
    const [name, shard] = Object.entries(index.weight_map)[0]!;
    const other = Object.values(index.weight_map).find((value) => value !== shard)!;
    write({ [name]: other });
    expect((await errorOf(path)).problems).toEqual([`${name} is not in ${other}`]);
    cpSync(join(path, "model-00001-of-00003.safetensors"), join(path, "again.safetensors"));
    write({ "model.norm.weight": "again.safetensors" });
    expect((await errorOf(path)).message).toMatch(/is in more than one shard/);
    writeFileSync(file, "{}");
    expect((await errorOf(path)).message).toMatch(/weight_map/);
  });
});

describe("random weights", () => {
  const config = { ...Backbone.shapes["smollm2-135m"], numLayers: 1, vocabSize: 256 };

  test.each(["float32", "int8", "int4"] as const)(
    "%s: the seed decides, the moments are those of an initialised model",
    (form) => {
      using one = Backbone.random(config, { weights: form, seed: 7 });
      using same = Backbone.random(config, { weights: form, seed: 7 });
      using other = Backbone.random(config, { weights: form, seed: 8 });
      expect(contents(one)).toEqual(contents(same));
      expect([one.digest === same.digest, one.digest === other.digest]).toEqual([true, false]);
      const name = "model.layers.0.mlp.up_proj.weight";
      const weights = one.initializers();
      const shape = { outFeatures: 1536, inFeatures: 576 };
      const values =
        form === "float32"
          ? floats(weights.get(name))
          : dequantize({
              bits: form === "int8" ? 8 : 4,
              blockSize: 32,
              ...shape,
              quantized: weights.get(`${name}.${form === "int8" ? "q8" : "q4"}`)!.data as Uint8Array,
              scales: weights.get(`${name}.scales`)!.data as Uint16Array,
            });
      expect(values).toHaveLength(1536 * 576);
      const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
      const variance = values.reduce((sum, x) => sum + x * x, 0) / values.length - mean ** 2;
      expect(Math.abs(mean)).toBeLessThan(2e-4);
      expect(Math.sqrt(variance)).toBeCloseTo(0.02, 3);
      expect(floats(weights.get("model.norm.weight")).every((x) => x === 1)).toBe(true);
      expect(contents(other).get(EMBEDDING)).not.toBe(contents(one).get(EMBEDDING));
    },
  );

  test("the same initializers as a loaded model has", async () => {
    for (const weights of ["float32", "int8", "int4"] as const) {
      using loaded = await Backbone.load(TINY, { weights });
      using random = Backbone.random(loaded.config, { weights });
      const shapes = (backbone: Backbone) =>
        Object.fromEntries([...backbone.initializers()].map(([name, { dtype, shape }]) => [name, [dtype, ...shape]]));
      expect(shapes(random)).toEqual(shapes(loaded));
    }
  });

  test("there is no tokenizer, and the error says so", async () => {
    using random = Backbone.random(config);
    expect(() => random.tokenizer).toThrow(/random weights and no tokenizer/);
    expect(random.hasTokenizer).toBe(false);
    using loaded = await Backbone.load(TINY);
    expect(loaded.hasTokenizer).toBe(true);
    expect(loaded.tokenizer).toBe(loaded.tokenizer);
    expect(loaded.tokenizer.eosTokenIds).toEqual([0]);
    const copy = copyOf(TINY);
    rmSync(join(copy, "tokenizer.json"));
    using bare = await Backbone.load(copy);
    expect(bare.hasTokenizer).toBe(false);
    expect(() => bare.tokenizer).toThrow(/tokenizer\.json/);
  });
});

test("dispose releases every weight", async () => {
  const backbone = await Backbone.load(TINY);
  const tensor = backbone.initializers().get("model.norm.weight")!;
  backbone.dispose();
  backbone.dispose();
  expect(() => tensor.data).toThrow();
  expect(backbone.byteLength).toBe(0);
});
