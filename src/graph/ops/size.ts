/** @file Sizes at run time: reading symbols from the graph's inputs and computing expressions over them. */
import type { DType } from "../../runtime/index.ts";
import type { Graph, Value } from "../graph.ts";
import { int } from "../lowering.ts";
import { addDims, type Dim, dimTerms, type Shape, subDims } from "../shape.ts";
import { apply1, normalAxis, op } from "./common.ts";
import { add, mul } from "./elementwise.ts";
import { concat, reshape } from "./layout.ts";
import { cast } from "./select.ts";

export const sizeOps = {
  /** Sizes of axes start..end (exclusive) as int64. */
  shape: op<{ start: number; end: number }>("shape", {
    infer: ({ attributes: { start, end } }) => ({ dtype: "int64", shape: [end - start] }),
    lower: (to) => void to.emit("Shape", to.ins, { start: int(to.attributes.start), end: int(to.attributes.end) }),
    zeroGradient: true,
  }),
  /** start, start + 1, … of `length` elements. Inputs: the first and the limit, int64 scalars. */
  range: op<{ length: Dim }>("range", {
    infer: ({ attributes: { length } }) => ({ dtype: "int64", shape: [length] }),
    lower: (to) => void to.emit("Range", [to.in(0), to.in(1), to.constant("int64", [], [1])]),
    zeroGradient: true,
  }),
};

/** A size as int64 of shape [1]. */
function dimValue(graph: Graph, dim: Dim): Value {
  if (typeof dim === "number") return graph.constant("int64", [1], [dim]);
  const known = graph.sizes.get(dim);
  if (known !== undefined) return apply1(sizeOps.shape, [known.value], { start: known.axis, end: known.axis + 1 });
  const terms = dimTerms(dim).map(({ coefficient, symbols }) => {
    const factors = symbols.map((symbol) => {
      if (symbol === dim) {
        const message = `the size ${symbol} is not known at run time: no graph input has it as a dimension of its own`;
        graph.fail("shape", "UNKNOWN_SYMBOL", message);
      }
      return dimValue(graph, symbol);
    });
    const scale = graph.constant("int64", [1], [coefficient]);
    const product = factors.reduce<Value | undefined>((a, b) => (a ? mul(a, b) : b), undefined);
    if (product === undefined) return scale;
    return coefficient === 1 ? product : mul(product, scale);
  });
  return terms.reduce((a, b) => add(a, b));
}

/** @internal Sizes as one int64 vector; symbols are read from graph inputs at run time. */
export function dimVector(graph: Graph, dims: Shape): Value {
  const parts: Value[] = [];
  let numbers: number[] = [];
  const flush = (): void => {
    if (numbers.length > 0) parts.push(graph.constant("int64", [numbers.length], numbers));
    numbers = [];
  };
  for (const dim of dims) {
    if (typeof dim === "number") numbers.push(dim);
    else {
      flush();
      parts.push(dimValue(graph, dim));
    }
  }
  flush();
  if (parts.length === 0) return graph.constant("int64", [0], []);
  return concat(parts, 0);
}

/** A size as a scalar of an element type. */
export function dimScalar(graph: Graph, dim: Dim, dtype: DType = "int64"): Value {
  if (typeof dim === "number") return graph.scalar(dim, dtype);
  return cast(reshape(dimValue(graph, dim), []), dtype);
}

/** The shape as an int64 vector; a constant where all sizes are numbers. */
export function shapeOf(x: Value): Value {
  if (x.shape.every((dim) => typeof dim === "number")) {
    return x.graph.constant("int64", [x.shape.length], x.shape as readonly number[]);
  }
  return apply1(sizeOps.shape, [x], { start: 0, end: x.shape.length });
}

/** One size as an int64 scalar. */
export function dimOf(x: Value, axis: number): Value {
  const at = normalAxis(x, axis, "dimOf");
  const dim = x.shape[at]!;
  if (typeof dim === "number") return x.graph.scalar(dim, "int64");
  return reshape(apply1(sizeOps.shape, [x], { start: at, end: at + 1 }), []);
}

/** The integers start, start + 1, …, end - 1 as int64 [end - start]. */
export function range(graph: Graph, start: Dim, end: Dim): Value {
  const length = subDims(end, start);
  const inputs = [dimScalar(graph, start), dimScalar(graph, addDims(end))];
  return graph.apply(sizeOps.range, inputs, { length })[0]!;
}
