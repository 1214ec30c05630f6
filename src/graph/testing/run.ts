/** @file For the tests of this room: run a graph on plain numbers, and hold gradients against central finite differences. */
import { fromBinary } from "@bufbuild/protobuf";
import { ModelProtoSchema } from "onnx-buf";
import { Random } from "../../base/index.ts";
import { configureRuntime, type DType, Session, Tensor, type TensorData } from "../../runtime/index.ts";
import { grad } from "../autodiff.ts";
import { toBytes } from "../dtype.ts";
import { exportOnnx } from "../export.ts";
import { Graph, type Value } from "../graph.ts";
import { mul } from "../ops/elementwise.ts";
import { sum } from "../ops/reduce.ts";
import type { Dim } from "../shape.ts";

// Thousands of tiny runs: a second thread would only wait.
configureRuntime({ threads: 1 });

/** A tensor of plain numbers. */
export interface Numbers {
  shape: readonly number[];
  data: readonly number[];
}

export interface Feed extends Numbers {
  dtype: DType;
  /** The shape declared in the graph; default: the numbers. */
  dims?: readonly Dim[];
}

const arrays = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint16: Uint16Array,
  uint8: Uint8Array,
  uint4: Uint8Array,
  bool: Uint8Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
} as const;

export function tensorOf({ dtype, shape, data }: Feed): Tensor {
  const bytes = toBytes(dtype, data);
  const memory = new ArrayBuffer(bytes.length);
  new Uint8Array(memory).set(bytes);
  return Tensor.from(dtype, shape, new arrays[dtype](memory) as TensorData);
}

const numbersOf = (tensor: Tensor): Numbers => ({ shape: tensor.shape, data: Array.from(tensor.data, Number) });

/** Exports and runs a graph once. `parameters` and `feeds` by name; results by output name. */
export function runGraph(
  graph: Graph,
  feeds: Record<string, Feed>,
  parameters: Record<string, Feed> = {},
): Record<string, Numbers> {
  const own: Tensor[] = [];
  const tensors = (of: Record<string, Feed>): Record<string, Tensor> =>
    Object.fromEntries(
      Object.entries(of).map(([name, feed]) => {
        const tensor = tensorOf(feed);
        own.push(tensor);
        return [name, tensor];
      }),
    );
  try {
    const initializers = new Map(Object.entries(tensors(parameters)));
    using session = Session.create(exportOnnx(graph), { initializers });
    const wanted = new Set(session.inputs.map(({ name }) => name));
    const used = Object.fromEntries(Object.entries(feeds).filter(([name]) => wanted.has(name)));
    const results = session.call(tensors(used));
    own.push(...Object.values(results));
    return Object.fromEntries(Object.entries(results).map(([name, tensor]) => [name, numbersOf(tensor)]));
  } finally {
    for (const tensor of own) tensor.dispose();
  }
}

/** Runs a function of tensors: inputs x0, x1, … and outputs y0, y1, … */
export function evaluate(
  inputs: readonly Feed[],
  build: (inputs: Value[], graph: Graph) => Value | readonly Value[],
): Numbers[] {
  const graph = new Graph();
  const values = inputs.map(({ dtype, dims, shape }, i) => graph.input(`x${i}`, dtype, dims ?? shape));
  const built = build(values, graph);
  const outputs: readonly Value[] = Array.isArray(built) ? built : [built];
  outputs.forEach((value, i) => {
    graph.output(`y${i}`, value);
  });
  const results = runGraph(graph, Object.fromEntries(inputs.map((feed, i) => [`x${i}`, feed])));
  return outputs.map((_, i) => results[`y${i}`]!);
}

/** The ONNX op types of a model, in order. */
export function onnxOps(graph: Graph): string[] {
  return fromBinary(ModelProtoSchema, exportOnnx(graph)).graph!.node.map((node) => node.opType);
}

/** Seeded numbers from a normal distribution. */
export function normals(seed: number, count: number): number[] {
  const random = new Random(seed);
  return Array.from({ length: count }, () => random.normal());
}

export interface GradientProblem {
  /** Inputs; those of floating point are differentiated unless `fixed`. */
  inputs: readonly (Feed & { fixed?: boolean })[];
  build: (inputs: Value[], graph: Graph) => Value;
}

/**
 * The largest relative error of `grad` against central differences of L = Σ c · build(inputs) with random c.
 * Runs in the element type of the inputs: float64 resolves about 1e-8, float32 about 1e-2.
 */
export function gradientError({ inputs, build }: GradientProblem, seed = 1): number {
  const graph = new Graph();
  const values = inputs.map(({ dtype, dims, shape }, i) => graph.input(`x${i}`, dtype, dims ?? shape));
  const y = build(values, graph);
  const c = graph.input("c", y.dtype, y.shape);
  const loss = graph.output("loss", sum(mul(y, c)));
  const wrt = inputs.flatMap(({ dtype, fixed }, i) => (dtype.startsWith("float") && !fixed ? [i] : []));
  const gradients = grad(
    loss,
    wrt.map((i) => values[i]!),
  );
  gradients.forEach((value, j) => {
    graph.output(`dx${wrt[j]}`, value);
  });

  const double = y.dtype === "float64";
  const step = double ? 1e-5 : 2 ** -5;
  using stack = new Disposables();
  const tensors = inputs.map((feed) => stack.use(tensorOf(feed)));
  const sizes = new Map(
    inputs.flatMap(({ dims, shape }) => (dims ?? shape).map((dim, i) => [dim, shape[i]!] as const)),
  );
  const shape = shapeAt(y, sizes, inputs, build);
  const weights = stack.use(
    tensorOf({
      dtype: y.dtype,
      shape,
      data: normals(
        seed,
        shape.reduce((a, b) => a * b, 1),
      ),
    }),
  );
  using session = Session.create(exportOnnx(graph));
  const wanted = new Set(session.inputs.map(({ name }) => name));
  const feeds: Record<string, Tensor> = { c: weights };
  tensors.forEach((tensor, i) => {
    if (wanted.has(`x${i}`)) feeds[`x${i}`] = tensor;
  });
  const results = session.call(feeds);
  for (const tensor of Object.values(results)) stack.use(tensor);
  using binding = session.bind();
  for (const [name, tensor] of Object.entries(feeds)) binding.input(name, tensor);
  const output = stack.use(tensorOf({ dtype: y.dtype, shape: [], data: [0] }));
  binding.output("loss", output);
  const lossAt = (): number => {
    session.run(binding);
    return Number(output.data[0]);
  };

  let worst = 0;
  for (const i of wrt) {
    const gradient = numbersOf(results[`dx${i}`]!);
    const data = tensors[i]!.data as Float64Array;
    if (String(gradient.shape) !== String(inputs[i]!.shape)) {
      throw new Error(`gradient of shape [${gradient.shape}] for an input of shape [${inputs[i]!.shape}]`);
    }
    for (let k = 0; k < data.length; k++) {
      const before = data[k]!;
      data[k] = before + step;
      const above = data[k]! - before;
      const up = lossAt();
      data[k] = before - step;
      const below = before - data[k]!;
      const down = lossAt();
      data[k] = before;
      const numeric = (up - down) / (above + below);
      const error = Math.abs(numeric - gradient.data[k]!) / (1 + Math.abs(numeric));
      worst = Number.isNaN(error) ? Number.POSITIVE_INFINITY : Math.max(worst, error);
    }
  }
  return worst;
}

/** The numeric shape of a result: its symbols are dimensions of the inputs, or products and sums that need a run. */
function shapeAt(
  y: Value,
  sizes: ReadonlyMap<Dim, number>,
  inputs: readonly Feed[],
  build: GradientProblem["build"],
): readonly number[] {
  const direct = y.shape.map((dim) => (typeof dim === "number" ? dim : sizes.get(dim)));
  if (direct.every((dim) => dim !== undefined)) return direct;
  return evaluate(inputs, build)[0]!.shape;
}

/** Disposes what it was given, the last first. */
class Disposables implements Disposable {
  readonly #held: Disposable[] = [];

  use<T extends Disposable>(resource: T): T {
    this.#held.push(resource);
    return resource;
  }

  [Symbol.dispose](): void {
    for (const resource of this.#held.reverse()) resource[Symbol.dispose]();
  }
}
