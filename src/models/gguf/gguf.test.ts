/** @file GGUF files against llama.cpp's own Python package: metadata, every block type, names and order of weights, lossless int4 and int8. */
import { spawnSync } from "node:child_process";
import {
  closeSync,
  copyFileSync,
  existsSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InputError } from "../../base/index.ts";
import { Backbone } from "../backbone.ts";
import { readBackboneConfig } from "../config-file.ts";
import { quantizedNames, type Site } from "../forward.ts";
import { dequantize } from "../quantize.ts";
import { readSafetensors } from "../safetensors.ts";
import { DEQUANTIZERS } from "./dequantize.ts";
import { type GgufTensor, readGgufHeader } from "./header.ts";
import { GgufModel } from "./model.ts";
import { ggufModule, storedRow } from "./names.ts";
import { type GgufTensorToWrite, type GgufValue, writeGguf } from "./write.ts";

const FILES = "test/fixtures/gguf";
const BACKBONES = "test/fixtures/backbones";

let scratch: string;
beforeAll(() => {
  scratch = mkdtempSync(join(tmpdir(), "gguf-"));
});
afterAll(() => rmSync(scratch, { recursive: true }));

function errorOf(act: () => unknown): InputError {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(InputError);
    return error as InputError;
  }
  throw new Error("no error");
}

const bitsOf = (values: Float32Array) => new Uint32Array(values.slice().buffer);

describe("header", () => {
  test("a value of every metadata type", () => {
    using model = GgufModel.open(`${FILES}/metadata.gguf`);
    const own = [...model.metadata].filter(([key]) => key.startsWith("t."));
    expect(Object.fromEntries(own.map(([key, value]) => [key.slice(2), value]))).toEqual({
      uint8: 200,
      int8: -100,
      uint16: 60000,
      int16: -30000,
      uint32: 4000000000,
      int32: -2000000000,
      float32: Math.fround(0.1),
      uint64: 2n ** 64n - 1n,
      int64: -(2n ** 53n),
      float64: 0.1,
      bool: true,
      string: "Grüße, 世界 🌍",
      strings: ["a", "", "ß"],
      integers: Int32Array.of(1, -2, 3),
      floats: Float32Array.of(0.5, -1.5),
      bools: [true, false],
      bytes: [1, 255],
      wide: [2 ** 40, 1],
    });
  });

  test("the version before, 2, is read alike; version 1 and big-endian files are refused", () => {
    const bytes = readFileSync(`${FILES}/llama-gqa-q4_0.gguf`);
    const withVersion = (version: number): string => {
      const path = join(scratch, `v${version}.gguf`);
      const copy = Buffer.from(bytes);
      copy.writeUInt32LE(version, 4);
      writeFileSync(path, copy);
      return path;
    };
    expect(readBackboneConfig(withVersion(2))).toEqual(readBackboneConfig(`${FILES}/llama-gqa-q4_0.gguf`));
    expect(errorOf(() => GgufModel.open(withVersion(1))).message).toContain("version 1 is not supported");
    expect(errorOf(() => GgufModel.open(withVersion(0x03000000))).message).toContain("big-endian");
  });

  test("a file cut anywhere is refused", () => {
    const bytes = readFileSync(`${FILES}/llama-gqa-q4_0.gguf`);
    const path = join(scratch, "cut.gguf");
    for (const length of [0, 3, 23, 24, 100, 1000, 5000, bytes.length - 33]) {
      writeFileSync(path, bytes.subarray(0, length));
      expect(errorOf(() => GgufModel.open(path)).code).toBe("GGUF_INVALID");
    }
  });

  test("unknown architectures and adapters are told by name", () => {
    const bytes = readFileSync(`${FILES}/llama-gqa-q4_0.gguf`);
    const path = join(scratch, "other.gguf");
    const at = bytes.indexOf("general.architecture") + "general.architecture".length + 4 + 8;
    expect(bytes.toString("utf8", at, at + 5)).toBe("llama");
    bytes.write("mamba", at);
    writeFileSync(path, bytes);
    const error = errorOf(() => readBackboneConfig(path));
    expect([error.code, error.message]).toEqual([
      "CONFIG_UNSUPPORTED",
      expect.stringContaining('general.architecture is "mamba", not one of llama, qwen2'),
    ]);
  });
});

describe("blocks", () => {
  const { tensors } = readSafetensors(`${FILES}/blocks.safetensors`);
  test.each(Object.keys(DEQUANTIZERS))("%s: the reference's float32 numbers to the bit", (type) => {
    using model = GgufModel.open(`${FILES}/blocks.gguf`);
    const wanted = tensors.get(type)!;
    expect(model.tensors.get(type)).toMatchObject({ shape: [3, 512], storedDType: type });
    const all = model.readFloat32(type, new Float32Array(3 * 512));
    expect(bitsOf(all)).toEqual(bitsOf(wanted.data as Float32Array));
    // In pieces of whole rows, too, and with every stored byte seen once.
    const rows = [1, 2].map((row) => model.readFloat32(type, new Float32Array(512), 512 * row));
    expect(bitsOf(rows[1]!)).toEqual(bitsOf(all.subarray(1024)));
    expect(bitsOf(rows[0]!)).toEqual(bitsOf(all.subarray(512, 1024)));
  });

  test("every type has a reference", () => {
    expect([...tensors.keys()].sort()).toEqual(Object.keys(DEQUANTIZERS).sort());
  });
});

test("rows of permuted heads: the converter's own permutation, undone", () => {
  const heads = 3;
  const headRows = 8;
  // convert_hf_to_gguf.py: reshape(heads, 2, headRows / 2).swapaxes(1, 2)
  const stored: number[] = [];
  for (let head = 0; head < heads; head++) {
    for (let i = 0; i < headRows / 2; i++) for (const half of [0, 1]) stored.push(head * headRows + half * 4 + i);
  }
  expect(stored).not.toEqual([...stored].sort((a, b) => a - b));
  for (let row = 0; row < heads * headRows; row++) expect(stored[storedRow(row, headRows)]).toBe(row);
});

describe("models", () => {
  test.each([
    ["llama-gqa-f32", "llama-gqa"],
    ["llama-headdim-bf16", "llama-headdim"],
  ])("%s: config, weights and digest of the checkpoint it was made of", async (file, source) => {
    using model = await Backbone.load(`${FILES}/${file}.gguf`);
    using wanted = await Backbone.load(`${BACKBONES}/${source}`);
    expect(model.config).toEqual(wanted.config);
    for (const [name, tensor] of wanted.initializers()) {
      expect(model.initializers().get(name)!.data, name).toEqual(tensor.data);
    }
    expect([...model.initializers().keys()].sort()).toEqual([...wanted.initializers().keys()].sort());
    if (file.endsWith("f32")) expect(model.digest).toBe(wanted.digest);
  });

  test.each([
    ["llama-gqa-q4_0", "int4"],
    ["llama-gqa-q4_0", "int8"],
    ["llama-gqa-q8_0", "int8"],
  ] as const)("%s as %s: the same weights, nothing quantised anew", async (file, kind) => {
    using floats = await Backbone.load(`${FILES}/${file}.gguf`);
    using packed = await Backbone.load(`${FILES}/${file}.gguf`, { weights: kind });
    expect(packed.sites).toHaveLength(21);
    for (const { path, inFeatures, outFeatures } of packed.sites) {
      const names = quantizedNames(`${path}.weight`, kind);
      const values = dequantize({
        bits: kind === "int4" ? 4 : 8,
        blockSize: 32,
        outFeatures,
        inFeatures,
        quantized: packed.initializers().get(names.quantized)!.data as Uint8Array,
        scales: packed.initializers().get(names.scales)!.data as Uint16Array,
      });
      const wanted = floats.initializers().get(`${path}.weight`)!.data as Float32Array;
      expect(
        values.every((value, i) => value === wanted[i]),
        path,
      ).toBe(true);
    }
    expect(packed.digest).toBe(floats.digest);
  });

  test("what a file lacks or has too much is listed by the checkpoint's names", async () => {
    const path = join(scratch, "renamed.gguf");
    const bytes = readFileSync(`${FILES}/llama-gqa-q4_0.gguf`);
    bytes.write("blk.1.attn_x.weight", bytes.indexOf("blk.1.attn_k.weight"));
    writeFileSync(path, bytes);
    const error = await Backbone.load(path).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toMatchObject({
      code: "CHECKPOINT_INVALID",
      problems: [
        "model.layers.1.self_attn.k_proj.weight [16, 32] is missing",
        "blk.1.attn_x.weight is not a weight of this architecture",
      ],
    });
  });

  test("of a split model every part is looked for", () => {
    const path = join(scratch, "model-00001-of-00002.gguf");
    copyFileSync(`${FILES}/llama-gqa-q4_0.gguf`, path);
    expect(errorOf(() => GgufModel.open(path)).message).toContain("model-00002-of-00002.gguf is missing");
  });

  test("a model in two files is the model in one, whichever of them is named", async () => {
    using whole = GgufModel.open(`${FILES}/llama-gqa-f32.gguf`);
    const tensors = [...whole.tensors].map(([name, { shape, tensor }]): GgufTensorToWrite => {
      const size = shape.reduce((product, dimension) => product * dimension, 1);
      const values = () => {
        const read = whole.readFloat32(name, new Float32Array(size));
        const moved = ggufModule({ path: name.replace(/\.weight$/, "") } as Site, config)?.storedRow;
        if (!moved) return read;
        const stored = new Float32Array(size);
        const columns = shape[1]!;
        for (let row = 0; row < shape[0]!; row++) {
          stored.set(read.subarray(row * columns, (row + 1) * columns), moved(row) * columns);
        }
        return stored;
      };
      return { name: tensor.name, shape, type: "F32", values };
    });
    const config = readBackboneConfig(`${FILES}/llama-gqa-f32.gguf`);
    const settings = (part: number) =>
      new Map<string, GgufValue>([
        ["general.architecture", "llama"],
        ["split.no", { uint32: part }],
        ["split.count", { uint32: 2 }],
        ["llama.context_length", { uint32: config.maxPositions }],
        ["llama.embedding_length", { uint32: config.hiddenSize }],
        ["llama.block_count", { uint32: config.numLayers }],
        ["llama.feed_forward_length", { uint32: config.intermediateSize }],
        ["llama.attention.head_count", { uint32: config.numHeads }],
        ["llama.attention.head_count_kv", { uint32: config.numKvHeads }],
        ["llama.attention.layer_norm_rms_epsilon", { float32: config.rmsNormEps }],
      ]);
    const paths = [1, 2].map((part) => join(scratch, `split-0000${part}-of-00002.gguf`));
    writeGguf(paths[0]!, settings(0), tensors.slice(0, 7));
    writeGguf(paths[1]!, settings(1), tensors.slice(7));
    using one = await Backbone.load(`${FILES}/llama-gqa-f32.gguf`);
    for (const path of paths) {
      using split = await Backbone.load(path);
      expect(split.digest).toBe(one.digest);
    }
    copyFileSync(paths[0]!, join(scratch, "alone.gguf"));
    expect(errorOf(() => GgufModel.open(join(scratch, "alone.gguf"))).message).toContain("is one of 2 parts");
  });

  test("blocks of every type are written as they are given; other sizes and types are refused", () => {
    const file = readFileSync(`${FILES}/blocks.gguf`);
    const bytesOf = (whole: Buffer, { begin, bytes }: GgufTensor) => whole.subarray(begin, begin + bytes);
    const headerOf = (path: string) => {
      const handle = openSync(path, "r");
      try {
        return readGgufHeader(handle, fstatSync(handle).size, path);
      } finally {
        closeSync(handle);
      }
    };
    const { tensors } = headerOf(`${FILES}/blocks.gguf`);
    expect(tensors.size).toBeGreaterThan(10);
    const toWrite = [...tensors.values()].map((tensor): GgufTensorToWrite => {
      const { name, shape, type } = tensor;
      return { name, shape, type: type.name, bytes: () => bytesOf(file, tensor) };
    });
    const path = join(scratch, "blocks.gguf");
    // What a process that was killed while it wrote has left, and what one that lives is writing.
    const dead = join(scratch, `.blocks.gguf.${spawnSync(process.execPath, ["--version"]).pid}.0123abcd.tmp`);
    const alive = join(scratch, `.blocks.gguf.${process.ppid}.0123abcd.tmp`);
    for (const draft of [dead, alive]) writeFileSync(draft, "GGUF");
    writeGguf(path, new Map(), toWrite);
    expect([existsSync(dead), existsSync(alive)]).toEqual([false, true]);
    const written = readFileSync(path);
    const found = headerOf(path).tensors;
    expect([...found.keys()]).toEqual([...tensors.keys()]);
    for (const [name, tensor] of found) {
      expect(tensor).toMatchObject({ shape: tensors.get(name)!.shape, type: tensors.get(name)!.type });
      expect(bytesOf(written, tensor).equals(bytesOf(file, tensors.get(name)!))).toBe(true);
    }
    const write = (tensor: GgufTensorToWrite) => () => writeGguf(join(scratch, "bad.gguf"), new Map(), [tensor]);
    const bytes = () => new Uint8Array(18);
    expect(write({ name: "a", shape: [2, 32], type: "Q4_0", bytes })).toThrow("has 18 bytes instead of 36");
    expect(write({ name: "a", shape: [1, 16], type: "Q4_0", bytes })).toThrow("rows of Q4_0 are multiples of 32");
    expect(write({ name: "a", shape: [1], type: "Q3_9", bytes })).toThrow("no tensor type Q3_9");
  });

  test("a directory that only has a GGUF file says which file to name", () => {
    copyFileSync(`${FILES}/llama-gqa-q4_0.gguf`, join(scratch, "a.gguf"));
    expect(errorOf(() => readBackboneConfig(scratch)).message).toMatch(/name the GGUF file itself, .*\.gguf$/);
  });
});
