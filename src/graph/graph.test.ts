/** @file Building: errors name op, site and both shapes; equal nodes are one; needless nodes are not made. */
import { describe, expect, test } from "vitest";
import * as g from "./index.ts";
import { Graph, GraphError, type GraphErrorCode, type Value } from "./index.ts";
import { onnxOps, runGraph } from "./testing/run.ts";

/** A graph with x [B, T, 8], y [B, 4], w [6, 8], i int64 [B]. */
function sample(): { graph: Graph; x: Value; y: Value; w: Value; i: Value } {
  const graph = new Graph();
  const x = graph.input("x", "float32", ["B", "T", 8]);
  const y = graph.input("y", "float32", ["B", 4]);
  const w = graph.parameter("w", "float32", [6, 8]);
  const i = graph.input("i", "int64", ["B"]);
  return { graph, x, y, w, i };
}

/** [B*T, 1] */
const column = (x: Value, y: Value): Value =>
  g.add(g.max(g.reshape(x, [-1, 8]), { axes: [1], keepDims: true }), g.sum(y));

type Build = (s: ReturnType<typeof sample>) => unknown;

const wrong: [GraphErrorCode, string, Build][] = [
  ["SHAPE_MISMATCH", 'add at "layers.3": shapes [B, T, 8] and [B, 4] do not broadcast', ({ x, y }) => g.add(x, y)],
  [
    "SHAPE_MISMATCH",
    'where at "layers.3": shapes [B] and [B, 4] and [] do not broadcast',
    ({ y, i }) => g.where(g.equal(i, 1), y, 0),
  ],
  [
    "DTYPE_MISMATCH",
    'mul at "layers.3": operands are float32 [B, 4] and int64 [B]; cast one of them',
    ({ y, i }) => g.mul(y, i),
  ],
  ["DTYPE_MISMATCH", 'exp at "layers.3": needs floating-point numbers, got int64 [B]', ({ i }) => g.exp(i)],
  ["DTYPE_MISMATCH", 'and at "layers.3": needs bool, got int64 [B]', ({ i }) => g.and(i, i)],
  [
    "SHAPE_MISMATCH",
    'matmul at "layers.3": cannot multiply [B, T, 8] by [6, 8]: inner sizes 8 and 6 differ',
    ({ x, w }) => g.matmul(x, w),
  ],
  [
    "SHAPE_MISMATCH",
    'gemm at "layers.3": cannot multiply [B, 4] by [6, 8]ᵀ: inner sizes 4 and 8 differ',
    ({ y, w }) => g.gemm(y, w, { transB: true }),
  ],
  [
    "SHAPE_MISMATCH",
    'gemm at "layers.3": cannot multiply [B, T, 8] by [6, 8]ᵀ: gemm takes 2-D matrices, matmul takes batches',
    ({ x, w }) => g.gemm(x, w, { transB: true }),
  ],
  [
    "SHAPE_MISMATCH",
    'gemm at "layers.3": c [B, 4] does not broadcast to the product [B*T, 6]',
    ({ x, y, w }) => g.gemm(g.reshape(x, [-1, 8]), w, { transB: true, c: y }),
  ],
  ["SHAPE_MISMATCH", 'reshape at "layers.3": [B, T, 8] does not fit into [B, 8]', ({ x }) => g.reshape(x, ["B", 8])],
  ["SHAPE_MISMATCH", 'reshape at "layers.3": [B, 4] does not fit into [-1, 3]', ({ y }) => g.reshape(y, [-1, 3])],
  [
    "UNKNOWN_SYMBOL",
    'shape at "layers.3": the size S is not known at run time',
    ({ graph, x }) => {
      const wide = graph.input("wide", "float32", ["S*U"]);
      return [x, g.reshape(wide, ["S", "U"])];
    },
  ],
  ["SHAPE_MISMATCH", 'expand at "layers.3": [B, 4] does not broadcast to [B, 5]', ({ y }) => g.expand(y, ["B", 5])],
  [
    "SHAPE_MISMATCH",
    'concat at "layers.3": shapes [B, 4] and [6, 8] differ outside of axis 0',
    ({ y, w }) => g.concat([y, w], 0),
  ],
  ["SHAPE_MISMATCH", 'slice at "layers.3": 2…9 is outside of axis 1 of [6, 8]', ({ w }) => g.slice(w, 1, 2, 9)],
  [
    "SHAPE_MISMATCH",
    'split at "layers.3": pieces [2, 3] do not fill axis 0 of [6, 8]',
    ({ w }) => g.split(w, 0, [2, 3]),
  ],
  ["SHAPE_MISMATCH", 'squeeze at "layers.3": axis 0 of [6, 8] is not 1', ({ w }) => g.squeeze(w, [0])],
  ["BAD_ATTRIBUTE", 'softmax at "layers.3": axis 3 is outside of the shape [B, T, 8]', ({ x }) => g.softmax(x, 3)],
  ["BAD_ATTRIBUTE", 'transpose at "layers.3": [0, 0] is no permutation of [6, 8]', ({ w }) => g.transpose(w, [0, 0])],
  [
    "BAD_ATTRIBUTE",
    'topK at "layers.3": cannot take the 9 largest along axis 1 of float32 [6, 8]',
    ({ w }) => g.topK(w, 9),
  ],
  ["DTYPE_MISMATCH", 'gather at "layers.3": needs int64 or int32, got float32 [B, 4]', ({ w, y }) => g.gather(w, y)],
  [
    "SHAPE_MISMATCH",
    'rmsNorm at "layers.3": weight [6, 8] does not scale the last axis of [B, T, 8]',
    ({ x, w }) => g.rmsNorm(x, w, 1e-5),
  ],
  [
    "SHAPE_MISMATCH",
    'rowCrossEntropy at "layers.3": logits [B, T, 8] and labels [B] should be [S, V] and [S]',
    ({ x, i, y }) => g.crossEntropy(x, i, y),
  ],
  ["SHAPE_MISMATCH", "grad: the loss must be one floating-point number, not float32 [B, 4]", ({ y }) => g.grad(y, [y])],
  ["DIFFERENT_GRAPHS", 'add at "layers.3": an operand belongs to another graph', ({ x }) => g.add(x, sample().x)],
  ["DUPLICATE_NAME", '"x" already names an input', ({ graph }) => graph.input("x", "float32", [1])],
  ["DUPLICATE_NAME", '"w" already names an input', ({ graph }) => graph.parameter("w", "float32", [6, 9])],
  ["DUPLICATE_NAME", '"x" already names an input', ({ graph, x }) => graph.output("x", x)],
  ["DUPLICATE_NAME", '"%1" cannot be a name', ({ graph }) => graph.input("%1", "float32", [1])],
  [
    "SHAPE_MISMATCH",
    'constant at "layers.3": 2 elements of int64 do not fill the shape [3]',
    ({ graph }) => graph.constant("int64", [3], [1, 2]),
  ],
];

describe("errors", () => {
  test.each(wrong)("%s: %s", (code, message, build) => {
    const s = sample();
    let caught: unknown;
    try {
      s.graph.scope("layers.3", () => build(s));
    } catch (error) {
      caught = error;
    }
    expect(caught).toBeInstanceOf(GraphError);
    expect((caught as GraphError).code).toBe(code);
    expect((caught as GraphError).message).toContain(message);
    expect((caught as GraphError).exitCode).toBe(1);
    expect(s.graph.site).toBe(""); // scopes end when building fails
  });

  test("NO_GRADIENT names the op and the site of the forward pass", () => {
    const { graph, x, w } = sample();
    const norm = graph.parameter("norm", "float32", [8]);
    const y = graph.scope("layers.3", () => graph.scope("mlp", () => g.skipRmsNorm(x, x, norm, 1e-5).y));
    expect(w.dtype).toBe("float32");
    expect(() => g.grad(g.sum(y), [x])).toThrow(/^skipRmsNorm at "layers\.3\.mlp" .*has no gradient rule/);
  });
});

describe("equal things are one", () => {
  test("nodes, constants, tied parameters", () => {
    const { graph, x, w } = sample();
    expect(g.exp(g.mul(x, 2))).toBe(g.exp(g.mul(2, x)));
    expect(graph.constant("int64", [2], [1, 2])).toBe(graph.constant("int64", [2], BigInt64Array.of(1n, 2n)));
    expect(graph.scalar(1, "float32")).not.toBe(graph.scalar(1, "float64"));
    expect(graph.parameter("w", "float32", [6, 8])).toBe(w);
    expect(g.softmax(x, -1)).toBe(g.softmax(x, 2));
    expect(g.softmax(x, 1)).not.toBe(g.softmax(x, 2));
  });
});

describe("needless nodes", () => {
  const same: [string, Build, Build][] = [
    ["times 1", ({ x }) => g.mul(x, 1), ({ x }) => x],
    ["plus 0", ({ x }) => g.add(0, x), ({ x }) => x],
    ["through 1", ({ x }) => g.div(x, 1), ({ x }) => x],
    ["to the power 1", ({ x }) => g.pow(x, 1), ({ x }) => x],
    ["negated twice", ({ x }) => g.neg(g.neg(x)), ({ x }) => x],
    ["scaled twice", ({ x }) => g.mul(g.mul(x, 2), 4), ({ x }) => g.mul(x, 8)],
    ["plus a negative", ({ x }) => g.add(x, g.neg(g.exp(x))), ({ x }) => g.sub(x, g.exp(x))],
    ["cast to itself", ({ x }) => g.cast(x, "float32"), ({ x }) => x],
    ["reshaped back", ({ x }) => g.reshape(g.reshape(x, [-1, 8]), ["B", "T", 8]), ({ x }) => x],
    ["reshaped twice", ({ x }) => g.reshape(g.unsqueeze(x, [1]), [-1, 8]), ({ x }) => g.reshape(x, ["B*T", 8])],
    ["transposed back", ({ x }) => g.transpose(g.transpose(x, [1, 2, 0]), [2, 0, 1]), ({ x }) => x],
    ["squeezed back", ({ x }) => g.squeeze(g.unsqueeze(x, [-1]), [3]), ({ x }) => x],
    ["sliced whole", ({ x }) => g.slice(x, 1, 0, "T"), ({ x }) => x],
    ["expanded to its shape", ({ x }) => g.expand(x, ["B", "T", 8]), ({ x }) => x],
    ["expanded before a product", ({ y, w }) => g.mul(g.expand(g.sum(y), [6, 8]), w), ({ y, w }) => g.mul(g.sum(y), w)],
    ["sum over nothing", ({ x }) => g.sum(x, { axes: [] }), ({ x }) => x],
    ["concat of one", ({ x }) => g.concat([x], 0), ({ x }) => x],
    [
      "rows scaled before a narrower product",
      ({ x, y, w }) => g.gemm(g.mul(g.reshape(x, [-1, 8]), column(x, y)), w, { transB: true }),
      ({ x, y, w }) => g.mul(g.gemm(g.reshape(x, [-1, 8]), w, { transB: true }), column(x, y)),
    ],
    ["scalars", ({ graph }) => g.add(g.mul(graph.scalar(2), 3), 1), ({ graph }) => graph.scalar(7)],
  ];

  test.each(same)("%s", (_, build, simple) => {
    const s = sample();
    expect(build(s)).toBe(simple(s));
  });

  test("integers are not scaled together: they wrap", () => {
    const { i } = sample();
    expect(g.mul(g.mul(i, 2), 4)).not.toBe(g.mul(i, 8));
  });
});

describe("reshape", () => {
  /** ONNX nodes of reshaping x, declared with `dims`, to `target`; B and T are dimensions of another input. */
  const nodes = (dims: g.Dim[], target: g.Dim[]): string[] => {
    const graph = new Graph();
    graph.input("tokens", "int64", ["B", "T"]);
    graph.output("y", g.reshape(graph.input("x", "float32", dims), target));
    return onnxOps(graph);
  };

  test("needs no size at run time where ONNX can infer it", () => {
    expect(nodes(["B", "T", 8], ["B*T", 8])).toEqual(["Reshape"]);
    expect(nodes(["B", "T", 8], ["B", "T", 2, 4])).toEqual(["Reshape"]);
    expect(nodes(["B", 2, "T", 4], ["B", 2, "T", 2, 2])).toEqual(["Reshape"]);
    expect(nodes(["P+T", 8], ["P+T", 2, 4])).toEqual(["Reshape"]);
  });

  test("reads only the sizes it must", () => {
    expect(nodes(["B*T", 8], ["B", "T", 8])).toEqual(["Shape", "Concat", "Reshape"]);
  });

  test("handles empty tensors", () => {
    const graph = new Graph();
    graph.output("y", g.reshape(graph.input("x", "float32", ["B", 0]), [0, "B", 4]));
    const { y } = runGraph(graph, { x: { dtype: "float32", shape: [3, 0], data: [] } });
    expect(y!.shape).toEqual([0, 3, 4]);
  });
});
