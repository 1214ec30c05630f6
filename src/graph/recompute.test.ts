/** @file Gradients by recomputation: the same numbers, from copies that the runtime neither merges nor makes early. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "onnx-buf";
import { afterAll, describe, expect, test } from "vitest";
import { Session } from "../runtime/index.ts";
import * as g from "./index.ts";
import { exportOnnx, Graph, grad, type Recomputation, type Value } from "./index.ts";
import { type Feed, normals, runGraph, tensorOf } from "./testing/run.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-recompute-"));
afterAll(() => rmSync(directory, { recursive: true }));

const LAYERS = 3;
const [B, T, d] = [2, 5, 8];

/** Layers of attention and a product, as models have them; a loss reads a value from within each, and so does an output. */
function build(recompute: Recomputation): Graph {
  const graph = new Graph();
  const rows = "B*T";
  const norm = graph.parameter("norm", "float32", [d]);
  const shared = g.exp(graph.input("shared", "float32", ["B", "T", 1])); // read in every layer, made in none
  const weights = Array.from({ length: LAYERS }, (_, i) => graph.input(`w${i}`, "float32", [d, d]));
  const reports: Value[] = [];
  let hidden = g.reshape(graph.input("x", "float32", ["B", "T", d]), [rows, d]);
  const layer = (w: Value, i: number): void => {
    const y = g.gemm(g.tanh(g.rmsNorm(hidden, norm, 1e-5)), w);
    const heads = g.mul(g.reshape(y, ["B", "T", d]), shared);
    const scores = g.softmax(g.fusedMatmul(heads, heads, { transB: true }), -1); // [B, T, T]
    const mixed = g.reshape(g.matmul(g.relu(g.sub(scores, 0.1)), g.silu(heads)), [rows, d]);
    const chosen = g.straightThrough(g.cast(g.greater(mixed, 0), "float32"), g.sigmoid(mixed));
    reports.push(g.mean(chosen));
    if (i === 1) graph.output("inside", g.exp(y));
    hidden = g.add(hidden, g.mul(mixed, chosen));
  };
  for (const [i, w] of weights.entries()) graph.segment(() => graph.scope(`layers.${i}`, () => layer(w, i)));
  const loss = reports.reduce((a, b) => g.add(a, b), g.sum(g.square(hidden)));
  graph.output("loss", loss);
  for (const [i, value] of grad(loss, weights, recompute).entries()) graph.output(`g${i}`, value);
  return graph;
}

const numbers = (shape: number[], seed: number): Feed => ({
  dtype: "float32",
  shape,
  data: normals(
    seed,
    shape.reduce((a, b) => a * b, 1),
  ),
});
const feeds = {
  x: numbers([B, T, d], 1),
  shared: numbers([B, T, 1], 2),
  ...Object.fromEntries(Array.from({ length: LAYERS }, (_, i) => [`w${i}`, numbers([d, d], 3 + i)])),
};
const parameters = { norm: numbers([d], 9) };

describe.each(["light", "all"] as const)("recomputing %s", (recompute) => {
  test("gives the same numbers, bit for bit", () => {
    const plain = runGraph(build("nothing"), feeds, parameters);
    expect(plain.g0!.data.every((x) => x !== 0 && Number.isFinite(x))).toBe(true);
    expect(runGraph(build(recompute), feeds, parameters)).toEqual(plain);
  });

  test("has copies that optimisations leave alone, each made when its layer's gradient is due", () => {
    const file = join(directory, `${recompute}.onnx`);
    using norm = tensorOf(parameters.norm);
    using session = Session.create(exportOnnx(build(recompute)), {
      initializers: new Map([["norm", norm]]),
      profile: join(directory, recompute),
      config: { "session.optimized_model_filepath": file },
    });
    const nodes = fromBinary(ModelProtoSchema, readFileSync(file)).graph!.node;
    const count = (type: string) => nodes.filter(({ opType }) => opType === type).length;
    expect(count("Tanh")).toBe(2 * LAYERS);
    expect(count("Softmax")).toBe(2 * LAYERS);
    // x W once or twice, then the gradients of W and, but for the first layer, of x.
    expect(count("Gemm")).toBe((recompute === "all" ? 2 : 1) * LAYERS + LAYERS + LAYERS - 1);

    const tensors = Object.fromEntries(Object.entries(feeds).map(([name, feed]) => [name, tensorOf(feed)]));
    for (const tensor of [...Object.values(tensors), ...Object.values(session.call(tensors))]) tensor.dispose();
    const events = JSON.parse(readFileSync(session.endProfiling(), "utf8")) as {
      name: string;
      args?: { op_name?: string };
    }[];
    // The runtime puts reading of shapes in front, which costs nothing.
    const computes = ["Gemm", "Tanh", "Softmax", "FusedMatMul", "MatMul", "QuickGelu", "Mul", "Relu"];
    const order = events.filter(({ args }) => computes.includes(args?.op_name ?? ""));
    const layers = order.flatMap(({ name }) => (/^(again|grad)\.layers\.(\d)/.exec(name)?.[2] ?? []) as string[]);
    expect(layers.length).toBeGreaterThan(20);
    expect(layers.map(Number)).toEqual(layers.map(Number).sort((a, b) => b - a));
    const lastForward = order.findLastIndex(({ name }) => name.startsWith("layers."));
    expect(order.slice(0, lastForward).some(({ name }) => name.startsWith("again."))).toBe(false);
  });
});

test("outside of segments nothing is computed again", () => {
  const graph = new Graph();
  const x = graph.input("x", "float32", ["N"]);
  const loss = g.sum(g.exp(g.tanh(x)));
  const before = graph.nodes.length;
  const [plain] = grad(loss, [x]);
  const after = graph.nodes.length;
  expect(after).toBeGreaterThan(before);
  expect(grad(loss, [x], "all")[0]).toBe(plain);
  expect(graph.nodes.length).toBe(after);
});
