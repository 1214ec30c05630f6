/** @file Random problems for every op with a gradient rule. */
import { Random } from "../../base/index.ts";
import type { DType } from "../../runtime/index.ts";
import type { Value } from "../graph.ts";
import * as g from "../index.ts";
import { type Dim, ops } from "../index.ts";
import { lossOps } from "../losses.ts";
import { apply1 } from "../ops/common.ts";
import type { Feed, GradientProblem } from "./run.ts";

/** Draws one random problem. */
export class Draw {
  readonly #random: Random;
  constructor(seed: number) {
    this.#random = new Random(seed);
  }
  int(from: number, to: number): number {
    return from + this.#random.integer(to - from + 1);
  }
  bool(): boolean {
    return this.int(0, 1) === 1;
  }
  shape(minRank = 0, maxRank = 3): number[] {
    return Array.from({ length: this.int(minRank, maxRank) }, () => this.int(1, 4));
  }
  /** Numbers; `domain` moves them to where the op is smooth. */
  feed(shape: readonly number[], domain: (x: number) => number = (x) => x, dtype: DType = "float64"): Feed {
    const data = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => domain(this.#random.normal()));
    return { dtype, shape, data };
  }
  ints(shape: readonly number[], below: number): Feed & { fixed: true } {
    const data = Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => this.int(0, below - 1));
    return { dtype: "int64", shape, data, fixed: true };
  }
  /** Shapes that broadcast together: some sizes 1, some leading axes missing. Together they span the whole. */
  broadcast(count: number): number[][] {
    const whole = this.shape(0, 3);
    return Array.from({ length: count }, (_, i) => {
      if (i === 0) return whole;
      return whole.slice(this.int(0, whole.length)).map((size) => (this.bool() ? 1 : size));
    }).sort(() => this.int(0, 1) - 0.5);
  }
  /** Declares sizes as symbols, one symbol per position from the end, so that operands of one shape still fit. */
  symbolic<F extends Feed>(feeds: readonly F[]): F[] {
    if (this.bool()) return [...feeds];
    const chosen = [this.bool(), this.bool(), this.bool(), this.bool()];
    return feeds.map((feed) => ({
      ...feed,
      dims: feed.shape.map((size, i) => {
        const fromEnd = feed.shape.length - i - 1;
        return size > 1 && chosen[fromEnd] ? `S${fromEnd}` : size;
      }),
    }));
  }
  axis(rank: number): number {
    return this.int(-rank, rank - 1);
  }
  pick<T>(items: readonly T[]): T {
    return items[this.int(0, items.length - 1)]!;
  }
}

export type Problem = (draw: Draw) => GradientProblem;

const away = (x: number): number => (x < 0 ? x - 0.2 : x + 0.2);
const positive = (x: number): number => Math.abs(x) + 0.5;

const unary =
  (f: (x: Value) => Value, domain?: (x: number) => number, dtype?: DType): Problem =>
  (draw) => ({ inputs: draw.symbolic([draw.feed(draw.shape(), domain, dtype)]), build: ([x]) => f(x!) });

const binary =
  (f: (a: Value, b: Value) => Value, domainA?: (x: number) => number, domainB = domainA): Problem =>
  (draw) => {
    const [a, b] = draw.broadcast(2);
    return { inputs: draw.symbolic([draw.feed(a!, domainA), draw.feed(b!, domainB)]), build: ([x, y]) => f(x!, y!) };
  };

const reduction =
  (f: (x: Value, options: g.ReduceOptions) => Value): Problem =>
  (draw) => {
    const shape = draw.shape(1, 4);
    const axes = draw.pick([undefined, [draw.axis(shape.length)], [0, -1]]);
    const options = { ...(axes && { axes }), keepDims: draw.bool() };
    return { inputs: draw.symbolic([draw.feed(shape)]), build: ([x]) => f(x!, options) };
  };

const alongAxis =
  (f: (x: Value, axis: number) => Value, minSize = 1): Problem =>
  (draw) => {
    const shape = draw.shape(1, 4).map((size) => Math.max(size, minSize));
    const axis = draw.axis(shape.length);
    return { inputs: draw.symbolic([draw.feed(shape)]), build: ([x]) => f(x!, axis) };
  };

/** [..., rows, columns], transposed if asked. */
const matrix = (batch: number[], rows: number, columns: number, transposed: boolean): number[] => [
  ...batch,
  ...(transposed ? [columns, rows] : [rows, columns]),
];

export const problems: Record<string, Problem> = {
  add: binary(g.add),
  sub: binary(g.sub),
  mul: binary(g.mul),
  div: binary(g.div, undefined, away),
  pow: binary(g.pow, positive, away),
  maximum: binary(g.maximum),
  minimum: binary(g.minimum),
  neg: unary(g.neg),
  abs: unary(g.abs, away),
  exp: unary(g.exp),
  cos: unary(g.cos),
  sin: unary(g.sin),
  log: unary(g.log, positive),
  sqrt: unary(g.sqrt, positive),
  reciprocal: unary(g.reciprocal, away),
  sigmoid: unary(g.sigmoid),
  tanh: unary(g.tanh),
  erf: unary(g.erf, undefined, "float32"),
  relu: unary(g.relu, away),
  gelu: unary(g.gelu, undefined, "float32"),
  geluTanh: unary(g.geluTanh, undefined, "float32"),
  silu: unary(g.silu),
  square: unary(g.square),
  clip: unary((x) => g.clip(x, { min: -0.6, max: 0.8 })),
  cast: unary((x) => g.exp(g.cast(x, "float64")), undefined, "float32"),
  where: (draw) => {
    const [c, a, b] = draw.broadcast(3);
    const condition: Feed = { ...draw.feed(c!, (x) => Number(x > 0)), dtype: "bool" };
    const inputs = draw.symbolic([condition, draw.feed(a!), draw.feed(b!)]);
    return { inputs, build: ([k, x, y]) => g.where(k!, x!, y!) };
  },

  sum: reduction(g.sum),
  mean: reduction(g.mean),
  max: reduction(g.max),
  softmax: alongAxis(g.softmax),
  logSoftmax: alongAxis(g.logSoftmax),
  topK: alongAxis((x, axis) => g.topK(x, 2, axis).values, 2),
  cumsum: (draw) => {
    const options = { reverse: draw.bool(), exclusive: draw.bool() };
    return alongAxis((x, axis) => g.cumsum(x, axis, options))(draw);
  },

  matmul: (draw) => {
    const [a, b] = draw.broadcast(2);
    const [m, k, n] = [draw.int(1, 4), draw.int(1, 4), draw.int(1, 4)];
    const options = { transA: draw.bool(), transB: draw.bool(), alpha: draw.pick([1, 0.5]) };
    const inputs = [draw.feed(matrix(a!, m, k, options.transA)), draw.feed(matrix(b!, k, n, options.transB))];
    return { inputs: symbolBatch(draw, inputs), build: ([x, y]) => g.fusedMatmul(x!, y!, options) };
  },
  gemm: (draw) => {
    const [m, k, n] = [draw.int(1, 4), draw.int(1, 4), draw.int(1, 4)];
    const { transA, transB, alpha, beta } = {
      transA: draw.bool(),
      transB: draw.bool(),
      alpha: draw.pick([1, 0.5]),
      beta: draw.pick([1, 2]),
    };
    const c = draw.pick([undefined, [m, n], [n], [m, 1], []]);
    const inputs = [draw.feed(matrix([], m, k, transA)), draw.feed(matrix([], k, n, transB))];
    if (c) inputs.push(draw.feed(c));
    return {
      inputs,
      build: ([x, y, z]) => g.gemm(x!, y!, { transA, transB, alpha, ...(z && { c: z, beta }) }),
    };
  },

  reshape: (draw) => {
    const [b, t, h, d] = [draw.int(1, 3), draw.int(1, 3), draw.int(1, 3), draw.int(1, 3)];
    const [B, T]: Dim[] = draw.bool() ? ["B", "T"] : [b, t];
    const BT = g.mulDims(B!, T!);
    const whole: Feed = { ...draw.feed([b, t, h * d]), dims: [B!, T!, h * d] };
    const flat: Feed = { ...draw.feed([b * t, h * d]), dims: [BT, h * d] };
    // B and T are known from another input when only their product is a dimension of x.
    const sizes: Feed = { ...draw.feed([b, t]), dims: [B!, T!] };
    const [x, target] = draw.pick<[Feed, Dim[]]>([
      [whole, [B!, T!, h, d]],
      [whole, [-1, h * d]],
      [whole, [BT, h, d]],
      [flat, [B!, T!, h, d]],
      [flat, [T!, -1, d, h]],
      [flat, [-1]],
    ]);
    return { inputs: [x, sizes], build: ([v, s]) => g.mul(g.reshape(v!, target), g.mean(s!)) };
  },
  squeeze: (draw) => {
    const shape = draw.shape(0, 3);
    shape.splice(draw.int(0, shape.length), 0, 1);
    return { inputs: [draw.feed(shape)], build: ([x]) => g.squeeze(x!, [shape.indexOf(1)]) };
  },
  unsqueeze: (draw) => {
    const shape = draw.shape(0, 3);
    const axis = draw.axis(shape.length + 1);
    return { inputs: draw.symbolic([draw.feed(shape)]), build: ([x]) => g.unsqueeze(x!, [axis]) };
  },
  expand: (draw) => {
    const [a, b] = draw.broadcast(2).sort((p, q) => p.reduce((s, n) => s * n, 1) - q.reduce((s, n) => s * n, 1));
    const inputs = draw.symbolic([draw.feed(a!), draw.feed(b!)]);
    const like = draw.bool();
    return {
      inputs,
      build: ([x, y]) => g.square(g.expand(x!, g.broadcastShapes(x!.shape, y!.shape)!, like ? y : undefined)),
    };
  },
  transpose: (draw) => {
    const shape = draw.shape(1, 4);
    const perm = shape.map((_, i) => i).sort(() => draw.int(0, 1) - 0.5);
    return { inputs: draw.symbolic([draw.feed(shape)]), build: ([x]) => g.transpose(x!, perm) };
  },
  concat: (draw) => {
    const shape = draw.shape(1, 3);
    const axis = draw.axis(shape.length);
    const at = axis < 0 ? axis + shape.length : axis;
    const piece = (name: string): Feed => {
      const own = shape.map((size, i) => (i === at ? draw.int(1, 3) : size));
      return { ...draw.feed(own), dims: own.map((size, i) => (i === at && named ? name : size)) };
    };
    const named = draw.bool();
    return { inputs: [piece("P"), piece("Q"), piece("R")], build: (parts) => g.concat(parts, axis) };
  },
  split: (draw) => {
    const sizes = [draw.int(1, 3), draw.int(1, 3), draw.int(1, 3)];
    const shape = draw.shape(1, 3);
    const axis = draw.axis(shape.length);
    shape[axis < 0 ? axis + shape.length : axis] = sizes.reduce((a, b) => a + b);
    const all = draw.bool();
    return {
      inputs: [draw.feed(shape)],
      build: ([x]) => {
        const [p, q, r] = g.split(x!, axis, sizes);
        const total = g.mul(g.sum(g.square(p!)), g.sum(g.exp(r!)));
        return all ? g.add(total, g.sum(g.square(q!))) : total;
      },
    };
  },
  slice: (draw) => {
    const shape = draw.shape(1, 3).map((size) => size + 2);
    const axis = draw.axis(shape.length);
    const [start, end] = draw.pick<[Dim, Dim]>([
      [0, 2],
      [1, 3],
      [-2, Number.POSITIVE_INFINITY],
      [1, -1],
      [0, -2],
    ]);
    return { inputs: draw.symbolic([draw.feed(shape)]), build: ([x]) => g.slice(x!, axis, start, end) };
  },
  pad: alongAxis((x, axis) => g.pad(x, axis, 2, 1)),
  trilu: (draw) => {
    const shape = [...draw.shape(0, 2), draw.int(1, 4), draw.int(1, 4)];
    const options = { upper: draw.bool(), k: draw.int(-1, 1) };
    return { inputs: draw.symbolic([draw.feed(shape)]), build: ([x]) => g.trilu(x!, options) };
  },

  gather: (draw) => {
    const shape = draw.shape(1, 3);
    const axis = draw.axis(shape.length);
    const indices = draw.ints(draw.shape(0, 2), shape[axis < 0 ? axis + shape.length : axis]!);
    return { inputs: [draw.feed(shape), indices], build: ([x, i]) => g.gather(x!, i!, axis) };
  },
  scatterRows: (draw) => {
    // The gradient of the gradient of an embedding goes through it.
    const shape = [draw.int(2, 4), draw.int(1, 3)];
    const indices = draw.ints([draw.int(1, 4)], shape[0]!);
    const updates = draw.feed([indices.shape[0]!, shape[1]!]);
    return {
      inputs: [draw.feed(shape), indices, updates],
      build: ([x, i, u]) => apply1(ops.scatterRows, [x!, g.unsqueeze(i!, [1]), u!], {}),
    };
  },
  gatherElements: (draw) => {
    const shape = draw.shape(1, 3);
    const axis = draw.axis(shape.length);
    const at = axis < 0 ? axis + shape.length : axis;
    const indices = draw.ints(
      shape.map((size, i) => (i === at ? draw.int(1, 4) : size)),
      shape[at]!,
    );
    return { inputs: [draw.feed(shape), indices], build: ([x, i]) => g.gatherElements(x!, i!, axis) };
  },
  scatterElements: (draw) => {
    const shape = draw.shape(1, 3);
    const axis = draw.axis(shape.length);
    const at = axis < 0 ? axis + shape.length : axis;
    const reduction = draw.pick(["none", "add"] as const);
    const count = reduction === "none" ? 1 : draw.int(1, 4); // without a reduction indices must not repeat
    const part = shape.map((size, i) => (i === at ? count : size));
    return {
      inputs: [draw.feed(shape), draw.ints(part, shape[at]!), draw.feed(part)],
      build: ([x, i, u]) => g.scatterElements(x!, i!, u!, axis, reduction),
    };
  },

  rmsNorm: (draw) => {
    const shape = draw.shape(1, 3);
    const inputs = draw.symbolic([draw.feed([...shape, 4]), draw.feed([4])]);
    return {
      inputs: [{ ...inputs[0]! }, { ...inputs[1]!, dims: [4] }].map(lastFixed),
      build: ([x, w]) => g.rmsNorm(x!, w!, 0.1),
    };
  },
  matmulNBits: (draw) => {
    const [m, n, k] = [draw.int(1, 4), draw.int(1, 5), draw.pick([32, 40])];
    const bits = draw.pick([4, 8] as const);
    const blocks = Math.ceil(k / 16);
    const levels = draw.ints([n, blocks * 16], 2 ** bits);
    const packed = bits === 8 ? levels.data : pairs(levels.data);
    return {
      inputs: [
        draw.feed([m, k], undefined, "float32"),
        { ...levels, dtype: "uint8", shape: [n, blocks, 2 * bits], data: packed },
        { ...draw.feed([n * blocks], (x) => x * 2 ** -bits, "float32"), fixed: true },
        { ...levels, dtype: bits === 4 ? "uint4" : "uint8" },
      ],
      build: ([x, quantized, scales, levels]) =>
        g.matmulNBits(x!, {
          quantized: quantized!,
          scales: scales!,
          levels: () => levels!,
          K: k,
          N: n,
          bits,
          blockSize: 16,
        }),
    };
  },
  rotary: (draw) => {
    const [b, h, t, half] = [draw.int(1, 2), draw.int(1, 3), draw.int(1, 3), draw.int(1, 3)];
    const angles = draw.feed([8, half], undefined, "float32");
    const table = (f: (x: number) => number) => ({ ...angles, data: angles.data.map(f), fixed: true });
    const interleaved = draw.bool();
    return {
      inputs: [
        draw.feed([b, h, t, 2 * half], undefined, "float32"),
        draw.ints([b, t], 8),
        table(Math.cos),
        table(Math.sin),
      ],
      build: ([x, p, cos, sin]) => g.rotary(x!, p!, cos!, sin!, { interleaved }),
    };
  },
  straightThrough: unary((x) => {
    // Not the derivative of the forward value; equal to it when value and surrogate agree.
    return g.straightThrough(g.stopGradient(g.square(x)), g.square(x));
  }),
  rowCrossEntropy: (draw) => {
    const [s, v] = [draw.int(1, 4), draw.int(1, 5)];
    return {
      inputs: [draw.feed([s, v], (x) => 3 * x), draw.ints([s], v)],
      build: ([x, labels]) => apply1(lossOps.rowCrossEntropy, [x!, labels!], {}),
    };
  },
  withSlopes: (draw) => {
    const [s, d, v] = [draw.int(1, 7), draw.int(1, 3), draw.int(1, 5)];
    const options = { differentiable: true, parts: draw.int(1, 4), least: draw.int(1, 3) };
    const head = { ...draw.feed([v, d]), fixed: true };
    return {
      inputs: [draw.feed([s, d]), draw.ints([s], v), head],
      build: ([x, labels, w]) =>
        g.headCrossEntropy(x!, (rows) => g.tanh(g.gemm(rows, w!, { transB: true })), labels!, options),
    };
  },
};

/** Two levels of 4 bits in a byte, the earlier one low. */
const pairs = (levels: readonly number[]): number[] =>
  Array.from({ length: levels.length / 2 }, (_, i) => levels[2 * i]! + 16 * levels[2 * i + 1]!);

const lastFixed = <F extends Feed>(feed: F): F => ({
  ...feed,
  dims: (feed.dims ?? feed.shape).map((dim, i, all) => (i === all.length - 1 ? feed.shape[i]! : dim)),
});

/** Symbols for the batch axes of matrices only. */
function symbolBatch(draw: Draw, feeds: readonly Feed[]): Feed[] {
  const named = draw.bool();
  return feeds.map((feed) => ({
    ...feed,
    dims: feed.shape.map((size, i) => {
      const fromEnd = feed.shape.length - i - 1;
      return named && fromEnd >= 2 && size > 1 ? `S${fromEnd}` : size;
    }),
  }));
}
