/** @file What the tests of milora's own operators share: random numbers, weights in blocks, and products in float64. */
import { readFileSync } from "node:fs";
import { expect } from "vitest";
import { float16Bits, float16Value, float32ToFloat16, Random } from "../../base/index.ts";
import { OPERATOR_DOMAIN, Session, Tensor } from "../index.ts";
import { type TestNode, testModel } from "../testing.ts";

const WIDE = ["avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"];

/** What this machine's operators must use; undefined where there need not be any. */
export function instructionsOf(limit?: "avx2"): "avx512" | "avx2" | undefined {
  if (process.platform !== "linux" || process.arch !== "x64") return undefined;
  const flags = new Set(/^flags\s*:(.*)$/m.exec(readFileSync("/proc/cpuinfo", "utf8"))?.[1]?.split(" "));
  if (limit === undefined && WIDE.every((flag) => flags.has(flag))) return "avx512";
  return flags.has("avx2") && flags.has("fma") ? "avx2" : undefined;
}

export const range = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

export function normals(seed: number, count: number, size = 1): Float32Array<ArrayBuffer> {
  const random = new Random(seed);
  return Float32Array.from({ length: count }, () => size * random.normal());
}

export const matrix = (rows: number, columns: number, data: Float32Array): Tensor =>
  Tensor.from("float32", [rows, columns], data);

export const floats = (tensor: Tensor): Float32Array => tensor.data as Float32Array;

/** Fails unless each number is within a share of its size. NaN is never. */
export function expectNear(actual: ArrayLike<number>, expected: Exact, share: number): void {
  expect(actual.length).toBe(expected.values.length);
  let worst = 0;
  for (let i = 0; i < actual.length; i++) {
    const off = Math.abs(actual[i]! - expected.values[i]!) / (expected.sizes[i]! + 1e-30);
    if (!(off <= worst)) worst = off;
    if (Number.isNaN(worst)) break;
  }
  expect(worst).toBeLessThanOrEqual(share);
}

/** Fails unless all are the same to the bit (a NaN is like every other). */
export function expectSame(actual: Float32Array, expected: Float32Array): void {
  expect(actual.length).toBe(expected.length);
  const at = actual.findIndex((value, i) => !Object.is(value, expected[i]));
  expect(at < 0 ? "the same" : `number ${at} is ${actual[at]}, not ${expected[at]}`).toBe("the same");
}

/** Sums in float64, and the sums of their terms without sign. */
export interface Exact {
  values: Float64Array;
  sizes: Float64Array;
}

/** The scales in float32, which the runtime's product takes. */
const WIDE_SCALES = "s32";

interface Shape {
  K: number;
  N: number;
  bits: 4 | 8;
  block: number;
}

/** A weight [N, K] in blocks, its rows padded to whole blocks, as MatMulNBits has it. */
export interface Weight extends Shape {
  packed: Uint8Array<ArrayBuffer>;
  /** Numbers that float16 has. */
  scales: Float32Array<ArrayBuffer>;
}

export function weightOf(seed: number, { K, N, bits, block }: Shape): Weight {
  const blocks = Math.ceil(K / block);
  const random = new Random(seed);
  const packed = Uint8Array.from({ length: (N * blocks * block * bits) / 8 }, () => random.integer(256));
  const scales = normals(seed + 1, N * blocks, 0.02).map((scale) => float16Value(float16Bits(scale)));
  return { K, N, bits, block, packed, scales };
}

/** x [M, K] rounded to 8 bits in blocks of 32, times the weight. */
export function productOf(x: Float32Array, { K, N, bits, block, packed, scales }: Weight): Exact {
  const M = x.length / K;
  const [blocks, parts] = [Math.ceil(K / block), Math.ceil(K / 32)];
  const levels = new Float64Array(N * blocks * block);
  for (let i = 0; i < levels.length; i++) {
    levels[i] = bits === 8 ? packed[i]! - 128 : ((packed[i >> 1]! >> (4 * (i & 1))) & 15) - 8;
  }
  const [values, sizes] = [new Float64Array(M * N), new Float64Array(M * N)];
  const rounded = new Float64Array(parts * 32);
  const factors = new Float64Array(parts);
  for (let m = 0; m < M; m++) {
    for (let p = 0; p < parts; p++) {
      const row = x.subarray(m * K + p * 32, m * K + Math.min(K, p * 32 + 32));
      const most = row.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      const inverse = most === 0 ? 0 : Math.fround(127 / most);
      factors[p] = Math.fround(most / 127);
      for (let i = 0; i < 32; i++) rounded[p * 32 + i] = toEven(Math.fround((row[i] ?? 0) * inverse));
    }
    for (let n = 0; n < N; n++) {
      let value = 0;
      let size = 0;
      for (let p = 0; p < parts; p++) {
        let dot = 0;
        let terms = 0;
        for (let i = p * 32; i < p * 32 + 32; i++) {
          const term = rounded[i]! * levels[n * blocks * block + i]!;
          dot += term;
          terms += Math.abs(term);
        }
        const factor = factors[p]! * scales[n * blocks + Math.floor((p * 32) / block)]!;
        value += dot * factor;
        size += terms * Math.abs(factor);
      }
      values[m * N + n] = value;
      sizes[m * N + n] = size;
    }
  }
  return { values, sizes };
}

/** The nearest whole number, of two equally near the even one. */
function toEven(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/** A session, and the tensors that it borrows. */
export class Products implements Disposable {
  readonly session: Session;
  readonly #own: Tensor[];

  /** `nodes` make `outputs` [M, N] of x [M, K], w and s of the weight, and `inputs`. */
  constructor(
    { K, N, bits, block, packed, scales }: Weight,
    nodes: TestNode[],
    outputs: string[],
    inputs: Parameters<typeof testModel>[0]["inputs"] = {},
  ) {
    const blocks = Math.ceil(K / block);
    const model = testModel({
      inputs: { x: ["float32", ["M", K]], ...inputs },
      outputs: Object.fromEntries(outputs.map((name) => [name, ["float32", ["M", N]]])),
      nodes,
      external: {
        ...{ w: ["uint8", [N, blocks, (block * bits) / 8]], s: ["float16", [N, blocks]] },
        ...(nodes.some((node) => node.inputs.includes(WIDE_SCALES)) && { [WIDE_SCALES]: ["float32", [N, blocks]] }),
      },
    });
    const w = Tensor.from("uint8", [N, blocks, (block * bits) / 8], packed);
    const s = Tensor.from("float16", [N, blocks], float32ToFloat16(scales));
    const wide = Tensor.from("float32", [N, blocks], scales);
    this.#own = [w, s, wide];
    const initializers = new Map(Object.entries({ w, s, [WIDE_SCALES]: wide }));
    this.session = Session.create(model, { initializers });
  }

  /** Copies of the outputs for rows x. */
  run(x: Float32Array, K: number, feeds: Record<string, Tensor> = {}): Record<string, Float32Array> {
    using rows = matrix(x.length / K, K, x);
    const results = this.session.call({ x: rows, ...feeds });
    return Object.fromEntries(
      Object.entries(results).map(([name, tensor]) => {
        const copy = floats(tensor).slice();
        tensor.dispose();
        return [name, copy];
      }),
    );
  }

  [Symbol.dispose](): void {
    this.session.dispose();
    for (const tensor of this.#own) tensor.dispose();
  }
}

/** y = x W^T by milora's operator. */
export function linearNode({ K, N, bits, block }: Shape, output = "y", ...more: string[]): TestNode {
  const attributes = { K, N, bits, block_size: block };
  return { op: "Linear", domain: OPERATOR_DOMAIN, inputs: ["x", "w", "s", ...more], outputs: [output], attributes };
}

/** The same by the runtime's. */
export function matMulNBitsNode({ K, N, bits, block }: Shape, output: string): TestNode {
  const attributes = { K, N, bits, block_size: block, accuracy_level: 4 };
  return { op: "MatMulNBits", domain: "com.microsoft", inputs: ["x", "w", WIDE_SCALES], outputs: [output], attributes };
}
