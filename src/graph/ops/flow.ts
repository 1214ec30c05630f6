/** @file Ops that change only where gradients flow. They emit no ONNX node. */
import { type None, none, type Value } from "../graph.ts";
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
};

/** The same value; no gradient flows through it. */
export function stopGradient(x: Value): Value {
  return apply1(flowOps.stopGradient, [x], none);
}

/** `value` exactly in the forward pass; the whole gradient goes to `surrogate` (Bengio et al. 2013). Same shape and type. */
export function straightThrough(value: Value, surrogate: Value): Value {
  return apply1(flowOps.straightThrough, [value, surrogate], none);
}
