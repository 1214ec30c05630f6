/** @file Forward cases of the plain ops: inputs, graph, and the numbers that must come out. */
import { sum } from "../../base/index.ts";
import type { Value } from "../graph.ts";
import * as g from "../index.ts";
import { ops } from "../index.ts";
import { lossOps } from "../losses.ts";
import { apply1 } from "../ops/common.ts";
import { waitFor, zeroAfter } from "../ops/flow.ts";
import { partSizes, rowParts } from "../ops/layout.ts";
import { at, type Case, erf, feed, ints, make, positive, range, rowsOf, sigmoid, softmax } from "./numbers.ts";

const unary = (build: (x: Value) => Value, f: (x: number) => number, domain = (x: number) => x): Case => {
  const x = feed([3, 4]);
  return {
    inputs: [{ ...x, data: x.data.map(domain) }],
    build: ([v]) => build(v!),
    expected: ([v]) => make([3, 4], (i) => f(at(v!, i))),
  };
};

const binary = (
  build: (a: Value, b: Value) => Value,
  f: (a: number, b: number) => number,
  domain = (x: number) => x,
): Case => ({
  inputs: [feed([2, 1, 3]), feed([4, 1], 2)].map((x) => ({ ...x, data: x.data.map(domain) })),
  build: ([a, b]) => build(a!, b!),
  expected: ([a, b]) => make([2, 4, 3], (i) => f(at(a!, i), at(b!, i))),
});

const logic = (build: (a: Value, b: Value) => Value, f: (a: number, b: number) => boolean): Case => ({
  inputs: [ints([2, 1], [0, 1], "bool"), ints([2], [0, 1], "bool")],
  build: ([a, b]) => build(a!, b!),
  expected: ([a, b]) => make([2, 2], (i) => Number(f(at(a!, i), at(b!, i)))),
});

/** Reduces axis 1 of [2, 3, 4]. */
const reduction = (build: (x: Value, o: g.ReduceOptions) => Value, f: (row: number[]) => number): Case => ({
  inputs: [feed([2, 3, 4])],
  build: ([x]) => [build(x!, { axes: [-2] }), build(x!, { axes: [1], keepDims: true })],
  expected: ([x]) => [
    make([2, 4], ([i, k]) => f(range(3).map((j) => at(x!, [i!, j, k!])))),
    make([2, 1, 4], ([i, , k]) => f(range(3).map((j) => at(x!, [i!, j, k!])))),
  ],
});

/** Maps each row along axis 1 of [2, 3, 4]. */
const along = (build: (x: Value) => Value, f: (row: number[]) => number[]): Case => ({
  inputs: [feed([2, 3, 4])],
  build: ([x]) => build(x!),
  expected: ([x]) => make([2, 3, 4], ([i, j, k]) => f(range(3).map((r) => at(x!, [i!, r, k!])))[j!]!),
});

const layout = (
  shape: number[],
  build: (x: Value) => Value,
  result: number[],
  from: (index: number[]) => number[],
): Case => ({
  inputs: [feed(shape)],
  build: ([x]) => build(x!),
  expected: ([x]) => make(result, (i) => at(x!, from(i))),
});

const flat = (shape: number[], build: (x: Value) => Value, result: number[]): Case => ({
  inputs: [feed(shape)],
  build: ([x]) => build(x!),
  expected: ([x]) => ({ shape: result, data: x!.data }),
});

export const plainCases: Record<string, Case> = {
  add: binary(g.add, (a, b) => a + b),
  sub: binary(g.sub, (a, b) => a - b),
  mul: binary(g.mul, (a, b) => a * b),
  div: binary(g.div, (a, b) => a / b, positive),
  pow: binary(g.pow, (a, b) => a ** b, positive),
  maximum: binary(g.maximum, Math.max),
  minimum: binary(g.minimum, Math.min),
  neg: unary(g.neg, (x) => -x),
  abs: unary(g.abs, Math.abs),
  sign: unary(g.sign, Math.sign),
  exp: unary(g.exp, Math.exp),
  cos: unary(g.cos, Math.cos),
  sin: unary(g.sin, Math.sin),
  log: unary(g.log, Math.log, positive),
  sqrt: unary(g.sqrt, Math.sqrt, positive),
  reciprocal: unary(g.reciprocal, (x) => 1 / x, positive),
  sigmoid: unary(g.sigmoid, sigmoid),
  tanh: unary(g.tanh, Math.tanh),
  erf: unary(g.erf, erf),
  relu: unary(g.relu, (x) => Math.max(x, 0)),
  gelu: unary(g.gelu, (x) => 0.5 * x * (1 + erf(x / Math.SQRT2))),
  geluTanh: unary(g.geluTanh, (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)))),
  silu: unary(g.silu, (x) => x * sigmoid(x)),
  square: unary(g.square, (x) => x * x),
  clip: unary(
    (x) => g.clip(x, { min: -0.5, max: 0.7 }),
    (x) => Math.min(Math.max(x, -0.5), 0.7),
  ),
  cast: unary((x) => g.cast(x, "int32"), Math.trunc),

  zeroAfter: {
    inputs: [feed([2, 3])],
    build: ([x]) => zeroAfter(x!),
    expected: () => ({ shape: [], data: [0] }),
  },
  waitFor: {
    inputs: [feed([2, 3]), feed([4], 2)],
    build: ([x, signal]) => waitFor(x!, zeroAfter(signal!)),
    expected: ([x]) => x!,
  },

  equal: binary(g.equal, (a, b) => Number(a === b), Math.round),
  less: binary(g.less, (a, b) => Number(a < b), Math.round),
  greater: binary(g.greater, (a, b) => Number(a > b), Math.round),
  lessEqual: binary(g.lessEqual, (a, b) => Number(a <= b), Math.round),
  greaterEqual: binary(g.greaterEqual, (a, b) => Number(a >= b), Math.round),
  and: logic(g.and, (a, b) => a === 1 && b === 1),
  or: logic(g.or, (a, b) => a === 1 || b === 1),
  not: {
    ...logic(
      (a) => g.not(a),
      (a) => a === 0,
    ),
    expected: () => ({ shape: [2, 1], data: [1, 0] }),
  },
  where: {
    inputs: [ints([3, 1], [0, 1, 0], "bool"), feed([3, 2]), feed([2], 2)],
    build: ([c, a, b]) => g.where(c!, a!, b!),
    expected: ([c, a, b]) => make([3, 2], (i) => (at(c!, i) ? at(a!, i) : at(b!, i))),
  },

  sum: reduction(g.sum, sum),
  mean: reduction(g.mean, (row) => sum(row) / row.length),
  max: reduction(g.max, (row) => Math.max(...row)),
  softmax: along((x) => g.softmax(x, 1), softmax),
  logSoftmax: along(
    (x) => g.logSoftmax(x, -2),
    (row) => softmax(row).map(Math.log),
  ),
  cumsum: along(
    (x) => g.cumsum(x, 1, { reverse: true }),
    (row) => row.map((_, i) => sum(row.slice(i))),
  ),
  argmax: {
    inputs: [feed([4, 5])],
    build: ([x]) => g.argmax(x!, -1),
    expected: ([x]) => ({ shape: [4], data: rowsOf(x!).map((row) => row.indexOf(Math.max(...row))) }),
  },
  topK: {
    inputs: [feed([4, 5])],
    build: ([x]) => Object.values(g.topK(x!, 2)),
    expected([x]) {
      const best = rowsOf(x!).map((row) =>
        range(5)
          .sort((a, b) => row[b]! - row[a]!)
          .slice(0, 2),
      );
      const values = best.flatMap((indices, i) => indices.map((j) => at(x!, [i, j])));
      return [
        { shape: [4, 2], data: values },
        { shape: [4, 2], data: best.flat() },
      ];
    },
  },

  matmul: {
    inputs: [feed([2, 1, 3, 4]), feed([5, 3, 6], 2)],
    build: ([a, b]) => [
      g.fusedMatmul(a!, b!, { transA: true, alpha: 0.5 }),
      g.matmul(g.transpose(a!, [0, 1, 3, 2]), b!),
    ],
    expected: ([a, b]) =>
      [0.5, 1].map((alpha) =>
        make(
          [2, 5, 4, 6],
          ([i, j, m, n]) => alpha * sum(range(3).map((k) => at(a!, [i!, j!, k, m!]) * at(b!, [i!, j!, k, n!]))),
        ),
      ),
  },
  gemm: {
    inputs: [feed([3, 4]), feed([5, 4], 2), feed([5], 3)],
    build: ([a, b, c]) => g.gemm(a!, b!, { transB: true, c: c!, alpha: 0.5, beta: 2 }),
    expected: ([a, b, c]) =>
      make([3, 5], ([m, n]) => 0.5 * sum(range(4).map((k) => at(a!, [m!, k]) * at(b!, [n!, k]))) + 2 * at(c!, [n!])),
  },

  reshape: flat([2, 6], (x) => g.reshape(x, [3, -1]), [3, 4]),
  squeeze: flat([2, 1, 3], (x) => g.squeeze(x, [-2]), [2, 3]),
  unsqueeze: flat([2, 3], (x) => g.unsqueeze(x, [0, -1]), [1, 2, 3, 1]),
  expand: layout(
    [3, 1],
    (x) => g.expand(x, [2, 3, 4]),
    [2, 3, 4],
    (i) => i,
  ),
  transpose: layout(
    [2, 3, 4],
    (x) => g.transpose(x, [2, 0, 1]),
    [4, 2, 3],
    ([a, b, c]) => [b!, c!, a!],
  ),
  slice: layout(
    [5, 3],
    (x) => g.slice(x, 0, 1, -1),
    [3, 3],
    ([i, j]) => [i! + 1, j!],
  ),
  concat: {
    inputs: [feed([2, 3]), feed([2, 1], 2)],
    build: ([a, b]) => g.concat([a!, b!], -1),
    expected: ([a, b]) => make([2, 4], ([i, j]) => (j! < 3 ? at(a!, [i!, j!]) : at(b!, [i!, 0]))),
  },
  split: {
    inputs: [feed([2, 5])],
    build: ([x]) => g.split(x!, 1, [2, 3]),
    expected: ([x]) => [make([2, 2], (i) => at(x!, i)), make([2, 3], ([i, j]) => at(x!, [i!, j! + 2]))],
  },
  partSizes: {
    inputs: [feed([0, 2]), feed([1, 2]), feed([5, 2]), feed([9, 2]), feed([10, 2])],
    build: (values) => values.map((x) => partSizes(x, 4, 2)),
    expected: () =>
      [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [2, 2, 1, 0],
        [3, 3, 3, 0],
        [3, 3, 3, 1],
      ].map((data) => ({ shape: [4], data })),
  },
  rowParts: {
    inputs: [feed([5, 3])],
    build: ([x]) => [...rowParts(x!, partSizes(x!, 3, 2))],
    expected: ([x]) => [0, 2, 4].map((from, k) => make([k < 2 ? 2 : 1, 3], ([i, j]) => at(x!, [from + i!, j!]))),
  },
  pad: {
    inputs: [feed([2, 3])],
    build: ([x]) => g.pad(x!, 1, 1, 2),
    expected: ([x]) => make([2, 6], ([i, j]) => (j! >= 1 && j! < 4 ? at(x!, [i!, j! - 1]) : 0)),
  },
  trilu: {
    inputs: [feed([3, 4])],
    build: ([x]) => [g.trilu(x!), g.trilu(x!, { upper: true, k: 1 })],
    expected: ([x]) => [
      make([3, 4], ([i, j]) => (j! <= i! ? at(x!, [i!, j!]) : 0)),
      make([3, 4], ([i, j]) => (j! >= i! + 1 ? at(x!, [i!, j!]) : 0)),
    ],
  },

  gather: {
    inputs: [feed([5, 3]), ints([2, 2], [4, 0, 1, 1])],
    build: ([x, i]) => g.gather(x!, i!),
    expected: ([x, i]) => make([2, 2, 3], ([a, b, c]) => at(x!, [at(i!, [a!, b!]), c!])),
  },
  scatterRows: {
    inputs: [feed([3, 2]), ints([4, 1], [2, 0, 2, 2]), feed([4, 2], 2)],
    build: ([x, i, u]) => apply1(ops.scatterRows, [x!, i!, u!], {}),
    expected: ([x, i, u]) =>
      make([3, 2], ([r, c]) => at(x!, [r!, c!]) + sum(range(4).map((k) => (i!.data[k] === r ? at(u!, [k, c!]) : 0)))),
  },
  updateRows: {
    inputs: [feed([3, 2]), ints([2, 1], [2, 0]), feed([2, 2], 2)],
    build: ([x, i, u]) => [g.scatterRows(x!, i!, u!, "none"), g.scatterRows(x!, i!, u!, "mul")],
    expected: ([x, i, u]) => {
      const update = (r: number, c: number) => range(2).flatMap((k) => (i!.data[k] === r ? [at(u!, [k, c])] : []))[0];
      return [
        make([3, 2], ([r, c]) => update(r!, c!) ?? at(x!, [r!, c!])),
        make([3, 2], ([r, c]) => at(x!, [r!, c!]) * (update(r!, c!) ?? 1)),
      ];
    },
  },
  gatherElements: {
    inputs: [feed([3, 4]), ints([2, 4], [0, 1, 2, 0, 2, 2, 1, 0])],
    build: ([x, i]) => g.gatherElements(x!, i!, 0),
    expected: ([x, i]) => make([2, 4], ([a, b]) => at(x!, [at(i!, [a!, b!]), b!])),
  },
  scatterElements: {
    inputs: [feed([2, 4]), ints([2, 3], [0, 0, 3, 2, 1, 2]), feed([2, 3], 2)],
    build: ([x, i, u]) => g.scatterElements(x!, i!, u!, 1, "add"),
    expected: ([x, i, u]) =>
      make(
        [2, 4],
        ([r, c]) => at(x!, [r!, c!]) + sum(range(3).map((k) => (at(i!, [r!, k]) === c ? at(u!, [r!, k]) : 0))),
      ),
  },
  oneHot: {
    inputs: [ints([2, 2], [3, 0, 1, 3])],
    build: ([i]) => g.oneHot(i!, 4),
    expected: ([i]) => make([2, 2, 4], ([a, b, c]) => Number(at(i!, [a!, b!]) === c)),
  },

  shape: {
    inputs: [{ ...feed([2, 3, 4]), dims: ["B", "T", 4] }],
    build: ([x]) => [g.shapeOf(x!), g.dimOf(x!, 1), g.dimScalar(x!.graph, "B*T-1")],
    expected: () => [
      { shape: [3], data: [2, 3, 4] },
      { shape: [], data: [3] },
      { shape: [], data: [5] },
    ],
  },
  range: {
    inputs: [{ ...feed([2, 3]), dims: ["P", "T"] }],
    build: ([x]) => [g.range(x!.graph, "P", "P+T"), g.add(g.range(x!.graph, 1, 4), g.dimOf(x!, 0))],
    expected: () => [
      { shape: [3], data: [2, 3, 4] },
      { shape: [3], data: [3, 4, 5] },
    ],
  },

  stopGradient: unary(g.stopGradient, (x) => x),
  straightThrough: unary((x) => g.straightThrough(g.exp(x), x), Math.exp),
  rowCrossEntropy: {
    inputs: [feed([3, 4]), ints([3], [3, 0, 2])],
    build: ([x, labels]) => apply1(lossOps.rowCrossEntropy, [x!, labels!], {}),
    expected: ([x, labels]) => ({
      shape: [3],
      data: rowsOf(x!).map((row, i) => -Math.log(softmax(row)[labels!.data[i]!]!)),
    }),
  },
  withSlopes: {
    inputs: [feed([3]), feed([3, 2]), feed([3, 2])],
    build: (values) => apply1(lossOps.withSlopes, values, {}),
    expected: ([y]) => y!,
  },
};
