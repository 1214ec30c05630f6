/** @file Ops that move elements without computing: reshape, transpose, broadcast, join and cut. */
import { producedBy, type Value } from "../graph.ts";
import { int, ints, type OnnxAttributes, onnx } from "../lowering.ts";
import {
  addDims,
  broadcastShapes,
  canonicalDim,
  type Dim,
  divDims,
  formatShape,
  mulDims,
  type Shape,
  shapesEqual,
  sizeOf,
  subDims,
} from "../shape.ts";
import { apply1, normalAxes, normalAxis, op, sameDtype } from "./common.ts";
import { full } from "./indexing.ts";
import { dimVector, shapeOf } from "./size.ts";

/** Outputs that a node may have on WebGPU, where a program sees eight buffers at least, and not many more. */
const MOST_OUTPUTS = 6;

export const layoutOps = {
  /** `spec`: the constant shape with ONNX's 0 (as the input) and -1 (the rest); without it the shape is input 1. */
  reshape: op<{ shape: Shape; spec?: readonly number[] }>("reshape", {
    infer: ({ inputs: [x], attributes: { shape } }) => ({ dtype: x!.dtype, shape }),
    lower(to) {
      const { shape, spec } = to.attributes;
      const allowzero = shape.includes(0) ? { allowzero: int(1) } : {};
      to.emit("Reshape", [to.in(0), spec ? to.int64s(spec) : to.in(1)], allowzero);
    },
    gradient: ({ inputs: [x], g }) => [() => reshape(g, x!.shape)],
  }),
  squeeze: op<{ axes: readonly number[] }>("squeeze", {
    infer: ({ inputs: [x], attributes: { axes } }) => ({
      dtype: x!.dtype,
      shape: x!.shape.filter((_, i) => !axes.includes(i)),
    }),
    lower: (to) => void to.emit("Squeeze", [to.in(0), to.int64s(to.attributes.axes)]),
    gradient: ({ attributes: { axes }, g }) => [() => unsqueeze(g, axes)],
  }),
  unsqueeze: op<{ axes: readonly number[] }>("unsqueeze", {
    infer({ inputs: [x], attributes: { axes } }) {
      const rest = [...x!.shape];
      const shape = Array.from({ length: rest.length + axes.length }, (_, i) => (axes.includes(i) ? 1 : rest.shift()!));
      return { dtype: x!.dtype, shape };
    },
    lower: (to) => void to.emit("Unsqueeze", [to.in(0), to.int64s(to.attributes.axes)]),
    gradient: ({ attributes: { axes }, g }) => [() => squeeze(g, axes)],
  }),
  /** Input 1, if there, is the shape at run time. The adjoint is summed back by the caller. */
  expand: op<{ shape: Shape; spec?: readonly number[] }>("expand", {
    infer: ({ inputs: [x], attributes: { shape } }) => ({ dtype: x!.dtype, shape }),
    lower: (to) => void to.emit("Expand", [to.in(0), to.attributes.spec ? to.int64s(to.attributes.spec) : to.in(1)]),
    gradient: ({ g }) => [() => g],
  }),
  transpose: op<{ perm: readonly number[] }>("transpose", {
    infer: ({ inputs: [x], attributes: { perm } }) => ({ dtype: x!.dtype, shape: perm.map((axis) => x!.shape[axis]!) }),
    lower: onnx("Transpose", ({ perm }) => ({ perm: ints(perm) })),
    gradient: ({ attributes: { perm }, g }) => [() => transpose(g, inverse(perm))],
  }),
  concat: op<{ axis: number }>("concat", {
    infer(at) {
      const { axis } = at.attributes;
      const first = at.inputs[0]!;
      for (const { shape } of at.inputs) {
        const fits =
          shape.length === first.shape.length && shape.every((dim, i) => i === axis || dim === first.shape[i]);
        if (!fits) {
          const shapes = at.inputs.map((value) => formatShape(value.shape)).join(" and ");
          at.fail("SHAPE_MISMATCH", `shapes ${shapes} differ outside of axis ${axis}`);
        }
      }
      const total = addDims(...at.inputs.map((value) => value.shape[axis]!));
      return { dtype: sameDtype(at), shape: first.shape.map((dim, i) => (i === axis ? total : dim)) };
    },
    lower: onnx("Concat", ({ axis }) => ({ axis: int(axis) })),
    gradient({ inputs, attributes: { axis }, g }) {
      const sizes = inputs.map((input) => input.shape[axis]!);
      // Pieces of unknown size are all cut at once; of others only those that are wanted.
      if (sizes.some((size) => typeof size === "string")) return inputs.map((_, i) => () => split(g, axis, sizes)[i]!);
      let start: Dim = 0;
      return inputs.map((input) => {
        const from = start;
        start = addDims(start, input.shape[axis]!);
        const to = start;
        return () => slice(g, axis, from, to);
      });
    },
  }),
  /** Input 1, if there, holds the sizes at run time. */
  split: op<{ axis: number; sizes: Shape }>("split", {
    infer: ({ inputs: [x], attributes: { axis, sizes } }) =>
      sizes.map((size) => ({ dtype: x!.dtype, shape: x!.shape.map((dim, i) => (i === axis ? size : dim)) })),
    lower(to) {
      const { axis, sizes } = to.attributes;
      if (to.device === "webgpu" && sizes.length > MOST_OUTPUTS && to.node.inputs.length === 1) {
        let start = 0;
        for (const [i, size] of (sizes as readonly number[]).entries()) {
          const bounds = [start, start + size].map((bound) => to.int64s([bound]));
          start += size;
          to.emit("Slice", [to.in(0), ...bounds, to.int64s([axis])], {}, [to.out(i)]);
        }
        return;
      }
      const atRunTime = to.node.inputs.length > 1 ? to.in(1) : to.int64s(sizes as readonly number[]);
      to.emit("Split", [to.in(0), atRunTime], { axis: int(axis) });
    },
    gradient: ({ outputs, adjoints, attributes: { axis } }) => [
      () =>
        concat(
          outputs.map((y, i) => adjoints[i] ?? full(y.graph, y.shape, 0, y.dtype, y)),
          axis,
        ),
    ],
  }),
  /** Rows in each of `count` parts of x, as equal as can be, of `least` rows at least as long as there are any. */
  partSizes: op<{ count: number; least: number }>("partSizes", {
    infer: ({ attributes: { count } }) => ({ dtype: "int64", shape: [count] }),
    lower(to) {
      const { count, least } = to.attributes;
      const step = (type: string, inputs: string[], attributes: OnnxAttributes = {}): string =>
        to.emit(type, inputs, attributes, [to.temporary()]);
      const rows = step("Shape", [to.in(0)], { start: int(0), end: int(1) });
      const share = step("Div", [step("Add", [rows, to.int64s([count - 1])]), to.int64s([count])]);
      const each = step("Max", [share, to.int64s([least])]);
      const before = step("Mul", [each, to.int64s(Array.from({ length: count }, (_, i) => i))]);
      to.emit("Max", [step("Min", [step("Sub", [rows, before]), each]), to.int64s([0])]);
    },
    zeroGradient: true,
  }),
  /** Parts of x along axis 0, whose sizes are input 1: known at run time only. The last is what is left. */
  rowParts: op<{ count: number }>("rowParts", {
    infer({ inputs: [x], attributes: { count } }) {
      const [rows, ...rest] = x!.shape;
      const name = `${rows}`.replace(/\W/g, "_");
      const sizes: Dim[] = Array.from({ length: count - 1 }, (_, i) => `parts_${name}.${i}`);
      sizes.push(subDims(rows!, addDims(...sizes)));
      return sizes.map((size) => ({ dtype: x!.dtype, shape: [size, ...rest] }));
    },
    lower: (to) => void to.emit("Split", to.ins, { axis: int(0) }),
  }),
  /** Start and end (exclusive) along one axis; as inputs 1 and 2 when they are known only at run time. */
  slice: op<{ axis: number; start: Dim; end: Dim; spec?: readonly [number, number] }>("slice", {
    infer: ({ inputs: [x], attributes: { axis, start, end } }) => ({
      dtype: x!.dtype,
      shape: x!.shape.map((dim, i) => (i === axis ? subDims(end, start) : dim)),
    }),
    lower(to) {
      const { axis, spec } = to.attributes;
      const bounds = spec ? spec.map((bound) => to.int64s([bound])) : [to.in(1), to.in(2)];
      to.emit("Slice", [to.in(0), ...bounds, to.int64s([axis])]);
    },
    gradient: ({ inputs: [x], attributes: { axis, start, end }, g }) => [
      () => pad(g, axis, start, subDims(x!.shape[axis]!, end)),
    ],
  }),
  /** Zeros before and after along one axis; input 1, if there, holds ONNX's pads vector. */
  pad: op<{ axis: number; before: Dim; after: Dim }>("pad", {
    infer: ({ inputs: [x], attributes: { axis, before, after } }) => ({
      dtype: x!.dtype,
      shape: x!.shape.map((dim, i) => (i === axis ? addDims(before, dim, after) : dim)),
    }),
    lower: (to) => void to.emit("Pad", to.ins),
    gradient: ({ inputs: [x], attributes: { axis, before }, g }) => [
      () => slice(g, axis, before, addDims(before, x!.shape[axis]!)),
    ],
  }),
  trilu: op<{ upper: boolean; k: number }>("trilu", {
    infer: ({ inputs: [x] }) => x!,
    lower: (to) =>
      void to.emit("Trilu", [to.in(0), to.constant("int64", [], [to.attributes.k])], {
        upper: int(to.attributes.upper),
      }),
    gradient: ({ attributes, g }) => [() => trilu(g, attributes)],
  }),
};

const inverse = (perm: readonly number[]): number[] => perm.map((_, i) => perm.indexOf(i));

/** The tensor before ops that keep elements and their order, so that chains of reshapes are one. */
function beforeReshapes(x: Value): Value {
  const node =
    producedBy(x, layoutOps.reshape) ?? producedBy(x, layoutOps.squeeze) ?? producedBy(x, layoutOps.unsqueeze);
  return node ? beforeReshapes(node.inputs[0]!) : x;
}

/**
 * The same elements in another shape. One size may be -1: the rest. Symbolic sizes become constants of the model where
 * ONNX can infer them, otherwise they are read from the graph's inputs at run time.
 */
export function reshape(x: Value, shape: readonly Dim[]): Value {
  const { graph } = x;
  const mismatch = (): never =>
    graph.fail("reshape", "SHAPE_MISMATCH", `${formatShape(x.shape)} does not fit into ${formatShape(shape)}`);
  const known = shape.filter((dim) => dim !== -1);
  const rest = known.length < shape.length ? divDims(sizeOf(x.shape), mulDims(...known)) : 1;
  if (rest === undefined || shape.length - known.length > 1) return mismatch();
  const target = shape.map((dim) => (dim === -1 ? rest : canonicalDim(dim)));
  if (sizeOf(target) !== sizeOf(x.shape)) mismatch();

  const source = beforeReshapes(x);
  if (shapesEqual(target, source.shape)) return source;
  if (shapesEqual(target, x.shape)) return x;
  const symbolic = target.filter((dim) => typeof dim === "string");
  // An empty tensor leaves ONNX's 0 and -1 without meaning.
  if (target.includes(0)) {
    if (symbolic.length === 0) return apply1(layoutOps.reshape, [source], { shape: target, spec: target as number[] });
    return apply1(layoutOps.reshape, [source, dimVector(graph, target)], { shape: target });
  }
  const kept = target.map((dim, i) => typeof dim === "string" && source.shape[i] === dim);
  const open = target.flatMap((dim, i) => (typeof dim === "string" && !kept[i] ? [i] : []));
  // -1 takes the size that is dearest to compute: a compound one, else the last.
  const inferred = open.findLast((i) => !graph.sizes.has(String(target[i]))) ?? open.at(-1);
  const spec = target.map((dim, i) => (kept[i] ? 0 : i === inferred ? -1 : dim));
  if (open.length <= 1) return apply1(layoutOps.reshape, [source], { shape: target, spec: spec as number[] });
  return apply1(layoutOps.reshape, [source, dimVector(graph, spec)], { shape: target });
}

export function squeeze(x: Value, axes: readonly number[]): Value {
  const over = normalAxes(x, axes, "squeeze");
  for (const axis of over) {
    if (x.shape[axis] !== 1) {
      x.graph.fail("squeeze", "SHAPE_MISMATCH", `axis ${axis} of ${formatShape(x.shape)} is not 1`);
    }
  }
  if (over.length === 0) return x;
  const inner = producedBy(x, layoutOps.unsqueeze);
  if (inner && String(inner.attributes.axes) === String(over)) return inner.inputs[0]!;
  return apply1(layoutOps.squeeze, [x], { axes: over });
}

/** New axes of size 1 at these positions of the result. */
export function unsqueeze(x: Value, axes: readonly number[]): Value {
  const over = normalAxes(x, axes, "unsqueeze", x.shape.length + axes.length);
  if (over.length === 0) return x;
  const inner = producedBy(x, layoutOps.squeeze);
  if (inner && String(inner.attributes.axes) === String(over)) return inner.inputs[0]!;
  return apply1(layoutOps.unsqueeze, [x], { axes: over });
}

/**
 * Broadcasts to a shape (sizes of 1 and missing leading axes grow).
 * @param like a value of exactly that shape, to take symbolic sizes from; by default they are read from graph inputs
 */
export function expand(x: Value, shape: readonly Dim[], like?: Value): Value {
  const { graph } = x;
  const target = shape.map(canonicalDim);
  const joint = broadcastShapes(x.shape, target);
  if (joint === undefined || !shapesEqual(joint, target)) {
    graph.fail("expand", "SHAPE_MISMATCH", `${formatShape(x.shape)} does not broadcast to ${formatShape(target)}`);
  }
  if (shapesEqual(x.shape, target)) return x;
  const inner = producedBy(x, layoutOps.expand);
  if (inner) return expand(inner.inputs[0]!, target, like);
  const lead = target.length - x.shape.length;
  // ONNX's Expand broadcasts both ways: 1 keeps the input's size.
  const spec = target.map((dim, i) => (typeof dim === "number" ? dim : x.shape[i - lead] === dim ? 1 : -1));
  if (!spec.includes(-1)) return apply1(layoutOps.expand, [x], { shape: target, spec });
  const atRunTime =
    like && shapesEqual(like.shape, target)
      ? shapeOf(like)
      : dimVector(
          graph,
          target.map((dim, i) => (spec[i] === -1 ? dim : spec[i]!)),
        );
  return apply1(layoutOps.expand, [x, atRunTime], { shape: target });
}

/** Broadcasts to the shape of another value. */
export function expandLike(x: Value, like: Value): Value {
  return expand(x, like.shape, like);
}

/** Axis i of the result is axis perm[i] of x. Default: all axes reversed. */
export function transpose(x: Value, perm: readonly number[] = x.shape.map((_, i) => i).reverse()): Value {
  const rank = x.shape.length;
  const axes = perm.map((axis) => (axis < 0 ? axis + rank : axis));
  if (axes.length !== rank || axes.some((_, i) => !axes.includes(i))) {
    x.graph.fail("transpose", "BAD_ATTRIBUTE", `[${perm.join(", ")}] is no permutation of ${formatShape(x.shape)}`);
  }
  if (axes.every((axis, i) => axis === i)) return x;
  const inner = producedBy(x, layoutOps.transpose);
  if (inner)
    return transpose(
      inner.inputs[0]!,
      axes.map((axis) => inner.attributes.perm[axis]!),
    );
  return apply1(layoutOps.transpose, [x], { perm: axes });
}

export function concat(values: readonly Value[], axis: number): Value {
  const first = values[0]!;
  return values.length === 1 ? first : apply1(layoutOps.concat, values, { axis: normalAxis(first, axis, "concat") });
}

/** Cuts an axis into pieces of the given sizes, which may be symbolic and fill it. */
export function split(x: Value, axis: number, sizes: readonly Dim[]): Value[] {
  const at = normalAxis(x, axis, "split");
  if (addDims(...sizes) !== x.shape[at]) {
    x.graph.fail(
      "split",
      "SHAPE_MISMATCH",
      `pieces ${formatShape(sizes)} do not fill axis ${at} of ${formatShape(x.shape)}`,
    );
  }
  if (sizes.length === 1) return [x];
  const pieces = sizes.map(canonicalDim);
  const inputs = pieces.some((size) => typeof size === "string") ? [x, dimVector(x.graph, pieces)] : [x];
  return [...x.graph.apply(layoutOps.split, inputs, { axis: at, sizes: pieces })];
}

/**
 * Elements start … end - 1 along an axis. Negative numbers count from the end, `Infinity` is the end, and both may be
 * symbolic sizes. Along a symbolic axis a numeric bound must lie inside at run time.
 */
export function slice(x: Value, axis: number, start: Dim, end: Dim = Number.POSITIVE_INFINITY): Value {
  const { graph } = x;
  const at = normalAxis(x, axis, "slice");
  const size = x.shape[at]!;
  const bound = (dim: Dim): Dim =>
    dim === Number.POSITIVE_INFINITY ? size : typeof dim === "number" && dim < 0 ? addDims(size, dim) : addDims(dim);
  const [from, to] = [bound(start), bound(end)];
  const length = subDims(to, from);
  const inside = [from, length, typeof size === "number" && typeof to === "number" ? size - to : 0];
  if (inside.some((dim) => typeof dim === "number" && dim < 0)) {
    graph.fail("slice", "SHAPE_MISMATCH", `${start}…${end} is outside of axis ${at} of ${formatShape(x.shape)}`);
  }
  if (from === 0 && to === size) return x;
  const numeric = (dim: Dim): number | undefined => {
    const fromEnd = subDims(dim, size);
    return typeof dim === "number"
      ? dim
      : dim === size
        ? Number.MAX_SAFE_INTEGER
        : typeof fromEnd === "number"
          ? fromEnd
          : undefined;
  };
  const [first, last] = [numeric(from), numeric(to)];
  const attributes = { axis: at, start: from, end: to };
  if (first !== undefined && last !== undefined) {
    return apply1(layoutOps.slice, [x], { ...attributes, spec: [first, last] as const });
  }
  return apply1(layoutOps.slice, [x, dimVector(graph, [from]), dimVector(graph, [to])], attributes);
}

/** Zeros before and after along an axis. */
export function pad(x: Value, axis: number, before: Dim, after: Dim): Value {
  if (before === 0 && after === 0) return x;
  const at = normalAxis(x, axis, "pad");
  const pads = [before, after].flatMap((dim) => x.shape.map((_, i) => (i === at ? dim : 0)));
  return apply1(layoutOps.pad, [x, dimVector(x.graph, pads)], { axis: at, before, after });
}

/** Lower (default) or upper triangle of the last two axes, the rest 0; the diagonal is shifted by k. */
export function trilu(x: Value, { upper = false, k = 0 } = {}): Value {
  return apply1(layoutOps.trilu, [x], { upper, k });
}

/** @internal Sizes int64 [count] of the parts for `rowParts`. Without rows the parts are empty, as the last ones may be. */
export function partSizes(x: Value, count: number, least: number): Value {
  return apply1(layoutOps.partSizes, [x], { count, least });
}

/** @internal Parts of x along axis 0. */
export function rowParts(x: Value, sizes: Value): readonly Value[] {
  return x.graph.apply(layoutOps.rowParts, [x, sizes], { count: sizes.shape[0] as number });
}
