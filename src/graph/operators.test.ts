/** @file Products and attention are lowered to milora's own operators where these are, and where they fit. */
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "onnx-buf";
import { describe, expect, test } from "vitest";
import { float16Bits, float16Value } from "../base/index.ts";
import { OPERATOR_DOMAIN, operators } from "../runtime/index.ts";
import * as g from "./index.ts";
import { exportOnnx, Graph } from "./index.ts";
import { ints, range } from "./testing/numbers.ts";
import { type Feed, normals, runGraph } from "./testing/run.ts";

const [K, N, M] = [64, 24, 5];
const bytes = (shape: number[]): Feed => ({
  dtype: "uint8",
  shape,
  data: range(shape.reduce((a, b) => a * b)).map((i) => (i * 89 + 7) % 256),
});
const numbers = (seed: number, shape: number[]): Feed => ({
  dtype: "float32",
  shape,
  data: normals(
    seed,
    shape.reduce((a, b) => a * b),
  ).map(Math.fround),
});

/** The own operators in a graph. */
function ownIn(graph: Graph): string[] {
  const nodes = fromBinary(ModelProtoSchema, exportOnnx(graph)).graph!.node;
  return nodes.filter(({ domain }) => domain === OPERATOR_DOMAIN).map(({ opType }) => opType);
}

function product(lead: readonly (string | number)[], change: Partial<g.NBitsWeight> = {}): Graph {
  const graph = new Graph();
  const blockSize = change.blockSize ?? 32;
  const quantized = graph.parameter("w", "uint8", [N, K / blockSize, blockSize / 2]);
  const x = graph.input("x", "float32", [...lead, K]);
  const narrow = (change.accuracyLevel ?? 4) === 4 && g.hasLinear(x, blockSize);
  const scales = graph.parameter("s", narrow ? "float16" : "float32", [N, K / blockSize]);
  const weight = { quantized, scales, K, N, bits: 4, blockSize, accuracyLevel: 4, ...change } as const;
  graph.output("y", g.matmulNBits(x, weight));
  return graph;
}

/** Attention of T new tokens; with a `bias` it is the runtime's. */
function attention(T: number | string, change: Partial<g.GroupQueryAttentionInputs> = {}, bias = false): Graph {
  const graph = new Graph();
  const cache = ["B", 2, 9, 16] as const;
  const { y, presentKey } = g.groupQueryAttention({
    query: graph.input("q", "float32", ["B", T, 64]),
    key: graph.input("k", "float32", ["B", T, 32]),
    value: graph.input("v", "float32", ["B", T, 32]),
    pastKey: graph.input("keys", "float32", cache),
    pastValue: graph.input("values", "float32", cache),
    seqlensK: graph.input("last", "int32", ["B"]),
    totalSequenceLength: graph.input("total", "int32", []),
    cos: graph.parameter("cos", "float32", [9, 8]),
    sin: graph.parameter("sin", "float32", [9, 8]),
    numHeads: 4,
    kvNumHeads: 2,
    ...(bias && { attentionBias: graph.input("bias", "float32", [1, 1, T, "S"]) }),
    ...change,
  });
  graph.output("y", y);
  graph.output("presentKey", presentKey);
  return graph;
}

const closest = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i]!)), 0);

describe.skipIf(operators() === undefined)("with operators", () => {
  test("a product is Linear, which gives what MatMulNBits does", () => {
    expect(ownIn(product(["M"]))).toEqual(["Linear"]);
    const w = bytes([N, 2, 16]);
    const data = numbers(1, [N, 2]).data.map((scale) => float16Value(float16Bits(scale)));
    const s = { dtype: "float16", shape: [N, 2], data } as const;
    const x = numbers(2, [M, K]);
    const { y } = runGraph(product(["M"]), { x }, { w, s });
    const theirs = product([1, "M"]);
    expect(ownIn(theirs)).toEqual([]);
    const wide = { ...s, dtype: "float32" } as const;
    const { y: expected } = runGraph(theirs, { x: { ...x, shape: [1, M, K] } }, { w, s: wide });
    expect(y!.shape).toEqual([M, N]);
    expect(closest(y!.data, expected!.data)).toBeLessThan(1e-3); // of numbers of about 30
  });

  test("other products are the runtime's", () => {
    expect(ownIn(product(["M"], { accuracyLevel: 1 }))).toEqual([]);
    expect(ownIn(product(["M"], { blockSize: 16 }))).toEqual([]);
  });

  test("attention is Attention, which gives what GroupQueryAttention does", () => {
    expect(ownIn(attention(1))).toEqual(["Attention"]);
    expect(ownIn(attention("T"))).toEqual(["Attention"]);
    expect(ownIn(attention(1, { softcap: 30 }))).toEqual([]);
    expect(ownIn(attention("T", { softcap: 30 }))).toEqual([]);
    expect(ownIn(attention(1, { rotaryInterleaved: true }))).toEqual([]);
    const parameters = { cos: numbers(6, [9, 8]), sin: numbers(7, [9, 8]) };
    for (const [T, last] of [
      [1, [8, 0, 5]],
      [6, [5, 5, 5]],
    ] as const) {
      const total = Math.max(...last) + 1;
      const feeds = {
        q: numbers(1, [3, T, 64]),
        k: numbers(2, [3, T, 32]),
        v: numbers(3, [3, T, 32]),
        keys: numbers(4, [3, 2, 9, 16]),
        values: numbers(5, [3, 2, 9, 16]),
        last: ints([3], last, "int32"),
        total: ints([], [total], "int32"),
      };
      for (const change of [{}, { scale: 0.4 }, { localWindowSize: 3 }]) {
        const own = runGraph(attention(T, change), feeds, parameters);
        const graph = attention("T", change, true);
        expect(ownIn(graph)).toEqual([]);
        const none = { dtype: "float32", shape: [1, 1, T, total], data: range(T * total).map(() => 0) } as const;
        const theirs = runGraph(graph, { ...feeds, bias: none }, parameters);
        expect(closest(own.y!.data, theirs.y!.data)).toBeLessThan(2e-6);
        // Beyond the new tokens the cache is nobody's.
        const of = (data: readonly number[]): number[] =>
          range(6).flatMap((head) => data.slice(head * 144, head * 144 + 16 * (last[Math.floor(head / 2)]! + 1)));
        expect(closest(of(own.presentKey!.data), of(theirs.presentKey!.data))).toBeLessThan(1e-6);
      }
    }
  });
});
