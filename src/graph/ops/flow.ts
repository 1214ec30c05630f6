/** @file Ops that change only where gradients flow, which emit no ONNX node, and when something is computed. */
import { type None, none, type Value } from "../graph.ts";
import { int, type OnnxAttributes } from "../lowering.ts";
import { formatShape, shapesEqual } from "../shape.ts";
import { apply1, op, sameDtype } from "./common.ts";

export const flowOps = {
  stopGradient: op<None>("stopGradient", {
    infer: ({ inputs: [x] }) => x!,
    lower: () => {},
    zeroGradient: true,
    alias: 0,
  }),
  straightThrough: op<None>("straightThrough", {
    infer(at) {
      const [value, surrogate] = at.inputs;
      sameDtype(at);
      if (!shapesEqual(value!.shape, surrogate!.shape)) {
        const shapes = `${formatShape(value!.shape)} and ${formatShape(surrogate!.shape)}`;
        at.fail("SHAPE_MISMATCH", `value and surrogate have the shapes ${shapes}`);
      }
      return value!;
    },
    lower: () => {},
    gradient: ({ g }) => [null, () => g],
    alias: 0,
  }),
  /** The number 0, once x is there. */
  zeroAfter: op<None>("zeroAfter", {
    infer: () => ({ dtype: "int64", shape: [] }),
    lower(to) {
      const step = (type: string, inputs: string[], attributes: OnnxAttributes = {}): string =>
        to.emit(type, inputs, attributes, [to.temporary()]);
      const zero = to.constant("int64", [], [0]);
      if (to.device === "cpu") to.emit("Mul", [step("Size", [to.in(0)]), zero]);
      // Size would copy x to the CPU.
      else to.emit("Mul", [step("ReduceProd", [step("Shape", [to.in(0)])], { keepdims: int(0) }), zero]);
    },
    zeroGradient: true,
  }),
  /**
   * x itself, but not before the zero is there: a reshape to its own shape plus zero, which the runtime does without a
   * copy, and which it can neither fold nor do early.
   */
  waitFor: op<None>("waitFor", {
    infer: ({ inputs: [x] }) => x!,
    lower(to) {
      const step = (type: string, inputs: string[], attributes: OnnxAttributes = {}): string =>
        to.emit(type, inputs, attributes, [to.temporary()]);
      to.emit("Reshape", [to.in(0), step("Add", [step("Shape", [to.in(0)]), to.in(1)])]);
    },
  }),
};

/** @internal A scalar zero that is there only after x; for `waitFor`. */
export function zeroAfter(x: Value): Value {
  return apply1(flowOps.zeroAfter, [x], none);
}

/** @internal x, not available before `zero` is. It differs from x, also for whatever looks for equal expressions. */
export function waitFor(x: Value, zero: Value): Value {
  return apply1(flowOps.waitFor, [x, zero], none);
}

/** The same value; no gradient flows through it. */
export function stopGradient(x: Value): Value {
  return apply1(flowOps.stopGradient, [x], none);
}

/** `value` exactly in the forward pass; the whole gradient goes to `surrogate` (Bengio et al. 2013). Same shape and type. */
export function straightThrough(value: Value, surrogate: Value): Value {
  return apply1(flowOps.straightThrough, [value, surrogate], none);
}
