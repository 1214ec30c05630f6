/** @file The written model: names, weights outside, updates in place, aliases, and that large graphs are quick to write. */
import { fromBinary } from "@bufbuild/protobuf";
import { type GraphProto, ModelProtoSchema, type TypeProto_Tensor } from "onnx-buf";
import { describe, expect, test } from "vitest";
import { Session } from "../runtime/index.ts";
import * as g from "./index.ts";
import { exportOnnx, Graph, grad, type Value } from "./index.ts";
import { type Feed, normals, onnxOps, runGraph, tensorOf } from "./testing/run.ts";

const model = (graph: Graph): GraphProto => fromBinary(ModelProtoSchema, exportOnnx(graph)).graph!;
const vector = (data: number[]): Feed => ({ dtype: "float32", shape: [data.length], data });

describe("the model", () => {
  test("has opset 21, symbols in shapes, and names from sites", () => {
    const graph = new Graph("sample");
    const x = graph.input("x", "float32", ["B", "T", 4]);
    graph.output(
      "y",
      graph.scope("layers.0", () => graph.scope("mlp", () => g.relu(g.reshape(x, [-1, 4])))),
    );
    const whole = fromBinary(ModelProtoSchema, exportOnnx(graph));
    expect(whole.opsetImport.map(({ domain, version }) => [domain, version])).toEqual([
      ["", 21n],
      ["com.microsoft", 1n],
    ]);
    expect(whole.graph!.name).toBe("sample");
    expect(whole.graph!.node.map(({ name }) => name)).toEqual(["layers.0.mlp/reshape#0", "layers.0.mlp/relu#1"]);
    using session = Session.create(exportOnnx(graph));
    expect(session.inputs).toMatchObject([{ name: "x", dtype: "float32", shape: ["B", "T", 4] }]);
    expect(session.outputs).toMatchObject([{ name: "y", dtype: "float32", shape: ["B*T", 4] }]);
  });

  test("keeps weights outside, and only what outputs need", () => {
    const graph = new Graph();
    const x = graph.input("x", "float32", ["N", 512]);
    graph.input("unused", "float32", [1]);
    const w = graph.parameter("w", "float32", [512, 512]);
    g.exp(graph.parameter("other", "float32", [512, 512]));
    graph.output("y", g.gemm(x, w));
    const bytes = exportOnnx(graph);
    expect(bytes.length).toBeLessThan(1000);
    const { node, input, initializer } = model(graph);
    expect(node.map(({ opType }) => opType)).toEqual(["Gemm"]);
    expect(input.map(({ name }) => name)).toEqual(["x"]);
    expect(initializer.map(({ name }) => name)).toEqual(["w"]);
    expect(initializer[0]!.rawData.length).toBe(0);
  });

  test("tells the runtime the shape of every value between", () => {
    const graph = new Graph();
    const x = graph.input("x", "float32", ["B", "T", 4]);
    const [rows, unread] = g.split(g.reshape(g.exp(x), [-1, 4]), 1, [3, 1]);
    graph.output("y", g.softmax(g.reshape(rows!, ["B", "T", 3]), -1));
    graph.output("z", g.exp(unread!));
    const { node, valueInfo, output } = model(graph);
    const shapes = valueInfo.map(({ type }) => {
      const { value } = type!.value as { value: TypeProto_Tensor };
      return value.shape!.dim.map((dim) => dim.value.value).join();
    });
    const made = node.flatMap((one) => one.output).filter((name) => !output.some((result) => result.name === name));
    expect(valueInfo.map(({ name }) => name)).toEqual(made);
    expect(shapes.slice(0, 4)).toEqual(["B,T,4", "B*T,4", "B*T,3", "B*T,1"]);
    expect(shapes.at(-1)).toBe("B,T,3");
  });

  test("stores equal constants once", () => {
    const graph = new Graph();
    const x = graph.input("x", "float32", ["N", 2, 3]);
    graph.output("a", g.unsqueeze(g.sum(x, { axes: [1] }), [1]));
    graph.output("b", g.add(x, 3));
    graph.output("c", g.clip(x, { min: 3 }));
    expect(model(graph).initializer.length).toBe(2); // the axis [1] and the number 3
  });

  test("copies only outputs that are inputs, parameters, constants or named twice", () => {
    const graph = new Graph();
    const x = graph.input("x", "float32", [2]);
    const w = graph.parameter("w", "float32", [2]);
    const y = g.stopGradient(g.exp(x));
    const outputs: [string, Value][] = [
      ["y", y],
      ["again", y],
      ["in", x],
      ["weight", w],
      ["one", graph.scalar(1)],
      ["next", g.neg(y)],
    ];
    for (const [name, value] of outputs) graph.output(name, value);
    expect(onnxOps(graph)).toEqual(["Exp", "Neg", "Identity", "Identity", "Identity", "Identity"]);
    const results = runGraph(graph, { x: vector([0, 1]) }, { w: vector([5, 6]) });
    const e = Math.fround(Math.E);
    expect(Object.values(results).map(({ data }) => data.map((v) => Number(v.toFixed(4))))).toEqual([
      [1, Number(e.toFixed(4))],
      [1, Number(e.toFixed(4))],
      [0, 1],
      [5, 6],
      [1],
      [-1, -Number(e.toFixed(4))],
    ]);
  });

  test("leaves out results that nothing reads", () => {
    const graph = new Graph();
    const x = graph.input("x", "float32", ["N", 4]);
    const w = graph.input("w", "float32", [4]);
    const y = g.rmsNorm(x, w, 1e-5);
    graph.output("y", y);
    expect(model(graph).node[0]!.output.length).toBe(1);
    graph.output("dx", grad(g.sum(y), [x])[0]!);
    expect(model(graph).node[0]!.output.length).toBe(2);
  });

  test("folds a sum into the product only this sum reads", () => {
    const graph = new Graph();
    const x = graph.input("x", "float32", ["N", 4]);
    const w = graph.input("w", "float32", [4, 4]);
    const product = g.gemm(x, w);
    graph.output("y", g.add(x, product));
    expect(onnxOps(graph)).toEqual(["Gemm"]);
    const feeds = { x: { ...vector([1, 2, 3, 4]), shape: [1, 4] }, w: { ...vector(normals(1, 16)), shape: [4, 4] } };
    const fused = runGraph(graph, feeds).y!.data;
    graph.output("product", product);
    expect(onnxOps(graph)).toEqual(["Gemm", "Add"]);
    runGraph(graph, feeds).y!.data.forEach((value, i) => {
      expect(fused[i]).toBeCloseTo(value, 5);
    });
  });

  test("holds numbers of every element type", () => {
    const graph = new Graph();
    const dtypes = ["float64", "int64", "int32", "int16", "int8", "uint16", "uint8", "float16", "bfloat16"] as const;
    for (const dtype of dtypes) graph.output(dtype, g.cast(graph.constant(dtype, [2], [1, 100]), "float32"));
    graph.output("bool", g.cast(graph.constant("bool", [2], [true, false]), "float32"));
    const results = runGraph(graph, {});
    for (const dtype of dtypes) expect(results[dtype]!.data).toEqual([1, 100]);
    expect(results.bool!.data).toEqual([1, 0]);
  });

  test("rounds float16 and bfloat16 constants to even", () => {
    const graph = new Graph();
    const numbers = [0.1, -65504, 65520, 2 ** -24, 2 ** -26, 1 + 2 ** -11, 1 + 3 * 2 ** -11, -0, 6.1e-5];
    graph.output("half", g.cast(graph.constant("float16", [9], numbers), "float32"));
    graph.output("brain", g.cast(graph.constant("bfloat16", [3], [0.1, 1 + 2 ** -8, 1 + 3 * 2 ** -8]), "float32"));
    const { half, brain } = runGraph(graph, {});
    expect(half!.data).toEqual([
      0.0999755859375,
      -65504,
      Number.POSITIVE_INFINITY,
      2 ** -24,
      0,
      1,
      1 + 2 ** -9,
      -0,
      6.097555160522461e-5,
    ]);
    expect(brain!.data).toEqual([0.10009765625, 1, 1 + 2 ** -6]);
  });
});

describe("updates in place", () => {
  test("accumulate into the buffer of an input, also inside a product", () => {
    const graph = new Graph();
    const total = graph.input("total", "float32", [2, 2]);
    const a = graph.input("a", "float32", ["N", 2]);
    graph.output("total.new", g.add(total, g.gemm(a, a, { transA: true })), { replaces: total });
    expect(onnxOps(graph)).toEqual(["Gemm"]);
    using session = Session.create(exportOnnx(graph));
    using buffer = tensorOf({ dtype: "float32", shape: [2, 2], data: [10, 0, 0, 10] });
    using rows = tensorOf({ dtype: "float32", shape: [3, 2], data: [1, 2, 3, 4, 5, 6] });
    using binding = session.bind().input("total", buffer).input("a", rows).output("total.new", buffer);
    session.run(binding);
    session.run(binding);
    expect([...buffer.data]).toEqual([10 + 2 * 35, 2 * 44, 2 * 44, 10 + 2 * 56]);
  });

  test("are refused when a reader of the input may come later", () => {
    const graph = new Graph();
    const p = graph.input("p", "float32", [4]);
    graph.output("p.new", g.mul(p, 0.5), { replaces: p });
    graph.output(
      "norm",
      graph.scope("clip", () => g.sum(g.square(p))),
    );
    expect(() => exportOnnx(graph)).toThrow(
      'output "p.new" may be written before square at "clip" reads the input; make the output depend on that node',
    );
  });

  test("are refused for another shape", () => {
    const graph = new Graph();
    const p = graph.input("p", "float32", [4]);
    graph.output("p.new", g.sum(p), { replaces: p });
    expect(() => exportOnnx(graph)).toThrow("float32 [] and cannot replace float32 [4]");
  });

  test("are fine for Adam: every reader is on the way to the result", () => {
    const graph = new Graph();
    const [p, m, v, gradient] = ["p", "m", "v", "g"].map((name) => graph.input(name, "float32", [4])) as [
      Value,
      Value,
      Value,
      Value,
    ];
    const m1 = g.add(g.mul(m, 0.9), g.mul(gradient, 0.1));
    const v1 = g.add(g.mul(v, 0.99), g.mul(g.square(gradient), 0.01));
    graph.output("m.new", m1, { replaces: m });
    graph.output("v.new", v1, { replaces: v });
    graph.output("p.new", g.sub(g.mul(p, 0.99), g.div(m1, g.add(g.sqrt(v1), 1e-8))), { replaces: p });
    using session = Session.create(exportOnnx(graph));
    const start = { p: [1, 2, 3, 4], m: [0, 0, 0, 0], v: [0, 0, 0, 0], g: [1, -2, 3, -4] };
    const tensors = Object.entries(start).map(([name, data]) => [name, tensorOf(vector(data))] as const);
    using binding = session.bind();
    for (const [name, tensor] of tensors) {
      binding.input(name, tensor);
      if (name !== "g") binding.output(`${name}.new`, tensor);
    }
    let expected = start;
    for (let step = 0; step < 3; step++) {
      session.run(binding);
      const mean = expected.m.map((x, i) => 0.9 * x + 0.1 * start.g[i]!);
      const square = expected.v.map((x, i) => 0.99 * x + 0.01 * start.g[i]! ** 2);
      const next = expected.p.map((x, i) => 0.99 * x - mean[i]! / (Math.sqrt(square[i]!) + 1e-8));
      expected = { p: next, m: mean, v: square, g: start.g };
    }
    for (const [name, tensor] of tensors) {
      Array.from(tensor.data, Number).forEach((x, i) => {
        expect(x).toBeCloseTo(expected[name as keyof typeof start][i]!, 4);
      });
      tensor.dispose();
    }
  });
});

test("the key-value cache is appended in place", () => {
  const [heads, kvHeads, D, capacity] = [2, 1, 16, 6];
  const graph = new Graph();
  const query = graph.input("qkv", "float32", ["B", "T", (heads + 2 * kvHeads) * D]);
  const pastKey = graph.input("pastKey", "float32", ["B", kvHeads, capacity, D]);
  const pastValue = graph.input("pastValue", "float32", ["B", kvHeads, capacity, D]);
  const { y, presentKey, presentValue } = g.groupQueryAttention({
    query,
    pastKey,
    pastValue,
    seqlensK: graph.input("seqlens", "int32", ["B"]),
    totalSequenceLength: graph.input("total", "int32", []),
    cos: graph.parameter("cos", "float32", [capacity, D / 2]),
    sin: graph.parameter("sin", "float32", [capacity, D / 2]),
    numHeads: heads,
    kvNumHeads: kvHeads,
    localWindowSize: 4,
    softcap: 20,
    scale: 0.3,
  });
  graph.output("y", y);
  graph.output("presentKey", presentKey);
  graph.output("presentValue", presentValue);
  const angle = Array.from({ length: (capacity * D) / 2 }, (_, i) => Math.floor(i / (D / 2)) * 0.5 ** (i % (D / 2)));
  using cos = tensorOf({ dtype: "float32", shape: [capacity, D / 2], data: angle.map(Math.cos) });
  using sin = tensorOf({ dtype: "float32", shape: [capacity, D / 2], data: angle.map(Math.sin) });
  using session = Session.create(exportOnnx(graph), {
    initializers: new Map([
      ["cos", cos],
      ["sin", sin],
    ]),
  });

  /** All 5 tokens, `chunk` at a time; the output of each token. */
  const runInChunks = (chunk: number): number[] => {
    const width = (heads + 2 * kvHeads) * D;
    const tokens = normals(3, 5 * width);
    const cache = {
      dtype: "float32",
      shape: [1, kvHeads, capacity, D],
      data: new Array(capacity * D).fill(0),
    } as const;
    using key = tensorOf(cache);
    using value = tensorOf(cache);
    const out: number[] = [];
    for (let at = 0; at < 5; at += chunk) {
      const T = Math.min(chunk, 5 - at);
      using x = tensorOf({ dtype: "float32", shape: [1, T, width], data: tokens.slice(at * width, (at + T) * width) });
      using seqlens = tensorOf({ dtype: "int32", shape: [1], data: [at + T - 1] });
      using total = tensorOf({ dtype: "int32", shape: [], data: [at + T] });
      using result = tensorOf({ dtype: "float32", shape: [1, T, heads * D], data: new Array(T * heads * D).fill(0) });
      using binding = session.bind();
      binding
        .input("qkv", x)
        .input("pastKey", key)
        .input("pastValue", value)
        .input("seqlens", seqlens)
        .input("total", total);
      binding.output("y", result).output("presentKey", key).output("presentValue", value);
      session.run(binding);
      out.push(...Array.from(result.data, Number));
    }
    return out;
  };
  const whole = runInChunks(5);
  runInChunks(1).forEach((x, i) => {
    expect(x).toBeCloseTo(whole[i]!, 5);
  });
  expect(whole.length).toBe(5 * heads * D);
});

test("a graph of over ten thousand nodes is differentiated and written without repeating work", () => {
  const graph = new Graph();
  const w = graph.parameter("w", "float32", [8, 8]);
  let x = graph.input("x", "float32", ["B*T", 8]);
  for (let i = 0; i < 1500; i++) {
    x = graph.scope(`layers.${i}`, () => g.add(x, g.silu(g.gemm(x, w, { transB: true }))));
  }
  graph.output("dw", grad(g.sum(x), [w])[0]!);
  const { node } = model(graph);
  expect(graph.nodes.length).toBeGreaterThan(10_000);
  expect(node.length).toBeGreaterThan(10_000);
  expect(new Set(node.map(({ name }) => name)).size).toBe(node.length);
});
