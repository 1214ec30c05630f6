/** @file Chains of milora's operators: which nodes become one, and that they give what each gives by itself, to the bit. */
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema, type NodeProto } from "onnx-buf";
import { describe, expect, test } from "vitest";
import { float16Bits, Random } from "../base/index.ts";
import { configureRuntime, operators, Session, Tensor } from "../runtime/index.ts";
import * as g from "./index.ts";
import { exportOnnx, Graph, type Value } from "./index.ts";

configureRuntime({ threads: 2 });

const [d, wide] = [64, 192];
const weights: ReadonlyMap<string, Tensor> = new Map(
  [
    ["up", 2 * wide, d],
    ["down", d, wide],
    ["next", 96, d],
  ].flatMap(([name, N, K]) => quantised(name as string, N as number, K as number)),
);

function quantised(name: string, N: number, K: number): [string, Tensor][] {
  const random = new Random(N + K);
  const levels = Uint8Array.from({ length: (N * K) / 2 }, () => random.integer(256));
  const scales = Uint16Array.from({ length: (N * K) / 32 }, () => float16Bits(0.02 + 0.01 * random.uniform()));
  return [
    [`${name}.w`, Tensor.from("uint8", [N, K / 32, 16], levels)],
    [`${name}.s`, Tensor.from("float16", [N, K / 32], scales)],
    [
      `${name}.norm`,
      Tensor.from(
        "float32",
        [K],
        Float32Array.from({ length: K }, () => 1 + random.uniform()),
      ),
    ],
  ];
}

function product(x: Value, name: string, N: number, K: number): Value {
  const quantized = x.graph.parameter(`${name}.w`, "uint8", [N, K / 32, 16]);
  const scales = x.graph.parameter(`${name}.s`, "float16", [N, K / 32]);
  return g.matmulNBits(x, { quantized, scales, K, N, bits: 4, blockSize: 32, accuracyLevel: 4 });
}

/** A feed-forward block whose sum another operator reads, and a product behind it. */
function build(): Graph {
  const graph = new Graph();
  const [x, skip] = [graph.input("x", "float32", ["R", d]), graph.input("skip", "float32", ["R", d])];
  const norm = (name: string) => graph.parameter(`${name}.norm`, "float32", [d]);
  const first = g.skipRmsNorm(x, skip, norm("up"), 1e-5);
  const [gate, up] = g.split(product(first.y, "up", 2 * wide, d), 1, [wide, wide]) as [Value, Value];
  const down = product(g.gatedSilu(gate, up), "down", d, wide);
  const second = g.skipRmsNorm(down, first.sum, norm("next"), 1e-5);
  // The reshape is an output, and the product reads the same through it.
  const cells = g.reshape(second.y, ["R", 1, d]);
  graph.output("cells", cells);
  graph.output("next", product(g.reshape(cells, ["R", d]), "next", 96, d));
  graph.output("twice", g.mul(second.sum, 2));
  return graph;
}

const nodesOf = (graph: Graph, chains: boolean): NodeProto[] =>
  fromBinary(ModelProtoSchema, exportOnnx(graph, { chains })).graph!.node;

/** x and skip. */
function inputsOf(rows: number, seed: number): [Tensor, Tensor] {
  const random = new Random(seed);
  const normals = () => Float32Array.from({ length: rows * d }, () => random.normal());
  return [Tensor.from("float32", [rows, d], normals()), Tensor.from("float32", [rows, d], normals())];
}

function run(session: Session, rows: number, seed: number): Map<string, Float32Array> {
  const made = inputsOf(rows, seed);
  using x = made[0];
  using skip = made[1];
  const results = session.call({ x, skip });
  return new Map(
    Object.entries(results).map(([name, tensor]) => {
      using owned = tensor;
      return [name, (owned.data as Float32Array).slice()];
    }),
  );
}

describe.skipIf(!operators())("chains", () => {
  test("neighbours over the same rows become one; what others read comes out", () => {
    const [chain, ...others] = nodesOf(build(), true);
    expect([chain!.opType, ...others.map(({ opType }) => opType)]).toEqual(["Chain", "Reshape", "Mul"]);
    expect(chain!.output).toEqual([others[0]!.input[0], others[1]!.input[0], "next"]);
    expect(others[0]!.output).toEqual(["cells"]);
    // A value is forgotten when nothing needs it any more: norm, gate and up, gated, down, and never more at a time.
    const columns = chain!.attribute.find(({ name }) => name === "columns")!.i;
    expect(Number(columns)).toBeLessThanOrEqual(d + d + 2 * wide + wide + d);
  });

  test("each value is what it is without, to the bit, in few rows and many", () => {
    using whole = Session.create(exportOnnx(build()), { initializers: weights });
    using parts = Session.create(exportOnnx(build(), { chains: false }), { initializers: weights });
    for (const rows of [1, 2, 3, 4, 7, 16, 65, 300]) {
      for (let round = 0; round < 20; round++) {
        expect(run(whole, rows, rows + round), `${rows} rows`).toEqual(run(parts, rows, rows + round));
      }
    }
  });

  test("runs at the same time do not disturb each other", async () => {
    using session = Session.create(exportOnnx(build()), { initializers: weights });
    const rows = 40;
    const expected = run(session, rows, 5).get("next")!;
    const made = inputsOf(rows, 5);
    using x = made[0];
    using skip = made[1];
    const bindings = Array.from({ length: 4 }, () => {
      const next = Tensor.allocate("float32", [rows, 96]);
      const others = [Tensor.allocate("float32", [rows, 1, d]), Tensor.allocate("float32", [rows, d])];
      const binding = session.bind().input("x", x).input("skip", skip);
      binding.output("next", next).output("cells", others[0]!).output("twice", others[1]!);
      return { next, others, binding };
    });
    for (let round = 0; round < 30; round++) {
      await Promise.all(bindings.map(({ binding }) => session.runAsync(binding)));
      for (const { next } of bindings) expect((next.data as Float32Array).slice()).toEqual(expected);
    }
    for (const { next, others, binding } of bindings) {
      binding.dispose();
      for (const tensor of [next, ...others]) tensor.dispose();
    }
  });
});
