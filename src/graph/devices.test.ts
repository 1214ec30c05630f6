/** @file Every op and every gradient rule on the devices that are here, against the CPU. */
import { describe, expect, test } from "vitest";
import { availableDevices, type DeviceName, Session, Tensor } from "../runtime/index.ts";
import { grad } from "./autodiff.ts";
import { exportOnnx } from "./export.ts";
import { Graph, type Value } from "./graph.ts";
import { add, type GroupQueryAttentionInputs, gemm, groupQueryAttention, mul, slice, sum } from "./index.ts";
import { plainCases } from "./testing/cases.ts";
import { Draw, problems } from "./testing/problems.ts";
import { type Feed, type GradientProblem, normals, onnxOps, tensorOf } from "./testing/run.ts";
import { transformerCases } from "./testing/transformer-cases.ts";

const devices = availableDevices().filter((device) => device !== "cpu");

interface Problem {
  readonly inputs: GradientProblem["inputs"];
  readonly build: (inputs: Value[], graph: Graph) => Value | readonly Value[];
}

/** What devices compute with. */
const narrow = (feed: Feed): Feed => (feed.dtype === "float64" ? { ...feed, dtype: "float32" } : feed);

/** All outputs, by name, of a graph for a device; with `gradients` those of Σ y² too. */
function resultsOf(
  { inputs, build }: Problem,
  device: DeviceName,
  gradients: boolean,
  where = device,
): Map<string, number[]> {
  const graph = new Graph("case", device);
  const values = inputs.map((input, i) => {
    const { dtype, dims, shape } = narrow(input);
    return graph.input(`x${i}`, dtype, dims ?? shape);
  });
  const built = [build(values, graph)].flat();
  for (const [i, value] of built.entries()) graph.output(`y${i}`, value);
  if (gradients) {
    const wrt = inputs.flatMap(({ dtype, fixed }, i) => (dtype.startsWith("float") && !fixed ? [i] : []));
    const loss = sum(mul(built[0]!, built[0]!));
    const found = grad(
      loss,
      wrt.map((i) => values[i]!),
    );
    for (const [j, value] of found.entries()) graph.output(`dx${wrt[j]}`, value);
  }
  using session = Session.create(exportOnnx(graph), { device: where });
  const feeds: Record<string, Tensor> = {};
  for (const { name } of session.inputs) feeds[name] = tensorOf(narrow(inputs[Number(name.slice(1))]!));
  const results = session.call(feeds);
  const numbers = Object.entries(results).map(([name, { data }]) => [name, Array.from(data, Number)] as const);
  for (const tensor of [...Object.values(feeds), ...Object.values(results)]) tensor.dispose();
  return new Map(numbers);
}

function compare(problem: Problem, device: DeviceName, gradients: boolean, where = device): void {
  const wanted = resultsOf(problem, "cpu", gradients);
  const found = resultsOf(problem, device, gradients, where);
  expect([...found.keys()]).toEqual([...wanted.keys()]);
  for (const [name, numbers] of wanted) {
    const scale = Math.max(1, ...numbers.map(Math.abs));
    const worst = Math.max(0, ...numbers.map((x, i) => Math.abs(x - found.get(name)![i]!) / scale));
    expect(worst, name).toBeLessThan(1e-3);
  }
}

/** A number that a product begins with, given and found by the export. */
const started: Problem = {
  inputs: [
    { dtype: "float32", shape: [3, 2], data: [1, 2, 3, 4, 5, 6] },
    { dtype: "float32", shape: [2, 2], data: [1, 0, 2, 1] },
  ],
  build: ([a, b], g) => [gemm(a!, b!, { c: g.scalar(3) }), add(gemm(a!, b!, { alpha: 2 }), 1)],
};

/** Their own cases ask for parts of a batch that have no rows. */
const EMPTY_PARTS = ["withSlopes", "rowParts"];
const cases = Object.entries({ ...plainCases, ...transformerCases }).filter(([name]) => !EMPTY_PARTS.includes(name));
const rules = Object.keys(problems).filter((name) => !EMPTY_PARTS.includes(name));

/** Ragged lengths, several heads on one key head; one new token or several. */
function attentionProblem(tokens: number, options: object): Problem {
  const [heads, kvHeads, dim, capacity] = [4, 2, 16, 12];
  const batch = tokens === 1 ? 2 : 1; // the CPU goes on from a cache with several tokens of one sequence only
  const feed = (seed: number, ...shape: number[]): Feed => ({
    dtype: "float32",
    shape,
    data: normals(
      seed,
      shape.reduce((a, b) => a * b),
    ),
  });
  const cache = [batch, kvHeads, capacity, dim];
  return {
    inputs: [
      feed(1, batch, tokens, heads * dim),
      feed(2, batch, tokens, kvHeads * dim),
      feed(3, batch, tokens, kvHeads * dim),
      feed(4, ...cache),
      feed(5, ...cache),
      feed(6, capacity, dim / 2),
      feed(7, capacity, dim / 2),
      { dtype: "int32", shape: [batch], data: [9, 6].slice(0, batch) },
      { dtype: "int32", shape: [], data: [10] },
    ],
    build: ([query, key, value, pastKey, pastValue, cos, sin, seqlensK, totalSequenceLength]) => {
      const inputs = { query, key, value, pastKey, pastValue, cos, sin, seqlensK, totalSequenceLength };
      const sizes = { numHeads: heads, kvNumHeads: kvHeads, ...options };
      const result = groupQueryAttention({ ...inputs, ...sizes } as GroupQueryAttentionInputs);
      // What comes after a sequence in its cache may be anything.
      return [result.y, slice(result.presentKey, 2, 0, 7), slice(result.presentValue, 2, 0, 7)];
    },
  };
}

const attentions: [number, { softcap?: number; localWindowSize?: number; scale?: number }][] = [1, 4].flatMap(
  (tokens) =>
    [{}, { localWindowSize: 3 }, { softcap: 2 }, { localWindowSize: 3, softcap: 2, scale: 1 }].map(
      (options): [number, { softcap?: number; localWindowSize?: number; scale?: number }] => [tokens, options],
    ),
);

// Graphs for CUDA have other nodes for attention, which the CPU can run too.
test.each(attentions)("attention of simple nodes, %d tokens, %o", (tokens, options) => {
  compare(attentionProblem(tokens, options), "cuda", false, "cpu");
});

/** s + 2 x in place of s. */
function accumulating(device: DeviceName): Graph {
  const graph = new Graph("sum", device);
  const s = graph.input("s", "float32", ["n"]);
  graph.output("y", add(s, mul(graph.input("x", "float32", ["n"]), 2)), { replaces: s });
  return graph;
}

test("on WebGPU no node but a copy writes what takes the place of an input", () => {
  expect(onnxOps(accumulating("cpu"))).toEqual(["Mul", "Add"]);
  expect(onnxOps(accumulating("webgpu"))).toEqual(["Mul", "Add", "Reshape"]);
});

describe.skipIf(devices.length === 0)("a device other than the CPU (skipped where there is none)", () => {
  describe.each(devices)("%s", (device) => {
    test.each(cases)("%s", (_, problem) => compare(problem, device, false));
    test.each(attentions)("attention to a cache, %d tokens, %o", (tokens, options) => {
      compare(attentionProblem(tokens, options), device, false);
    });
    test("results in the place of inputs", () => {
      using session = Session.create(exportOnnx(accumulating(device)), { device });
      using x = tensorOf({ dtype: "float32", shape: [3], data: [1, 2, 3] });
      using sum = Tensor.allocate("float32", [3], device);
      using binding = session.bind().input("x", x).input("s", sum).output("y", sum);
      for (let run = 0; run < 3; run++) session.run(binding);
      using result = sum.copyTo("cpu");
      expect([...result.data]).toEqual([6, 12, 18]);
    });
    test("products that begin with a number", () => compare(started, device, false));
    test.each(rules)("gradient of %s", (name) => {
      for (const seed of [1, 2, 3]) compare(problems[name]!(new Draw(seed)), device, true);
    });
  });
});
