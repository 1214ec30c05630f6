/** @file Forward cases of the fused ops of language models. */
import { sum } from "../../base/index.ts";
import * as g from "../index.ts";
import { ops } from "../index.ts";
import { at, type Case, feed, ints, make, range, rowsOf, softmax } from "./numbers.ts";
import type { Feed, Numbers } from "./run.ts";

function rmsNorm(row: readonly number[], weight: readonly number[], eps: number): number[] {
  const r = 1 / Math.sqrt(sum(row.map((x) => x * x)) / row.length + eps);
  return row.map((x, i) => x * r * weight[i]!);
}

function rotate(x: Numbers, positions: Numbers, cos: Numbers, sin: Numbers, interleaved: boolean): Numbers {
  const half = x.shape[3]! / 2;
  return make(x.shape, ([b, h, t, d]) => {
    const pair = interleaved ? Math.floor(d! / 2) : d! % half;
    const first = interleaved ? d! % 2 === 0 : d! < half;
    const other = interleaved ? (first ? d! + 1 : d! - 1) : first ? d! + half : d! - half;
    const position = at(positions, [b!, t!]);
    const [c, s] = [at(cos, [position, pair]), at(sin, [position, pair])];
    return at(x, [b!, h!, t!, d!]) * c + (first ? -1 : 1) * at(x, [b!, h!, t!, other]) * s;
  });
}

const angles = (positions: number, half: number): number[] => range(positions * half).map((i) => 0.3 * i);
const tables = (positions: number, half: number): [Feed, Feed] => [
  { dtype: "float32", shape: [positions, half], data: angles(positions, half).map((x) => Math.fround(Math.cos(x))) },
  { dtype: "float32", shape: [positions, half], data: angles(positions, half).map((x) => Math.fround(Math.sin(x))) },
];

/** Causal attention of the last query; q [B, T, H, D], k and v [B, S, KV, D] given by functions. */
function attention(
  [B, T, H, D]: [number, number, number, number],
  past: number,
  q: (b: number, t: number, h: number, d: number) => number,
  k: (b: number, s: number, h: number, d: number) => number,
  v: (b: number, s: number, h: number, d: number) => number,
): Numbers {
  return make([B, T, H * D], ([b, t, hd]) => {
    const [h, d] = [Math.floor(hd! / D), hd! % D];
    const keys = range(past + t! + 1);
    const scores = keys.map((s) => sum(range(D).map((i) => q(b!, t!, h, i) * k(b!, s, h, i))) / Math.sqrt(D));
    return sum(softmax(scores).map((p, s) => p * v(b!, s, h, d)));
  });
}

/** Weights in blocks of 16 with low bits first, and what they stand for. */
function quantized(
  rows: number,
  columns: number,
  bits: 4 | 8,
): { codes: number[]; packed: number[]; scales: number[]; weight: Numbers } {
  const levels = 2 ** bits;
  const codes = range(rows * columns).map((i) => (i * 7 + 3) % levels);
  const scales = range((rows * columns) / 16).map((i) => Math.fround(0.01 * (i + 1)));
  const packed = bits === 8 ? codes : range(codes.length / 2).map((i) => codes[2 * i]! + 16 * codes[2 * i + 1]!);
  const data = codes.map((code, i) => (code - levels / 2) * scales[Math.floor(i / 16)]!);
  return { codes, packed, scales, weight: { shape: [rows, columns], data } };
}

export const transformerCases: Record<string, Case> = {
  rmsNorm: {
    inputs: [feed([2, 3, 8]), feed([8], 2)],
    build([x, w]) {
      const y = g.rmsNorm(x!, w!, 1e-3);
      const [, r] = x!.graph.apply(ops.rmsNorm, [x!, w!], { eps: 1e-3 });
      return [y, r!];
    },
    expected: ([x, w]) => [
      { shape: x!.shape, data: rowsOf(x!).flatMap((row) => rmsNorm(row, w!.data, 1e-3)) },
      { shape: [2, 3, 1], data: rowsOf(x!).map((row) => 1 / Math.sqrt(sum(row.map((v) => v * v)) / 8 + 1e-3)) },
    ],
  },
  skipRmsNorm: {
    inputs: [feed([3, 8]), feed([3, 8], 2), feed([8], 3)],
    build: ([x, s, w]) => Object.values(g.skipRmsNorm(x!, s!, w!, 1e-3)),
    expected([x, s, w]) {
      const sum = make([3, 8], (i) => at(x!, i) + at(s!, i));
      return [{ shape: [3, 8], data: rowsOf(sum).flatMap((row) => rmsNorm(row, w!.data, 1e-3)) }, sum];
    },
  },
  rotary: {
    inputs: [feed([2, 3, 2, 4]), ints([2, 2], [0, 1, 3, 4]), ...tables(5, 2)],
    build: ([x, p, cos, sin]) => [false, true].map((interleaved) => g.rotary(x!, p!, cos!, sin!, { interleaved })),
    expected: ([x, p, cos, sin]) => [false, true].map((interleaved) => rotate(x!, p!, cos!, sin!, interleaved)),
  },
  matmulNBits: {
    inputs: [
      feed([3, 32]),
      ...([4, 8] as const).flatMap((bits) => {
        const { packed, scales } = quantized(5, 32, bits);
        return [ints([5, 2, 2 * bits], packed, "uint8"), { dtype: "float32" as const, shape: [5, 2], data: scales }];
      }),
    ],
    build: ([x, q4, s4, q8, s8]) => [
      g.matmulNBits(x!, { quantized: q4!, scales: s4!, K: 32, N: 5, bits: 4, blockSize: 16 }),
      g.matmulNBits(x!, { quantized: q8!, scales: s8!, K: 32, N: 5, bits: 8, blockSize: 16 }),
    ],
    expected: ([x]) =>
      ([4, 8] as const).map((bits) => {
        const { weight } = quantized(5, 32, bits);
        return make([3, 5], ([i, j]) => sum(range(32).map((k) => at(x!, [i!, k]) * at(weight, [j!, k]))));
      }),
    tolerance: 1e-4,
  },
  dequantizeBlocks: {
    inputs: [
      feed([2, 3]),
      ...([4, 8] as const).flatMap((bits) => {
        const { codes, scales } = quantized(5, 32, bits);
        const dtype = bits === 4 ? ("uint4" as const) : ("uint8" as const);
        return [ints([5, 32], codes, dtype), { dtype: "float32" as const, shape: [10], data: scales }];
      }),
    ],
    build: ([after, q4, s4, q8, s8]) =>
      [[q4!, s4!] as const, [q8!, s8!] as const].map(
        ([levels, scales]) => after!.graph.apply(ops.dequantizeBlocks, [levels, scales, after!], { blockSize: 16 })[0]!,
      ),
    expected: () => ([4, 8] as const).map((bits) => quantized(5, 32, bits).weight),
  },
  gatherNBits: {
    inputs: [
      ints([3], [4, 0, 2]),
      ...([4, 8] as const).flatMap((bits) => {
        const { packed, scales } = quantized(5, 32, bits);
        return [ints([5, 4 * bits], packed, "uint8"), { dtype: "float32" as const, shape: [5, 2], data: scales }];
      }),
    ],
    build: ([i, q4, s4, q8, s8]) => [
      g.gatherNBits({ quantized: q4!, scales: s4!, columns: 32, bits: 4, blockSize: 16 }, i!),
      g.gatherNBits({ quantized: q8!, scales: s8!, columns: 32, bits: 8, blockSize: 16 }, i!),
    ],
    expected: ([i]) =>
      ([4, 8] as const).map((bits) => {
        const { weight } = quantized(5, 32, bits);
        return make([3, 32], ([r, c]) => at(weight, [i!.data[r!]!, c!]));
      }),
  },
  groupQueryAttention: {
    // 4 query heads over 2 key heads of 8 features; 2 sequences of 3 tokens, no past.
    inputs: [
      feed([2, 3, 32]),
      feed([2, 3, 16], 2),
      feed([2, 3, 16], 3),
      ints([2], [2, 2], "int32"),
      ints([], [3], "int32"),
    ],
    build: ([q, k, v, seqlensK, totalSequenceLength]) =>
      g.groupQueryAttention({
        query: q!,
        key: k!,
        value: v!,
        seqlensK: seqlensK!,
        totalSequenceLength: totalSequenceLength!,
        numHeads: 4,
        kvNumHeads: 2,
      }).y,
    expected: ([q, k, v]) =>
      attention(
        [2, 3, 4, 8],
        0,
        (b, t, h, d) => at(q!, [b, t, h * 8 + d]),
        (b, s, h, d) => at(k!, [b, s, Math.floor(h / 2) * 8 + d]),
        (b, s, h, d) => at(v!, [b, s, Math.floor(h / 2) * 8 + d]),
      ),
  },
};
