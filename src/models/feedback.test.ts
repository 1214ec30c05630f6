/** @file Calibrated quantisation: the factors are those of the moments, and the outputs are closer than after rounding. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Random } from "../base/index.ts";
import { Backbone } from "./backbone.ts";
import { calibrationRows, moments } from "./calibrate.ts";
import { factorize, quantizeRowsFaithfully } from "./feedback.ts";
import { prepareModel } from "./prepare.ts";
import { readPreparedInfo } from "./prepared.ts";
import { dequantize, quantize, quantizedLayout } from "./quantize.ts";
import { SafetensorsFile } from "./safetensors.ts";

const TINY = "assets/tiny-llama";

/** Σ xᵀx of correlated inputs, which is what makes errors able to make up for each other. */
function correlated(width: number, seed: number): Float64Array {
  const random = new Random(seed);
  const h = new Float64Array(width * width);
  for (let n = 0; n < 4 * width; n++) {
    const common = random.normal();
    const x = Float64Array.from({ length: width }, (_, i) => random.normal() + common * Math.sin(i));
    for (let i = 0; i < width; i++) for (let j = 0; j < width; j++) h[i * width + j]! += x[i]! * x[j]!;
  }
  return h;
}

/** Σ over rows of e H eᵀ. */
function cost(h: Float64Array, a: Float32Array, b: Float32Array): number {
  const width = Math.sqrt(h.length);
  let total = 0;
  for (let start = 0; start < a.length; start += width) {
    const e = Float64Array.from({ length: width }, (_, i) => a[start + i]! - b[start + i]!);
    for (let i = 0; i < width; i++) for (let j = 0; j < width; j++) total += e[i]! * h[i * width + j]! * e[j]!;
  }
  return total;
}

describe("factorize", () => {
  test("M D Mᵀ is the moments, with one hundredth of their mean added to the diagonal", async () => {
    const width = 24;
    const h = correlated(width, 1);
    const { columns, costs } = await factorize(h);
    const mean = Array.from({ length: width }, (_, i) => h[i * width + i]!).reduce((a, b) => a + b) / width;
    const m = (i: number, k: number): number => (i === k ? 1 : i < k ? columns[k * width + i]! : 0);
    for (let i = 0; i < width; i++) {
      for (let j = 0; j < width; j++) {
        let sum = 0;
        for (let k = 0; k < width; k++) sum += m(i, k) * costs[k]! * m(j, k);
        const expected = h[i * width + j]! + (i === j ? 0.01 * mean : 0);
        expect(Math.abs(sum - expected)).toBeLessThan(1e-5 * mean);
      }
    }
  });

  test("inputs that were never seen do no harm", async () => {
    const { costs, columns } = await factorize(new Float64Array(64 * 64));
    expect([...costs, ...columns].every(Number.isFinite)).toBe(true);
  });
});

describe("quantizeRowsFaithfully", () => {
  test.each([
    [4, 32, 96],
    [4, 32, 80], // a last block of padding
    [8, 32, 64],
    [4, 64, 128],
  ] as const)(
    "%i bits, blocks of %i, %i in features: outputs closer than by rounding each weight",
    async (bits, blockSize, width) => {
      const random = new Random(5);
      const rows = Float32Array.from({ length: 12 * width }, () => random.normal());
      const h = correlated(width, 7);
      const { shape, blocks, ...layout } = quantizedLayout(12, width, { bits, blockSize });
      const quantized = new Uint8Array(shape[0] * shape[1] * shape[2]);
      const target = { ...layout, quantized, scales: new Uint16Array(blocks) };
      const factors = await factorize(h);
      await quantizeRowsFaithfully(rows.subarray(0, 5 * width), target, 0, factors);
      await quantizeRowsFaithfully(rows.subarray(5 * width), target, 5, factors);
      const plain = quantize(rows, 12, width, { bits, blockSize });
      expect(cost(h, rows, dequantize(target))).toBeLessThan(0.8 * cost(h, rows, dequantize(plain)));
      // Padding is zero, as the kernel wants it.
      if (width === 80) expect([...quantized.subarray(2 * 16 + 8, 3 * 16)]).toEqual(Array(8).fill(0x88));
    },
  );
});

test("moments are those of the inputs, for every weight that is quantised", async () => {
  using backbone = await Backbone.load(TINY);
  const text = "The cell membrane separates the inside of a cell from what is outside of it. ".repeat(40);
  const rows = calibrationRows(backbone, text, "text").slice(0, 2);
  expect(rows).toHaveLength(2);
  const found = new Map<string, Float64Array>();
  for await (const pass of moments(backbone, rows)) for (const [name, values] of pass) found.set(name, values);
  expect([...found.keys()].sort()).toEqual(
    [...backbone.sites.map(({ path }) => `${path}.weight`), "lm_head.weight"].sort(),
  );
  // The first layer's query input is the normalised embedding of each token.
  const table = backbone.initializers().get("model.embed_tokens.weight")!.data as Float32Array;
  const norm = backbone.initializers().get("model.layers.0.input_layernorm.weight")!.data as Float32Array;
  let expected = 0;
  for (const token of rows.flat()) {
    const x = table.subarray(token * 192, (token + 1) * 192);
    const rms = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / 192 + backbone.config.rmsNormEps);
    expected += (x[3]! / rms) * norm[3]! * (x[5]! / rms) * norm[5]!;
  }
  const h = found.get("model.layers.0.self_attn.v_proj.weight")!;
  expect(h[3 * 192 + 5]).toBeCloseTo(expected, 3);
  expect(() => calibrationRows(backbone, "too short", "text")).toThrow(/calibration wants at least/);
});

test("a calibrated model is a directory of its own, and says that it is", async () => {
  const root = mkdtempSync(join(tmpdir(), "calibrated-"));
  try {
    const text = join(root, "text.txt");
    writeFileSync(text, "A short text, again and again, is enough to see it work. ".repeat(60));
    const output = join(root, "out");
    const shares: number[] = [];
    const small = "test/fixtures/backbones/llama-tied";
    await expect(prepareModel(TINY, { weights: "int4", calibrate: text })).rejects.toThrow(/needs --output/);
    await expect(prepareModel(small, { weights: "float32", calibrate: text, output })).rejects.toThrow(/choose int4/);
    const { path } = await prepareModel(TINY, { weights: "int4", blockSize: 128, calibrate: text, output, onProgress: (share) => shares.push(share) }); // biome-ignore format: one line
    expect(readPreparedInfo(path).quantizer).toBe("calibrated");
    expect(shares.at(-1)).toBeGreaterThan(0.99);
    using own = await Backbone.load(output);
    using plain = await Backbone.load(TINY, { weights: "int4", blockSize: 128 });
    const name = "model.layers.0.mlp.down_proj.weight.q4";
    expect(own.initializers().get(name)!.data).not.toEqual(plain.initializers().get(name)!.data);
    using file = SafetensorsFile.open(path);
    expect(file.metadata.quantizer).toBe("calibrated");
  } finally {
    rmSync(root, { recursive: true });
  }
});
