/** @file What the op files share: declaring an op, axes, element-type checks, and the shape algebra at run time. */
import type { DType } from "../../runtime/index.ts";
import { isFloat } from "../dtype.ts";
import type { Inference, Op, Value } from "../graph.ts";
import { formatShape } from "../shape.ts";

/** A tensor, or a number standing for a scalar constant of the other operand's element type. */
export type Operand = Value | number;

/** Declares an op; `A` are its attributes. */
export function op<A>(name: string, description: Omit<Op<A>, "name">): Op<A> {
  return { name, ...description };
}

/** Applies an op with one output. */
export function apply1<A>(op: Op<A>, inputs: readonly Value[], attributes: A): Value {
  return inputs[0]!.graph.apply(op, inputs, attributes)[0]!;
}

/** A non-negative axis. */
export function normalAxis(x: Value, axis: number, name: string, rank = x.shape.length): number {
  if (!Number.isInteger(axis) || axis < -rank || axis >= rank) {
    x.graph.fail(name, "BAD_ATTRIBUTE", `axis ${axis} is outside of the shape ${formatShape(x.shape)}`);
  }
  return axis < 0 ? axis + rank : axis;
}

/** Sorted non-negative axes without repetition. */
export function normalAxes(x: Value, axes: readonly number[], name: string, rank = x.shape.length): number[] {
  return [...new Set(axes.map((axis) => normalAxis(x, axis, name, rank)))].sort((a, b) => a - b);
}

export function sameDtype(at: Inference<unknown>, inputs: readonly Value[] = at.inputs): DType {
  const first = inputs[0]!;
  for (const input of inputs) {
    if (input.dtype !== first.dtype) {
      at.fail("DTYPE_MISMATCH", `operands are ${inputs.map(String).join(" and ")}; cast one of them`);
    }
  }
  return first.dtype;
}

export function needFloat(at: Inference<unknown>, value: Value = at.inputs[0]!): DType {
  if (!isFloat(value.dtype)) at.fail("DTYPE_MISMATCH", `needs floating-point numbers, got ${value}`);
  return value.dtype;
}

export function needDtype(at: Inference<unknown>, value: Value, ...allowed: readonly DType[]): DType {
  if (!allowed.includes(value.dtype)) at.fail("DTYPE_MISMATCH", `needs ${allowed.join(" or ")}, got ${value}`);
  return value.dtype;
}
