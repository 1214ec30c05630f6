/** @file Comparisons, booleans, choosing between tensors, bounds and casts. */
import type { DType } from "../../runtime/index.ts";
import { dtypeInfo, isFloat } from "../dtype.ts";
import { type Inference, type None, none, type Op, type Typed, type Value } from "../graph.ts";
import { int, onnx } from "../lowering.ts";
import { apply1, needDtype, type Operand, op, sameDtype } from "./common.ts";
import { asValues, binary, inferBroadcast, thin } from "./elementwise.ts";

const inferCompare = (at: Inference<None>): Typed => {
  sameDtype(at);
  return { dtype: "bool", shape: inferBroadcast(at) };
};

const inferLogic = (at: Inference<None>): Typed => {
  for (const input of at.inputs) needDtype(at, input, "bool");
  return { dtype: "bool", shape: inferBroadcast(at) };
};

const comparison = (name: string, type: string): Op<None> =>
  op<None>(name, { infer: inferCompare, lower: onnx(type), zeroGradient: true });

const logic = (name: string, type: string): Op<None> =>
  op<None>(name, { infer: inferLogic, lower: onnx(type), zeroGradient: true });

export const selectOps = {
  equal: comparison("equal", "Equal"),
  less: comparison("less", "Less"),
  greater: comparison("greater", "Greater"),
  lessEqual: comparison("lessEqual", "LessOrEqual"),
  greaterEqual: comparison("greaterEqual", "GreaterOrEqual"),
  not: logic("not", "Not"),
  and: logic("and", "And"),
  or: logic("or", "Or"),

  /** The gradient is 0 outside of the bounds, and passes at the bounds. */
  clip: op<{ min?: number; max?: number }>("clip", {
    infer: ({ inputs: [x] }) => x!,
    lower(to) {
      const { dtype } = to.node.inputs[0]!;
      const bound = (value: number | undefined): string => (value === undefined ? "" : to.constant(dtype, [], [value]));
      const { min, max } = to.attributes;
      to.emit("Clip", max === undefined ? [to.in(0), bound(min)] : [to.in(0), bound(min), bound(max)]);
    },
    gradient: ({ inputs: [x], attributes: { min, max }, g }) => [
      () => {
        const above = min === undefined ? undefined : greaterEqual(x!, min);
        const below = max === undefined ? undefined : lessEqual(x!, max);
        return where(above && below ? and(above, below) : (above ?? below)!, g, 0);
      },
    ],
  }),
  cast: op<{ to: DType }>("cast", {
    infer: ({ inputs: [x], attributes }) => ({ dtype: attributes.to, shape: x!.shape }),
    lower: onnx("Cast", ({ to }) => ({ to: int(dtypeInfo[to].code) })),
    gradient: ({ inputs: [x], g }) => [() => cast(g, x!.dtype)],
  }),
  /** Condition, then, else. */
  where: op<None>("where", {
    infer(at) {
      const [condition, a, b] = at.inputs;
      needDtype(at, condition!, "bool");
      return { dtype: sameDtype(at, [a!, b!]), shape: inferBroadcast(at) };
    },
    lower: onnx("Where"),
    gradient: ({ inputs: [condition], g }) => [null, () => where(condition!, g, 0), () => where(condition!, 0, g)],
  }),
};

const compare =
  (op: Op<None>) =>
  (a: Operand, b: Operand): Value =>
    binary(op, ...asValues(a, b));

export const equal = compare(selectOps.equal);
export const less = compare(selectOps.less);
export const greater = compare(selectOps.greater);
export const lessEqual = compare(selectOps.lessEqual);
export const greaterEqual = compare(selectOps.greaterEqual);
export const and = (a: Value, b: Value): Value => binary(selectOps.and, a, b);
export const or = (a: Value, b: Value): Value => binary(selectOps.or, a, b);
export const not = (a: Value): Value => apply1(selectOps.not, [a], none);

/** `a` where the condition (bool) holds, else `b`. Broadcasts all three. */
export function where(condition: Value, a: Operand, b: Operand): Value {
  const [x, y] = asValues(a, b);
  const left = thin(x, condition, y);
  return apply1(selectOps.where, [condition, left, thin(y, condition, left)], none);
}

/** min(max(x, bounds.min), bounds.max); a bound left out does not bind. */
export function clip(x: Value, bounds: { min?: number; max?: number }): Value {
  return bounds.min === undefined && bounds.max === undefined ? x : apply1(selectOps.clip, [x], bounds);
}

/** Converts elements. Adjoints pass between floating-point types and end at others. */
export function cast(x: Value, to: DType): Value {
  if (x.dtype === to) return x;
  if (x.origin.kind === "constant" && x.origin.scalar !== undefined && isFloat(to)) {
    return x.graph.scalar(x.origin.scalar, to);
  }
  return apply1(selectOps.cast, [x], { to });
}
