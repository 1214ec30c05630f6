/** @file Reductions over axes, softmax, and other ops along one axis. */
import type { Inference, Op, Value } from "../graph.ts";
import { int, type OnnxAttributes, onnx } from "../lowering.ts";
import { mulDims, type Shape } from "../shape.ts";
import { apply1, needFloat, normalAxes, normalAxis, op } from "./common.ts";
import { div, exp, mul, sub } from "./elementwise.ts";
import { scatterElements, zeros } from "./indexing.ts";
import { expandLike, reshape, unsqueeze } from "./layout.ts";
import { cast, equal } from "./select.ts";
import { dimScalar } from "./size.ts";

export interface Reduction {
  axes: readonly number[];
  keepDims: boolean;
}

function reducedShape(shape: Shape, { axes, keepDims }: Reduction): Shape {
  return keepDims ? shape.map((dim, i) => (axes.includes(i) ? 1 : dim)) : shape.filter((_, i) => !axes.includes(i));
}

/** A reduced tensor (its result or adjoint) with the reduced axes back as 1. */
const restored = (y: Value, { axes, keepDims }: Reduction): Value => (keepDims ? y : unsqueeze(y, axes));

const reduction = (name: string, type: string, gradient: NonNullable<Op<Reduction>["gradient"]>): Op<Reduction> =>
  op<Reduction>(name, {
    infer: ({ inputs: [x], attributes }) => ({ dtype: x!.dtype, shape: reducedShape(x!.shape, attributes) }),
    lower: (to) =>
      void to.emit(type, [to.in(0), to.int64s(to.attributes.axes)], { keepdims: int(to.attributes.keepDims) }),
    gradient,
  });

export interface Axis {
  axis: number;
}

const inferFloat = (at: Inference<unknown>): Value => {
  needFloat(at);
  return at.inputs[0]!;
};

export const reduceOps = {
  sum: reduction("sum", "ReduceSum", ({ inputs: [x], attributes, g }) => [
    () => expandLike(restored(g, attributes), x!),
  ]),
  mean: reduction("mean", "ReduceMean", ({ inputs: [x], attributes, g }) => [
    () => expandLike(divideByCount(restored(g, attributes), x!, attributes.axes), x!),
  ]),
  /** Ties share the gradient equally. */
  max: reduction("max", "ReduceMax", ({ inputs: [x], outputs: [y], attributes, g }) => [
    () => {
      const chosen = cast(equal(x!, restored(y!, attributes)), x!.dtype);
      const count = sum(chosen, { axes: attributes.axes, keepDims: true });
      return mul(chosen, div(restored(g, attributes), count));
    },
  ]),
  /** dx = y (g - Σ g y) */
  softmax: op<Axis>("softmax", {
    infer: inferFloat,
    lower: onnx("Softmax", ({ axis }) => ({ axis: int(axis) })),
    gradient: ({ outputs: [y], attributes: { axis }, g }) => [
      () => mul(y!, sub(g, sum(mul(g, y!), { axes: [axis], keepDims: true }))),
    ],
  }),
  /** dx = g - e^y Σ g */
  logSoftmax: op<Axis>("logSoftmax", {
    infer: inferFloat,
    lower(to) {
      const { axis } = to.attributes;
      if (to.device !== "webgpu") return void to.emit("LogSoftmax", to.ins, { axis: int(axis) });
      const step = (type: string, inputs: readonly string[], attributes: OnnxAttributes = {}): string =>
        to.emit(type, inputs, attributes, [to.temporary()]);
      const over = to.int64s([axis]);
      const from = step("Sub", [to.in(0), step("ReduceMax", [to.in(0), over], { keepdims: int(1) })]);
      const total = step("ReduceSum", [step("Exp", [from]), over], { keepdims: int(1) });
      to.emit("Sub", [from, step("Log", [total])]);
    },
    gradient: ({ outputs: [y], attributes: { axis }, g }) => [
      () => sub(g, mul(exp(y!), sum(g, { axes: [axis], keepDims: true }))),
    ],
  }),
  argmax: op<Axis & { keepDims: boolean }>("argmax", {
    infer: ({ inputs: [x], attributes: { axis, keepDims } }) => ({
      dtype: "int64",
      shape: reducedShape(x!.shape, { axes: [axis], keepDims }),
    }),
    lower: onnx("ArgMax", ({ axis, keepDims }) => ({ axis: int(axis), keepdims: int(keepDims) })),
    zeroGradient: true,
  }),
  /** Outputs: the k largest in falling order, and their indices. The gradient goes to the chosen elements. */
  topK: op<Axis & { k: number }>("topK", {
    infer(at) {
      const { axis, k } = at.attributes;
      const x = at.inputs[0]!;
      const size = x.shape[axis]!;
      if (k < 1 || (typeof size === "number" && k > size)) {
        at.fail("BAD_ATTRIBUTE", `cannot take the ${k} largest along axis ${axis} of ${x}`);
      }
      const shape = x.shape.map((dim, i) => (i === axis ? k : dim));
      return [
        { dtype: x.dtype, shape },
        { dtype: "int64", shape },
      ];
    },
    lower: (to) =>
      void to.emit("TopK", [to.in(0), to.int64s([to.attributes.k])], {
        axis: int(to.attributes.axis),
        largest: int(1),
        sorted: int(1),
      }),
    gradient: ({ inputs: [x], outputs: [, indices], attributes: { axis }, g }) => [
      () => scatterElements(zeros(x!.graph, x!.shape, x!.dtype, x!), indices!, g, axis),
    ],
  }),
  cumsum: op<Axis & { reverse: boolean; exclusive: boolean }>("cumsum", {
    infer: ({ inputs: [x] }) => x!,
    lower: (to) =>
      void to.emit("CumSum", [to.in(0), to.constant("int64", [], [to.attributes.axis])], {
        reverse: int(to.attributes.reverse),
        exclusive: int(to.attributes.exclusive),
      }),
    gradient: ({ attributes: { axis, reverse, exclusive }, g }) => [
      () => cumsum(g, axis, { reverse: !reverse, exclusive }),
    ],
  }),
};

function divideByCount(g: Value, x: Value, axes: readonly number[]): Value {
  const count = mulDims(...axes.map((axis) => x.shape[axis]!));
  return typeof count === "number" ? mul(g, 1 / count) : div(g, dimScalar(x.graph, count, x.dtype));
}

/** Over which axes (default: all), and whether they stay as 1 (default: no). */
export interface ReduceOptions {
  axes?: readonly number[];
  keepDims?: boolean;
}

function reduce(op: Op<Reduction>, x: Value, { axes, keepDims = false }: ReduceOptions): Value {
  const over = axes === undefined ? x.shape.map((_, i) => i) : normalAxes(x, axes, op.name);
  if (over.length === 0) return x;
  // Reducing a size of 1 changes only the shape.
  if (over.every((axis) => x.shape[axis] === 1)) {
    return reshape(x, reducedShape(x.shape, { axes: over, keepDims }));
  }
  return apply1(op, [x], { axes: over, keepDims });
}

export function sum(x: Value, options: ReduceOptions = {}): Value {
  return reduce(reduceOps.sum, x, options);
}

export function mean(x: Value, options: ReduceOptions = {}): Value {
  return reduce(reduceOps.mean, x, options);
}

/** Largest element. In the gradient ties share equally. */
export function max(x: Value, options: ReduceOptions = {}): Value {
  return reduce(reduceOps.max, x, options);
}

export function softmax(x: Value, axis = -1): Value {
  return apply1(reduceOps.softmax, [x], { axis: normalAxis(x, axis, "softmax") });
}

export function logSoftmax(x: Value, axis = -1): Value {
  return apply1(reduceOps.logSoftmax, [x], { axis: normalAxis(x, axis, "logSoftmax") });
}

/** Index (int64) of the first largest element. */
export function argmax(x: Value, axis: number, { keepDims = false } = {}): Value {
  return apply1(reduceOps.argmax, [x], { axis: normalAxis(x, axis, "argmax"), keepDims });
}

/** The k largest along an axis in falling order; of equal ones the first. */
export function topK(x: Value, k: number, axis = -1): { values: Value; indices: Value } {
  const [values, indices] = x.graph.apply(reduceOps.topK, [x], { axis: normalAxis(x, axis, "topK"), k });
  return { values: values!, indices: indices! };
}

export function cumsum(x: Value, axis: number, { reverse = false, exclusive = false } = {}): Value {
  return apply1(reduceOps.cumsum, [x], { axis: normalAxis(x, axis, "cumsum"), reverse, exclusive });
}

/** Undoes broadcasting: sums a tensor over the axes along which `shape` was broadcast to it. */
export function sumTo(x: Value, shape: Shape): Value {
  const lead = x.shape.length - shape.length;
  const axes = x.shape.flatMap((dim, i) => (i < lead || (shape[i - lead] === 1 && dim !== 1) ? [i] : []));
  if (axes.length === 0) return x;
  const inner = axes.some((axis) => axis >= lead);
  const total = sum(x, { axes, keepDims: inner });
  return inner && lead > 0 ? reshape(total, shape) : total;
}
