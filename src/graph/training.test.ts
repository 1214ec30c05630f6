/** @file Whole graphs: gradients of an MLP and of an attention block, 20 steps of descent, and what the backward pass contains. */
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "onnx-buf";
import { describe, expect, test } from "vitest";
import { Session, type Tensor } from "../runtime/index.ts";
import * as g from "./index.ts";
import { exportOnnx, Graph, grad, type Value } from "./index.ts";
import { evaluate, type Feed, gradientError, normals, onnxOps, runGraph, tensorOf } from "./testing/run.ts";

const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

function feed(shape: readonly number[], seed: number, scale = 1, dtype: Feed["dtype"] = "float64"): Feed {
  return { dtype, shape, data: normals(seed, count(shape)).map((x) => x * scale) };
}

/** Two layers, GELU-free so that float64 kernels exist: x [N, 6] to [N, 3]. */
function mlp([x, w1, b1, w2, b2]: Value[]): Value {
  const hidden = g.silu(g.gemm(x!, w1!, { transB: true, c: b1! }));
  return g.gemm(hidden, w2!, { transB: true, c: b2! });
}

const mlpWeights = (dtype: Feed["dtype"]): Feed[] => [
  feed([8, 6], 2, 0.4, dtype),
  feed([8], 3, 0.1, dtype),
  feed([3, 8], 4, 0.4, dtype),
  feed([3], 5, 0.1, dtype),
];

/** A causal block of 2 heads over x [B, T, 8], with norm, residual and an unnormalised exponent of scores kept finite. */
function attentionBlock([x, norm, wq, wk, wv, wo]: Value[]): Value {
  const { graph, dtype } = x!;
  const [B, T, d] = x!.shape as [g.Dim, g.Dim, number];
  const flat = g.reshape(x!, [-1, d]); // [N, d]
  const h = g.rmsNorm(flat, norm!, 1e-5);
  const heads = (w: Value): Value =>
    g.transpose(g.reshape(g.gemm(h, w, { transB: true }), [B, T, 2, d / 2]), [0, 2, 1, 3]); // [B, 2, T, d/2]
  const positions = g.range(graph, 0, T);
  const causal = g.lessEqual(g.unsqueeze(positions, [0]), g.unsqueeze(positions, [1])); // [T, T]
  const scores = g.fusedMatmul(heads(wq!), heads(wk!), { transB: true, alpha: 0.5 });
  const p = g.softmax(g.where(causal, scores, graph.scalar(-1e9, dtype)));
  const y = g.reshape(g.transpose(g.matmul(p, heads(wv!)), [0, 2, 1, 3]), [-1, d]);
  return g.reshape(g.add(flat, g.gemm(y, wo!, { transB: true })), [B, T, d]);
}

const blockInputs = (dtype: Feed["dtype"]): Feed[] => [
  { ...feed([2, 3, 8], 1, 1, dtype), dims: ["B", "T", 8] },
  { dtype, shape: [8], data: normals(2, 8).map((z) => 1 + 0.1 * z) },
  ...[3, 4, 5, 6].map((seed) => feed([8, 8], seed, 0.4, dtype)),
];

describe("gradients of whole blocks", () => {
  test("an MLP", () => {
    const inputs = [{ ...feed([5, 6], 1), dims: ["N", 6] }, ...mlpWeights("float64")];
    expect(gradientError({ inputs, build: mlp })).toBeLessThan(1e-7);
  });

  test("an attention block", () => {
    expect(gradientError({ inputs: blockInputs("float64"), build: attentionBlock })).toBeLessThan(1e-7);
  });

  test("cross entropy with weights", () => {
    const labels: Feed & { fixed: boolean } = { dtype: "int64", shape: [4], data: [1, 0, 2, 2], fixed: true };
    const weights: Feed & { fixed: boolean } = { dtype: "float64", shape: [4], data: [1, 0, 0.5, 2], fixed: true };
    const inputs = [
      { ...feed([4, 3], 1, 3), dims: ["S", 3] },
      { ...labels, dims: ["S"] },
      { ...weights, dims: ["S"] },
    ];
    expect(gradientError({ inputs, build: ([x, l, w]) => g.crossEntropy(x!, l!, w!).loss })).toBeLessThan(1e-7);
  });

  test.each([true, false])("cross entropy behind a head that learns: %s", (learns) => {
    const labels: Feed & { fixed: boolean } = { dtype: "int64", shape: [4], data: [1, 0, 6, 2], fixed: true };
    const weights: Feed & { fixed: boolean } = { dtype: "float64", shape: [4], data: [1, 0, 0.5, 2], fixed: true };
    const inputs = [feed([4, 3], 1), { ...feed([7, 3], 2), fixed: !learns }, labels, weights];
    const build = ([h, w, l, c]: Value[]): Value =>
      g.crossEntropy(g.gemm(h!, w!, { transB: true, alpha: 3 }), l!, c!).loss;
    expect(gradientError({ inputs, build })).toBeLessThan(1e-7);
  });

  test("of a gradient", () => {
    const inputs = [feed([3, 2], 1), { ...feed([2], 2), fixed: true }];
    const build = ([x, c]: Value[]): Value => grad(g.sum(g.mul(g.exp(x!), g.square(g.tanh(g.mul(x!, c!))))), [x!])[0]!;
    expect(gradientError({ inputs, build })).toBeLessThan(1e-6);
  });
});

describe("20 steps of descent lower the loss", () => {
  /** Each output `w.new` has a buffer of its own: the backward pass may still read w when it is written. */
  function descend(weights: Feed[], rate: number, loss: (graph: Graph, weights: Value[]) => Value): number[] {
    const graph = new Graph();
    const values = weights.map(({ dtype, shape }, i) => graph.input(`w${i}`, dtype, shape));
    const objective = graph.output("loss", loss(graph, values));
    grad(objective, values).forEach((gradient, i) => {
      graph.output(`w${i}.new`, g.sub(values[i]!, g.mul(gradient, rate)));
    });
    using session = Session.create(exportOnnx(graph));
    using binding = session.bind();
    const tensors: Tensor[] = weights.map(tensorOf);
    const updated: Tensor[] = weights.map(tensorOf);
    tensors.forEach((tensor, i) => {
      binding.input(`w${i}`, tensor).output(`w${i}.new`, updated[i]!);
    });
    using result = tensorOf({ dtype: objective.dtype, shape: [], data: [0] });
    binding.output("loss", result);
    const losses = Array.from({ length: 20 }, () => {
      session.run(binding);
      tensors.forEach((tensor, i) => {
        (tensor.data as Float32Array).set(updated[i]!.data as Float32Array);
      });
      return Number(result.data[0]);
    });
    for (const tensor of [...tensors, ...updated]) tensor.dispose();
    return losses;
  }

  const falls = (losses: number[], to: number): void => {
    losses.slice(1).forEach((loss, i) => {
      expect(loss).toBeLessThan(losses[i]!);
    });
    expect(losses.at(-1)!).toBeLessThan(to * losses[0]!);
  };

  test("an MLP that classifies", () => {
    const losses = descend(mlpWeights("float32"), 0.5, (graph, weights) => {
      const x = graph.constant("float32", [12, 6], normals(11, 72));
      const labels = graph.constant(
        "int64",
        [12],
        Array.from({ length: 12 }, (_, i) => i % 3),
      );
      return g.crossEntropy(mlp([x, ...weights]), labels, graph.constant("float32", [12], new Array(12).fill(1))).loss;
    });
    falls(losses, 0.7);
  });

  test("an attention block that learns to copy the first token", () => {
    const [x, ...weights] = blockInputs("float32");
    const losses = descend(weights, 0.2, (graph, values) => {
      const input = graph.constant("float32", [2, 3, 8], x!.data);
      const target = g.expand(g.slice(input, 1, 0, 1), [2, 3, 8]);
      return g.mean(g.square(g.sub(attentionBlock([input, ...values]), target)));
    });
    falls(losses, 0.7);
  });
});

test("rows of weight 0 do not count, and a batch of only such rows costs nothing", () => {
  const logits: Feed = feed([3, 4], 1, 2, "float32");
  const labels: Feed = { dtype: "int64", shape: [3], data: [1, 0, 3] };
  const results = [
    [1, 0, 0.5],
    [0, 0, 0],
  ].map((data) =>
    evaluate([logits, labels, { dtype: "float32", shape: [3], data }], ([x, l, w]) => {
      const { loss, sum, count } = g.crossEntropy(x!, l!, w!);
      return [loss, sum, count, ...grad(loss, [x!])];
    }),
  );
  const nll = [0, 1, 2].map((row) => {
    const scores = logits.data.slice(4 * row, 4 * row + 4);
    return Math.log(scores.reduce((a, b) => a + Math.exp(b), 0)) - scores[labels.data[row]!]!;
  });
  const [weighted, empty] = results;
  expect(weighted![1]!.data[0]).toBeCloseTo(nll[0]! + 0.5 * nll[2]!, 5);
  expect(weighted![2]!.data[0]).toBe(1.5);
  expect(weighted![0]!.data[0]).toBeCloseTo((nll[0]! + 0.5 * nll[2]!) / 1.5, 5);
  expect(weighted![3]!.data.slice(4, 8).map(Math.abs)).toEqual([0, 0, 0, 0]);
  expect(empty!.flatMap(({ data }) => data.map(Math.abs))).toEqual(new Array(15).fill(0));
});

describe("the cross entropy of a head, in parts", () => {
  const [S, d, V] = [23, 8, 50];
  const inputs = (rows: number): Feed[] => [
    { ...feed([rows, d], 1, 2, "float32"), dims: ["S", d] },
    feed([V, d], 2, 2, "float32"),
    { dtype: "int64", shape: [rows], dims: ["S"], data: Array.from({ length: rows }, (_, i) => (7 * i) % V) },
    { dtype: "float32", shape: [rows], dims: ["S"], data: Array.from({ length: rows }, (_, i) => (i % 3) / 2) },
  ];
  type Loss = (hidden: Value, logits: (rows: Value) => Value, labels: Value, weights: Value) => Value;
  const whole: Loss = (hidden, logits, labels, weights) => g.crossEntropy(logits(hidden), labels, weights).rows;
  const inParts =
    (parts: number, least: number): Loss =>
    (hidden, logits, labels, weights) =>
      g.mul(g.headCrossEntropy(hidden, logits, labels, { differentiable: true, parts, least }), weights);
  const results = (rows: number, loss: Loss) =>
    evaluate(inputs(rows), ([hidden, head, labels, weights]) => {
      const logits = (x: Value) => g.gemm(x, head!, { transB: true });
      const each = loss(hidden!, logits, labels!, weights!);
      return [each, ...grad(g.sum(g.mul(each, 3)), [hidden!])];
    });

  test.each([
    [1, 1],
    [4, 1],
    [5, 7],
    [16, 2],
    [3, 100],
  ])("%i parts of at least %i rows are the same as the whole", (parts, least) => {
    for (const rows of [0, 1, S]) {
      const [loss, gradient] = results(rows, inParts(parts, least));
      const [wanted, wantedGradient] = results(rows, whole);
      expect(loss!.shape).toEqual([rows]);
      expect(gradient!.shape).toEqual([rows, d]);
      const far = (a: readonly number[], b: readonly number[]) => Math.max(0, ...a.map((x, i) => Math.abs(x - b[i]!)));
      expect(far(loss!.data, wanted!.data)).toBeLessThan(1e-5); // of up to 60
      expect(far(gradient!.data, wantedGradient!.data)).toBeLessThan(1e-6 * 12); // of up to 12
      if (rows === S) {
        expect(Math.max(...wanted!.data)).toBeGreaterThan(10);
        expect(Math.max(...wantedGradient!.data)).toBeGreaterThan(5);
        expect(gradient!.data.slice(0, d).map(Math.abs)).toEqual(new Array(d).fill(0)); // weight 0
      }
    }
  });

  test("takes two products a part where a gradient is wanted, else one", () => {
    const products = (differentiable: boolean): number => {
      const graph = new Graph();
      const hidden = graph.input("x", "float32", ["S", d]);
      const head = graph.parameter("head", "float32", [V, d]);
      const logits = (x: Value) => g.gemm(x, head, { transB: true });
      const labels = graph.input("labels", "int64", ["S"]);
      const loss = g.sum(g.headCrossEntropy(hidden, logits, labels, { differentiable, parts: 4 }));
      graph.output("loss", loss);
      if (differentiable) graph.output("dx", grad(loss, [hidden])[0]!);
      return onnxOps(graph).filter((type) => type === "Gemm").length;
    };
    expect([products(false), products(true)]).toEqual([4, 8]);
  });
});

test("logits of any size do not overflow", () => {
  const inputs: Feed[] = [
    { dtype: "float32", shape: [2, 2], data: [1e4, -1e4, -1e4, 1e4] },
    { dtype: "int64", shape: [2], data: [0, 0] },
    { dtype: "float32", shape: [2], data: [1, 1] },
  ];
  const [loss, dx] = evaluate(inputs, ([x, l, w]) => {
    const { loss } = g.crossEntropy(x!, l!, w!);
    return [loss, ...grad(loss, [x!])];
  });
  expect(loss!.data[0]).toBeCloseTo(1e4, 0);
  expect(dx!.data.map((v) => v + 0)).toEqual([0, 0, -0.5, 0.5]);
});

describe("the backward pass", () => {
  /** A frozen weight [out, in] with a low-rank update of its output, as in LoRA, twice. */
  function lora(): { graph: Graph; loss: Value; a: Value; b: Value; frozen: Value[] } {
    const graph = new Graph();
    const x = graph.input("x", "float32", ["N", 16]);
    const frozen = [0, 1].map((i) => graph.parameter(`w${i}`, "float32", [16, 16]));
    const a = graph.input("a", "float32", [4, 16]);
    const b = graph.input("b", "float32", [16, 4]);
    const y = frozen.reduce((h, w) => {
      const low = g.gemm(h, a, { transB: true });
      return g.gemm(low, b, { transB: true, alpha: 2, c: g.gemm(h, w, { transB: true }) });
    }, x);
    return { graph, loss: g.mean(g.square(y)), a, b, frozen };
  }

  test("transposes no weight and gives frozen weights no gradient", () => {
    const { graph, loss, a, b } = lora();
    grad(loss, [a, b]).forEach((gradient, i) => {
      graph.output(`g${i}`, gradient);
    });
    const model = fromBinary(ModelProtoSchema, exportOnnx(graph)).graph!;
    expect(new Set(model.node.map((node) => node.opType))).not.toContain("Transpose");
    const uses = model.node.filter((node) => node.input.includes("w1"));
    const transB = uses.map((node) => node.attribute.find(({ name }) => name === "transB")!.i);
    expect(uses.map((node) => node.opType)).toEqual(["Gemm", "Gemm"]);
    expect(transB).toEqual([1n, 0n]);
    // The first weight is met only forwards: nothing below it learns except through it, and x does not.
    expect(model.node.filter((node) => node.input.includes("w0")).length).toBe(1);
    // 6 forwards; backwards a, b and the low-rank value in both layers, and the way from layer to layer, twice.
    expect(model.node.filter((node) => node.opType === "Gemm").length).toBe(6 + 3 + 3 + 2);
  });

  test("adds gradients inside the products", () => {
    const { graph, loss, a } = lora();
    graph.output("ga", grad(loss, [a])[0]!);
    expect(onnxOps(graph)).not.toContain("Add");
  });

  test("makes no copy of the logits but their softmax when the head is frozen", () => {
    const graph = new Graph();
    const h = graph.input("h", "float32", ["S", 3]);
    const head = graph.parameter("head", "float32", [50, 3]);
    const logits = g.gemm(h, head, { transB: true });
    const { loss } = g.crossEntropy(logits, graph.input("labels", "int64", ["S"]), graph.input("w", "float32", ["S"]));
    graph.output("loss", loss);
    graph.output("dh", grad(loss, [h])[0]!);
    const wide = fromBinary(ModelProtoSchema, exportOnnx(graph)).graph!.node.filter(
      ({ opType }) => !["Unsqueeze", "Squeeze", "Max", "Sub", "Div"].includes(opType),
    );
    expect(wide.map(({ opType }) => opType)).toEqual([
      "Gemm", // logits
      ...["Softmax", "ReduceMax", "ReduceMax", "Log", "GatherElements"], // p; the rest are columns
      ...["Mul", "ReduceSum", "ReduceSum", "Mul"], // the loss and its gradient by row
      ...["Gather", "Neg", "Gemm"], // (p - onehot) W = p W - W[labels]
      "Mul", // by row
    ]);
  });

  test("is not exported where nothing asks for it", () => {
    const { graph, loss, a, b } = lora();
    graph.output("loss", loss);
    const before = onnxOps(graph);
    grad(loss, [a, b]);
    expect(onnxOps(graph)).toEqual(before);
  });

  test("gives zeros for what the loss does not depend on", () => {
    const graph = new Graph();
    const x = graph.input("x", "float32", ["N", 2]);
    const y = graph.input("y", "float32", ["N", 3]);
    const [dy, dx] = grad(g.sum(g.mul(x, g.stopGradient(x))), [y, x]);
    graph.output("dy", dy!);
    graph.output("dx", dx!);
    const feeds: Record<string, Feed> = { x: feed([2, 2], 1, 1, "float32"), y: feed([2, 3], 2, 1, "float32") };
    const results = runGraph(graph, feeds);
    expect(results.dy).toEqual({ shape: [2, 3], data: [0, 0, 0, 0, 0, 0] });
    expect(results.dx!.data).toEqual(feeds.x!.data.map(Math.fround)); // not 2 x: one factor is a constant
  });

  test("straight through: the forward value is the value, the gradient is the surrogate's", () => {
    const x: Feed = { dtype: "float32", shape: [3], data: [-0.5, 0.25, 2] };
    const [y, dx] = evaluate([x], ([v]) => {
      const hard = g.cast(g.greater(v!, 0), "float32");
      const through = g.straightThrough(hard, g.mul(v!, 3));
      return [through, ...grad(g.sum(through), [v!])];
    });
    expect(y!.data).toEqual([0, 1, 1]);
    expect(dx!.data).toEqual([3, 3, 3]);
  });

  test("ties: max shares, maximum and minimum take the first", () => {
    const inputs: Feed[] = [
      { dtype: "float32", shape: [3], data: [2, 1, 2] },
      { dtype: "float32", shape: [3], data: [2, 1, 3] },
    ];
    const gradients = evaluate(inputs, ([a, b]) => [
      ...grad(g.max(a!), [a!]),
      ...grad(g.sum(g.maximum(a!, b!)), [a!, b!]),
      ...grad(g.sum(g.minimum(a!, b!)), [a!, b!]),
    ]).map(({ data }) => data);
    expect(gradients).toEqual([
      [0.5, 0, 0.5],
      [1, 1, 0],
      [0, 0, 1],
      [1, 1, 1],
      [0, 0, 0],
    ]);
  });
});
