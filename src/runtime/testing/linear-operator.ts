/** @file Tests of the operator Linear: products with weights of 4 and 8 bits. */
import { describe, expect, test } from "vitest";
import { operators, Tensor } from "../index.ts";
import {
  expectNear,
  expectSame,
  linearNode,
  matMulNBitsNode,
  normals,
  Products,
  productOf,
  range,
  type Weight,
  weightOf,
} from "./operators.ts";

const COUNTS = [1, 2, 3, 4, 7, 16, 65, 130];
const INNER = [32, 64, 96, 160, 576, 1536, 1, 33, 100, 1000];
const OUTER = [1, 3, 16, 49, 960];

/** Every K, N and number of rows, but not each with each. */
const SHAPES: [K: number, N: number, counts: number[]][] = [
  ...INNER.map((K): [number, number, number[]] => [K, 49, [1, 2, 3, 4, 7, 16]]),
  ...OUTER.map((N): [number, number, number[]] => [160, N, [1, 3, 16]]),
  [576, 960, COUNTS],
  [1536, 960, [1, 3, 7]],
];

const KINDS = ([4, 8] as const).flatMap((bits) => [32, 64, 128].map((block) => [bits, block] as const));

/** Root of the mean square of the difference, in shares of that of `expected`. */
function difference(actual: ArrayLike<number>, expected: Float32Array): number {
  let [off, size] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    off += (actual[i]! - expected[i]!) ** 2;
    size += expected[i]! ** 2;
  }
  return Math.sqrt(off / size);
}

export function linearTests(): void {
  describe.each(KINDS)("Linear with weights of %d bits in blocks of %d", (bits, block) => {
    test.each(SHAPES)("is the rounded product, K = %d, N = %d, rows %j", (K, N, counts) => {
      const weight = weightOf(K + N, { K, N, bits, block });
      const nodes = [linearNode(weight, "y"), linearNode(weight, "biased", "bias"), matMulNBitsNode(weight, "theirs")];
      const bias = normals(5, N);
      using biases = Tensor.from("float32", [N], bias);
      using products = new Products(weight, nodes, ["y", "biased", "theirs"], { bias: ["float32", [N]] });
      const x = normals(K, counts.at(-1)! * K);
      x.fill(0, 0, Math.min(K, 32)); // a block of zeros
      const { values, sizes } = productOf(x, weight);
      for (const M of counts) {
        const { y, biased, theirs } = products.run(x.subarray(0, M * K), K, { bias: biases });
        expectNear(y!, { values: values.subarray(0, M * N), sizes }, 1e-6);
        expectSame(
          biased!,
          y!.map((value, i) => value + bias[i % N]!),
        );
        // The runtime rounds x in blocks as large as the weight's.
        if (M > 1) expect(difference(y!, theirs!)).toBeLessThan(block === 32 ? 1e-5 : 0.02);
      }
    });
  });

  test("ties round to even, and each extreme level is met", () => {
    for (const bits of [4, 8] as const) {
      const weight = weightOf(1, { K: 64, N: 16, bits, block: 32 });
      weight.packed.fill(255, 0, 100).fill(0, 100, 300);
      // The largest is 127, so that 2 ** -1 and its odd multiples are ties.
      const x = Float32Array.from(range(64), (i) => (i % 32 === 0 ? 127 : i % 2 === 0 ? i - 15.5 : -127));
      using products = new Products(weight, [linearNode(weight)], ["y"]);
      expectNear(products.run(x, 64).y!, productOf(x, weight), 1e-6);
    }
  });

  test.each(KINDS)("a row's result does not depend on the others, %d bits in blocks of %d", (bits, block) => {
    const [K, N] = [224, 83];
    const weight = weightOf(3, { K, N, bits, block });
    using products = new Products(weight, [linearNode(weight)], ["y"]);
    const x = normals(4, 70 * K);
    const alone = range(70).map((m) => products.run(x.subarray(m * K, (m + 1) * K), K).y!);
    for (const M of [2, 3, 4, 5, 6, 7, 8, 9, 70]) {
      const { y } = products.run(x.subarray(0, M * K), K);
      for (let m = 0; m < M; m++) expectSame(y!.subarray(m * N, (m + 1) * N), alone[m]!);
    }
    operators()!.useThreads(1);
    const { y } = products.run(x, K);
    operators()!.useThreads(2);
    for (let m = 0; m < 70; m++) expectSame(y!.subarray(m * N, (m + 1) * N), alone[m]!);
  });

  test.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])("%d stays in its row", (bad) => {
    for (const bits of [4, 8] as const) {
      const [K, N] = [160, 35];
      const weight = weightOf(6, { K, N, bits, block: 32 });
      using products = new Products(weight, [linearNode(weight)], ["y"]);
      for (const M of [1, 3, 6, 70]) {
        const x = normals(7, M * K);
        const before = products.run(x, K).y!;
        const row = Math.floor(M / 2);
        x[row * K + 77] = bad;
        const after = products.run(x, K).y!;
        expectSame(after.subarray(0, row * N), before.subarray(0, row * N));
        expectSame(after.subarray((row + 1) * N), before.subarray((row + 1) * N));
        expect(after.subarray(row * N, (row + 1) * N).every((value) => !Number.isFinite(value))).toBe(true);
      }
    }
  });

  test("tiny numbers and no rows at all are no trouble", () => {
    const weight: Weight = weightOf(8, { K: 64, N: 16, bits: 4, block: 32 });
    using products = new Products(weight, [linearNode(weight)], ["y"]);
    const { y } = products.run(new Float32Array(64).fill(1e-40), 64);
    expect(y!.every((value) => Math.abs(value) < 1e-36)).toBe(true);
    expect(products.run(new Float32Array(0), 64).y).toEqual(new Float32Array(0));
  });
}
