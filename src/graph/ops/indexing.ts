/** @file Reading and writing by index, and tensors filled with one number. */
import type { DType } from "../../runtime/index.ts";
import { dtypeInfo } from "../dtype.ts";
import { type Graph, type Inference, type None, none, type Typed, type Value } from "../graph.ts";
import { int, type OnnxAttributes, onnx } from "../lowering.ts";
import { canonicalDim, type Dim, formatShape, mulDims, type Shape, shapesEqual } from "../shape.ts";
import { apply1, needDtype, normalAxis, op, sameDtype } from "./common.ts";
import { expand, reshape, transpose } from "./layout.ts";

export interface Axis {
  axis: number;
}

/** Axis `from` moved to position `to`. */
function moved(rank: number, from: number, to: number): number[] {
  const order = Array.from({ length: rank }, (_, i) => i).filter((i) => i !== from);
  order.splice(to, 0, from);
  return order;
}

function inferScatteredRows(at: Inference<unknown>): Typed {
  const [data, indices, updates] = at.inputs;
  needDtype(at, indices!, "int64");
  const expected = [indices!.shape[0]!, ...data!.shape.slice(1)];
  if (!shapesEqual(updates!.shape, expected)) {
    at.fail("SHAPE_MISMATCH", `updates ${formatShape(updates!.shape)} should be ${formatShape(expected)}`);
  }
  return { dtype: sameDtype(at, [data!, updates!]), shape: data!.shape };
}

export const indexingOps = {
  /** Slices of `data` along one axis; the gradient adds slices of one index. */
  gather: op<Axis>("gather", {
    infer(at) {
      const [data, indices] = at.inputs;
      needDtype(at, indices!, "int64", "int32");
      const { axis } = at.attributes;
      return {
        dtype: data!.dtype,
        shape: [...data!.shape.slice(0, axis), ...indices!.shape, ...data!.shape.slice(axis + 1)],
      };
    },
    lower: onnx("Gather", ({ axis }) => ({ axis: int(axis) })),
    gradient: ({ inputs: [data, indices], attributes: { axis }, g }) => [
      () => {
        // With the gathered axis in front, rows of g are added into rows of zeros.
        const order = moved(data!.shape.length, axis, 0);
        const shape = order.map((i) => data!.shape[i]!);
        const q = indices!.shape.length;
        const front = Array.from({ length: q }, (_, i) => axis + i);
        const others = g.shape.map((_, i) => i).filter((i) => !front.includes(i));
        const rows = reshape(transpose(g, [...front, ...others]), [mulDims(...indices!.shape), ...shape.slice(1)]);
        const index = reshape(indices!, [mulDims(...indices!.shape), 1]);
        const zero = full(g.graph, shape, 0, g.dtype, axis === 0 ? data : undefined);
        return transpose(scatterRows(zero, index, rows), moved(order.length, 0, axis));
      },
      null,
    ],
  }),
  /** Adds rows: result = data; result[indices[i, 0]] += updates[i]. */
  scatterRows: op<None>("scatterRows", {
    infer: inferScatteredRows,
    lower: onnx("ScatterND", () => ({ reduction: { string: "add" } })),
    gradient: ({ inputs: [, indices], g }) => [() => g, null, () => gather(g, reshape(indices!, [-1]), 0)],
  }),
  /** Writes or multiplies rows, of which none may be named twice; for inference. */
  updateRows: op<{ reduction: "none" | "mul" }>("updateRows", {
    infer: inferScatteredRows,
    lower: onnx("ScatterND", ({ reduction }) => ({ reduction: { string: reduction } })),
  }),
  gatherElements: op<Axis>("gatherElements", {
    infer(at) {
      const [data, indices] = at.inputs;
      needDtype(at, indices!, "int64", "int32");
      const { axis } = at.attributes;
      if (data!.shape.length !== indices!.shape.length) {
        const shapes = `${formatShape(data!.shape)} by ${formatShape(indices!.shape)}`;
        at.fail("SHAPE_MISMATCH", `cannot index ${shapes} along axis ${axis}: ranks differ`);
      }
      return { dtype: data!.dtype, shape: indices!.shape };
    },
    lower: onnx("GatherElements", ({ axis }) => ({ axis: int(axis) })),
    gradient: ({ inputs: [data, indices], attributes: { axis }, g }) => [
      () => scatterElements(zeros(g.graph, data!.shape, g.dtype, data), indices!, g, axis, "add"),
      null,
    ],
  }),
  scatterElements: op<Axis & { reduction: "none" | "add" }>("scatterElements", {
    infer(at) {
      const [data, indices, updates] = at.inputs;
      needDtype(at, indices!, "int64", "int32");
      if (!shapesEqual(indices!.shape, updates!.shape) || data!.shape.length !== indices!.shape.length) {
        const shapes = [indices!, updates!, data!].map((value) => formatShape(value.shape));
        at.fail("SHAPE_MISMATCH", `indices ${shapes[0]} and updates ${shapes[1]} do not fit data ${shapes[2]}`);
      }
      return { dtype: sameDtype(at, [data!, updates!]), shape: data!.shape };
    },
    lower: onnx("ScatterElements", ({ axis, reduction }) => ({ axis: int(axis), reduction: { string: reduction } })),
    gradient: ({ inputs: [, indices], attributes: { axis, reduction }, g }) => [
      () =>
        reduction === "add"
          ? g
          : scatterElements(g, indices!, zeros(g.graph, indices!.shape, g.dtype, indices), axis, "none"),
      null,
      () => gatherElements(g, indices!, axis),
    ],
  }),
  oneHot: op<{ depth: number; dtype: DType }>("oneHot", {
    infer(at) {
      needDtype(at, at.inputs[0]!, "int64", "int32");
      return { dtype: at.attributes.dtype, shape: [...at.inputs[0]!.shape, at.attributes.depth] };
    },
    lower(to) {
      const { depth, dtype } = to.attributes;
      if (to.device === "webgpu") {
        const step = (type: string, inputs: readonly string[], attributes: OnnxAttributes = {}): string =>
          to.emit(type, inputs, attributes, [to.temporary()]);
        const columns = to.constant(
          "int32",
          [depth],
          Array.from({ length: depth }, (_, i) => i),
        );
        const index = step("Cast", [to.in(0)], { to: int(dtypeInfo.int32.code) });
        const equal = step("Equal", [step("Unsqueeze", [index, to.int64s([-1])]), columns]);
        to.emit("Cast", [equal], { to: int(dtypeInfo[dtype].code) });
        return;
      }
      to.emit("OneHot", [to.in(0), to.constant("int64", [], [depth]), to.constant(dtype, [2], [0, 1])], {
        axis: int(-1),
      });
    },
    zeroGradient: true,
  }),
};

/** Slices of `data` along an axis (an embedding table: axis 0). Shape: data with that axis replaced by the indices' shape. */
export function gather(data: Value, indices: Value, axis = 0): Value {
  return apply1(indexingOps.gather, [data, indices], { axis: normalAxis(data, axis, "gather") });
}

/**
 * A copy of `data` [R, …] with rows changed by `updates` [n, …]: result[indices[i, 0]] += updates[i], or *=, or =. Only
 * where they are added may a row be named more than once.
 */
export function scatterRows(
  data: Value,
  indices: Value,
  updates: Value,
  reduction: "add" | "mul" | "none" = "add",
): Value {
  if (reduction !== "add") return apply1(indexingOps.updateRows, [data, indices, updates], { reduction });
  return apply1(indexingOps.scatterRows, [data, indices, updates], none);
}

/** result[…, i, …] = data[…, indices[…, i, …], …] along an axis; shapes as ONNX GatherElements. */
export function gatherElements(data: Value, indices: Value, axis = -1): Value {
  return apply1(indexingOps.gatherElements, [data, indices], { axis: normalAxis(data, axis, "gatherElements") });
}

/** A copy of `data` with `updates` written ("none": indices must not repeat) or added at `indices` along an axis. */
export function scatterElements(
  data: Value,
  indices: Value,
  updates: Value,
  axis = -1,
  reduction: "none" | "add" = "none",
): Value {
  const attributes = { axis: normalAxis(data, axis, "scatterElements"), reduction };
  return apply1(indexingOps.scatterElements, [data, indices, updates], attributes);
}

/** 1 at the index along a new last axis of size `depth`, else 0. */
export function oneHot(indices: Value, depth: number, dtype: DType = "float32"): Value {
  return apply1(indexingOps.oneHot, [indices], { depth, dtype });
}

/**
 * A tensor of one number. Not stored in the model: a scalar broadcast at run time.
 * @param like a value of that shape, to take symbolic sizes from
 */
export function full(
  graph: Graph,
  shape: readonly Dim[],
  value: number,
  dtype: DType = "float32",
  like?: Value,
): Value {
  return expand(graph.scalar(value, dtype), shape.map(canonicalDim), like);
}

export function zeros(graph: Graph, shape: Shape, dtype: DType = "float32", like?: Value): Value {
  return full(graph, shape, 0, dtype, like);
}
