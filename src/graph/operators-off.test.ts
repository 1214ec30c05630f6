/** @file Without milora's operators a product is the runtime's, in the same graph. */
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "onnx-buf";
import { expect, test } from "vitest";
import { exportOnnx, Graph, matmulNBits } from "./index.ts";
import { feed, range } from "./testing/numbers.ts";
import { runGraph } from "./testing/run.ts";

process.env.MILORA_OPERATORS = "off";

test("a graph without operators runs", () => {
  const graph = new Graph();
  const quantized = graph.parameter("w", "uint8", [8, 1, 16]);
  const scales = graph.parameter("s", "float32", [8, 1]);
  const x = graph.input("x", "float32", ["M", 32]);
  graph.output("y", matmulNBits(x, { quantized, scales, K: 32, N: 8, bits: 4, blockSize: 32, accuracyLevel: 4 }));
  const nodes = fromBinary(ModelProtoSchema, exportOnnx(graph)).graph!.node;
  expect(nodes.map(({ opType }) => opType)).toEqual(["MatMulNBits"]);
  const levels = range(256).map((i) => (i * 7) % 16);
  const packed = range(128).map((i) => levels[2 * i]! + 16 * levels[2 * i + 1]!);
  const rows = feed([3, 32]);
  const parameters = {
    w: { dtype: "uint8", shape: [8, 1, 16], data: packed },
    s: { dtype: "float32", shape: [8, 1], data: new Array(8).fill(0.5) },
  } as const;
  const { y } = runGraph(graph, { x: rows }, parameters);
  y!.data.forEach((value, i) => {
    const [m, n] = [Math.floor(i / 8), i % 8];
    const exact = range(32).reduce((sum, k) => sum + rows.data[m * 32 + k]! * (levels[n * 32 + k]! - 8) * 0.5, 0);
    expect(Math.abs(value - exact)).toBeLessThan(1); // x is rounded to 8 bits, of sums of about 12
  });
});
