/** @file Quantised weights: exact layout, error bounds, and the numbers the runtime's own kernel computes with them. */
import { describe, expect, test } from "vitest";
import { float16Value, InputError, Random } from "../base/index.ts";
import { exportOnnx, Graph, hasLinear, matmulNBits, split } from "../graph/index.ts";
import { Session, Tensor } from "../runtime/index.ts";
import { dequantize, type QuantizedLinear, quantize, quantizeRows } from "./quantize.ts";

function normals(count: number, seed: number): Float32Array {
  const random = new Random(seed);
  return Float32Array.from({ length: count }, () => random.normal());
}

const squaredError = (a: Float32Array, b: Float32Array): number =>
  a.reduce((sum, value, i) => sum + (value - b[i]!) ** 2, 0);

describe("layout", () => {
  test("4 bits by hand: low nibble first, zero point 8, −8 for the largest magnitude, rows padded to whole blocks", () => {
    // Row 0: −8 … 7 in steps of 0.5: exact with scale 0.5. Row 1: its largest magnitude is positive, so the scale is
    // negative. 20 in features make two blocks of 16 with 12 of padding.
    const ramp = Array.from({ length: 16 }, (_, i) => (i - 8) * 0.5);
    const first = [...ramp, 0, 0, 0, 8];
    const second = [...ramp.map((x) => -2 * x), 0, 0, 0, 0];
    const { quantized, scales } = quantize(Float32Array.from([...first, ...second]), 2, 20, { blockSize: 16 });
    expect([...scales].map(float16Value)).toEqual([0.5, -1, -1, 0]);
    const rising = [0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe];
    expect([...quantized]).toEqual([
      ...[...rising, 0x88, 0x08, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88],
      ...[...rising, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88],
    ]);
  });

  test("8 bits by hand: one byte a weight, zero point 128", () => {
    const { quantized, scales } = quantize(
      Float32Array.from({ length: 16 }, (_, i) => i - 8),
      1,
      16,
      {
        bits: 8,
        blockSize: 16,
      },
    );
    expect(float16Value(scales[0]!)).toBe(1 / 16);
    expect([...quantized]).toEqual(Array.from({ length: 16 }, (_, i) => 16 * (i - 8) + 128));
  });

  test("rows quantised in parts are the rows quantised at once", () => {
    const weight = normals(6 * 40, 1);
    const whole = quantize(weight, 6, 40);
    const parts = { ...whole, quantized: new Uint8Array(whole.quantized.length), scales: new Uint16Array(12) };
    quantizeRows(weight.subarray(0, 80), parts, 0);
    quantizeRows(weight.subarray(80), parts, 2);
    expect(parts).toEqual(whole);
  });
});

describe("error", () => {
  test.each([
    [4, 32, 0.0067],
    [4, 64, 0.0083],
    [4, 128, 0.0096],
    [8, 32, 0.00003],
  ] as const)("%i bits, block %i: normal weights lose at most %f of their energy", (bits, blockSize, bound) => {
    const weight = normals(64 * 512, 2);
    const back = dequantize(quantize(weight, 64, 512, { bits, blockSize }));
    const energy = weight.reduce((sum, value) => sum + value * value, 0);
    expect(squaredError(weight, back) / energy).toBeLessThan(bound);
  });

  test("never worse than rounding with the scale of the largest magnitude", () => {
    for (let seed = 0; seed < 50; seed++) {
      const block = normals(32, 100 + seed);
      const extreme = block.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most), 0);
      const scale = extreme / -8;
      const plain = block.map((x) => scale * Math.min(7, Math.max(-8, Math.round(x / scale))));
      const back = dequantize(quantize(block, 1, 32));
      expect(squaredError(block, back)).toBeLessThan(squaredError(block, plain) * (1 + 1e-6));
    }
  });

  test("every weight is within a step and a half of itself, whatever the magnitudes", () => {
    for (const factor of [2 ** -9, 1, 2 ** 14]) {
      const weight = normals(32 * 8, 3).map((x) => x * factor);
      const result = quantize(weight, 8, 32);
      const back = dequantize(result);
      for (let i = 0; i < weight.length; i++) {
        expect(Math.abs(weight[i]! - back[i]!)).toBeLessThan(1.5 * Math.abs(float16Value(result.scales[i >> 5]!)));
      }
    }
  });

  test("what float16 scales are too small for is zero, and what they are too large for is refused with its row", () => {
    expect(dequantize(quantize(new Float32Array(32).fill(1e-9), 1, 32))).toEqual(new Float32Array(32));
    const weight = normals(96, 4);
    weight[70] = 1e6;
    expect(() => quantize(weight, 3, 32)).toThrow(/row 2 holds a number too large to be quantised/);
  });

  test("zeros stay zeros, and representable weights are exact", () => {
    expect(dequantize(quantize(new Float32Array(64), 1, 64))).toEqual(new Float32Array(64));
    const exact = Float32Array.from({ length: 32 }, (_, i) => ((i % 16) - 8) / 4);
    expect(dequantize(quantize(exact, 1, 32))).toEqual(exact);
  });

  test("a number that is not finite is refused with its row", () => {
    for (const bad of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const weight = normals(96, 4);
      weight[70] = bad;
      expect(() => quantize(weight, 3, 32)).toThrow(InputError);
      expect(() => quantize(weight, 3, 32)).toThrow(/row 2 holds a number that is not finite/);
    }
    expect(() => quantize(new Float32Array(48), 1, 48, { blockSize: 48 })).toThrow(RangeError);
  });
});

describe("the runtime's kernel", () => {
  test.each([
    [4, 32, 96],
    [4, 32, 80], // a last block of padding
    [4, 64, 128],
    [4, 128, 256],
    [8, 32, 96],
  ] as const)("%i bits, block %i, %i in features: the product with the dequantised weight", (bits, blockSize, K) => {
    const [M, N] = [3, 24];
    const weight = normals(N * K, 5);
    const x = normals(M * K, 6);
    const result = quantize(weight, N, K, { bits, blockSize });
    const g = new Graph();
    const blocks = Math.ceil(K / blockSize);
    const shape = [N, blocks, (blockSize * bits) / 8];
    const quantizedValue = g.parameter("q", "uint8", shape);
    const scales = g.parameter("s", "float32", [N * blocks]);
    const input = g.input("x", "float32", [M, K]);
    g.output("y", matmulNBits(input, { quantized: quantizedValue, scales, K, N, bits, blockSize }));
    using q = Tensor.from("uint8", shape, result.quantized);
    using s = Tensor.from("float32", [N * blocks], Float32Array.from(result.scales, float16Value));
    using session = Session.create(exportOnnx(g), { initializers: new Map([["q", q], ["s", s]]) }); // biome-ignore format: one line
    using xTensor = Tensor.from("float32", [M, K], x);
    using y = session.call({ x: xTensor }).y!;
    const back = dequantize(result);
    for (let m = 0; m < M; m++) {
      for (let n = 0; n < N; n++) {
        let sum = 0;
        for (let k = 0; k < K; k++) sum += x[m * K + k]! * back[n * K + k]!;
        expect(y.data[m * N + n]).toBeCloseTo(sum, 4);
      }
    }
  });

  test.each([
    [4, 1],
    [4, 5],
    [4, 64],
    [8, 1],
    [8, 64],
  ] as const)("%i bits, %i rows: joined weights give each one's numbers, to the last bit", (bits, M) => {
    const [K, blockSize] = [160, 32];
    const sizes = [64, 32, 48];
    const blocks = K / blockSize;
    const g = new Graph();
    const initializers = new Map<string, Tensor>();
    const input = g.input("x", "float32", [M, K]);
    const multiply = (name: string, { quantized, scales, outFeatures: N }: QuantizedLinear) => {
      const shape = [N, blocks, (blockSize * bits) / 8];
      initializers.set(`${name}.q`, Tensor.from("uint8", shape, quantized));
      const own = hasLinear(input, blockSize); // with the runtime's product scales are as x
      const given = own ? scales : Float32Array.from(scales, float16Value);
      initializers.set(`${name}.s`, Tensor.from(own ? "float16" : "float32", [N * blocks], given));
      const weight = { quantized: g.parameter(`${name}.q`, "uint8", shape), scales: g.parameter(`${name}.s`, own ? "float16" : "float32", [N * blocks]) }; // biome-ignore format: one line
      return matmulNBits(input, { ...weight, K, N, bits, blockSize, accuracyLevel: 4 });
    };
    const parts = sizes.map((size, i) => quantize(normals(size * K, 10 + i), size, K, { bits, blockSize }));
    const joined: QuantizedLinear = {
      ...parts[0]!,
      outFeatures: sizes.reduce((a, b) => a + b),
      quantized: Uint8Array.from(parts.flatMap(({ quantized }) => [...quantized])),
      scales: Uint16Array.from(parts.flatMap(({ scales }) => [...scales])),
    };
    for (const [i, part] of parts.entries()) g.output(`alone${i}`, multiply(`alone${i}`, part));
    for (const [i, y] of split(multiply("joined", joined), 1, sizes).entries()) g.output(`joined${i}`, y);
    using session = Session.create(exportOnnx(g), { initializers });
    using x = Tensor.from("float32", [M, K], normals(M * K, 20));
    const y = session.call({ x });
    sizes.forEach((_, i) => {
      expect(y[`joined${i}`]!.data).toEqual(y[`alone${i}`]!.data);
    });
    for (const tensor of [...Object.values(y), ...initializers.values()]) tensor.dispose();
  });
});
