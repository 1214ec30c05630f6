/** @file Elementwise arithmetic with broadcasting, and functions of one tensor. */
import { dtypeInfo, isFloat } from "../dtype.ts";
import { constantScalar, type Inference, type None, none, type Op, producedBy, type Typed, Value } from "../graph.ts";
import { int, onnx } from "../lowering.ts";
import { broadcastShapes, type Dim, formatShape, type Shape, shapesEqual } from "../shape.ts";
import { apply1, needFloat, type Operand, op, sameDtype } from "./common.ts";
import { layoutOps } from "./layout.ts";
import { greater, greaterEqual, lessEqual, where } from "./select.ts";

export function inferBroadcast(at: Inference<unknown>, inputs: readonly Value[] = at.inputs): Shape {
  return inputs.reduce<readonly Dim[]>((shape, input) => {
    const result = broadcastShapes(shape, input.shape);
    if (result !== undefined) return result;
    const shapes = inputs.map((value) => formatShape(value.shape)).join(" and ");
    return at.fail("SHAPE_MISMATCH", `shapes ${shapes} do not broadcast`);
  }, []);
}

const inferBinary = (at: Inference<None>): Typed => ({ dtype: sameDtype(at), shape: inferBroadcast(at) });
const inferUnary = (at: Inference<unknown>): Typed => ({ dtype: needFloat(at), shape: at.inputs[0]!.shape });
const inferSame = (at: Inference<unknown>): Typed => at.inputs[0]!;

type Rule = NonNullable<Op<None>["gradient"]>;

const binaryOp = (name: string, type: string, gradient: Rule): Op<None> =>
  op<None>(name, { infer: inferBinary, lower: onnx(type), gradient });

const unaryOp = (name: string, type: string, gradient: (x: Value, y: Value, g: Value) => Value): Op<None> =>
  op<None>(name, {
    infer: inferUnary,
    lower: onnx(type),
    gradient: ({ inputs: [x], outputs: [y], g }) => [() => gradient(x!, y!, g)],
  });

export const elementwiseOps = {
  add: binaryOp("add", "Add", ({ g }) => [() => g, () => g]),
  sub: binaryOp("sub", "Sub", ({ g }) => [() => g, () => neg(g)]),
  mul: binaryOp("mul", "Mul", ({ inputs: [a, b], g }) => [() => mul(g, b!), () => mul(g, a!)]),
  div: binaryOp("div", "Div", ({ inputs: [, b], outputs: [y], g }) => [
    () => div(g, b!),
    () => neg(div(mul(g, y!), b!)), // d(a/b)/db = -(a/b)/b
  ]),
  pow: binaryOp("pow", "Pow", ({ inputs: [a, b], outputs: [y], g }) => [
    () => mul(g, mul(b!, pow(a!, sub(b!, 1)))),
    () => mul(g, mul(y!, log(a!))),
  ]),
  /** Ties: the first operand gets the whole gradient. */
  maximum: binaryOp("maximum", "Max", ({ inputs: [a, b], g }) => [
    () => where(greaterEqual(a!, b!), g, 0),
    () => where(greaterEqual(a!, b!), 0, g),
  ]),
  /** Ties: the first operand gets the whole gradient. */
  minimum: binaryOp("minimum", "Min", ({ inputs: [a, b], g }) => [
    () => where(lessEqual(a!, b!), g, 0),
    () => where(lessEqual(a!, b!), 0, g),
  ]),

  neg: op<None>("neg", { infer: inferSame, lower: onnx("Neg"), gradient: ({ g }) => [() => neg(g)] }),
  /** Derivative at 0 is 0. */
  abs: op<None>("abs", {
    infer: inferSame,
    lower: onnx("Abs"),
    gradient: ({ inputs: [x], g }) => [() => mul(g, sign(x!))],
  }),
  sign: op<None>("sign", {
    infer: inferSame,
    lower(to) {
      if (to.device !== "webgpu") return void to.emit("Sign", to.ins);
      const { dtype } = to.node.inputs[0]!;
      const zero = to.constant(dtype, [], [0]);
      const is = (type: string): string => {
        const holds = to.emit(type, [to.in(0), zero], {}, [to.temporary()]);
        return to.emit("Cast", [holds], { to: int(dtypeInfo[dtype].code) }, [to.temporary()]);
      };
      to.emit("Sub", [is("Greater"), is("Less")]);
    },
    zeroGradient: true,
  }),
  exp: unaryOp("exp", "Exp", (_x, y, g) => mul(g, y)),
  cos: unaryOp("cos", "Cos", (x, _y, g) => neg(mul(g, sin(x)))),
  sin: unaryOp("sin", "Sin", (x, _y, g) => mul(g, cos(x))),
  log: unaryOp("log", "Log", (x, _y, g) => div(g, x)),
  sqrt: unaryOp("sqrt", "Sqrt", (_x, y, g) => div(mul(g, 0.5), y)),
  reciprocal: unaryOp("reciprocal", "Reciprocal", (_x, y, g) => neg(mul(g, square(y)))),
  sigmoid: unaryOp("sigmoid", "Sigmoid", (_x, y, g) => mul(g, mul(y, sub(1, y)))),
  tanh: unaryOp("tanh", "Tanh", (_x, y, g) => mul(g, sub(1, square(y)))),
  erf: unaryOp("erf", "Erf", (x, _y, g) => mul(mul(g, 2 / Math.sqrt(Math.PI)), exp(neg(square(x))))),
  /** Derivative at 0 is 0. */
  relu: unaryOp("relu", "Relu", (_x, y, g) => where(greater(y, 0), g, 0)),
  /** x Φ(x) with the exact error function; derivative Φ(x) + x φ(x). */
  gelu: unaryOp("gelu", "Gelu", (x, _y, g) => {
    const cdf = mul(add(erf(mul(x, Math.SQRT1_2)), 1), 0.5);
    const pdf = mul(exp(mul(square(x), -0.5)), 1 / Math.sqrt(2 * Math.PI));
    return mul(g, add(cdf, mul(x, pdf)));
  }),
  /** x / 2 · (1 + tanh u), u = √(2/π) (x + 0.044715 x³): GELU by its tanh formula (Hendrycks & Gimpel 2016). */
  geluTanh: op<None>("geluTanh", {
    infer: inferUnary,
    lower: onnx("Gelu", () => ({ approximate: { string: "tanh" } })),
    gradient: ({ inputs: [x], g }) => [
      () => {
        const squared = square(x!);
        const t = tanh(mul(mul(x!, add(mul(squared, 0.044715), 1)), Math.sqrt(2 / Math.PI)));
        const inner = mul(add(mul(squared, 3 * 0.044715), 1), Math.sqrt(2 / Math.PI)); // du/dx
        return mul(g, mul(add(add(t, 1), mul(mul(x!, sub(1, square(t))), inner)), 0.5));
      },
    ],
  }),
  /** x σ(x), one node on float32 (QuickGelu with alpha 1); derivative σ + y (1 - σ). */
  silu: op<None>("silu", {
    infer: inferUnary,
    lower(to) {
      if (to.node.inputs[0]!.dtype === "float32") {
        to.emit("QuickGelu", to.ins, { alpha: { float: 1 } }, to.outs, "com.microsoft");
      } else {
        to.emit("Mul", [to.in(0), to.emit("Sigmoid", to.ins, {}, [to.temporary()])]);
      }
    },
    gradient: ({ inputs: [x], outputs: [y], g }) => [
      () => {
        const gate = sigmoid(x!);
        return mul(g, add(gate, mul(y!, sub(1, gate))));
      },
    ],
  }),
  square: op<None>("square", {
    infer: inferSame,
    lower: (to) => void to.emit("Mul", [to.in(0), to.in(0)]),
    gradient: ({ inputs: [x], g }) => [() => mul(mul(g, 2), x!)],
  }),
};

/** A broadcast operand whose partners would broadcast it anyway: use it as it was before. */
export function thin(a: Value, b: Value, ...others: Value[]): Value {
  const source = producedBy(a, layoutOps.expand)?.inputs[0];
  if (source === undefined) return a;
  const rest = [b, ...others].reduce<Shape | undefined>(
    (shape, value) => shape && broadcastShapes(shape, value.shape),
    [],
  );
  const full = rest && broadcastShapes(a.shape, rest);
  const thinned = rest && broadcastShapes(source.shape, rest);
  return full && thinned && shapesEqual(full, thinned) ? source : a;
}

/** Both operands as values, a needless broadcast of either undone. */
export function asValues(a: Operand, b: Operand): [Value, Value] {
  if (!(a instanceof Value)) {
    if (b instanceof Value) return [b.graph.scalar(a, b.dtype), b];
    throw new TypeError("one of two operands must be a Value");
  }
  if (!(b instanceof Value)) return [a, a.graph.scalar(b, a.dtype)];
  const left = thin(a, b);
  return [left, thin(b, left)];
}

export function binary(op: Op<None>, a: Value, b: Value): Value {
  return apply1(op, [a, b], none);
}

/** The number to compute with when both operands are scalar floating-point constants. */
function folded(a: Value, b: Value, compute: (a: number, b: number) => number): Value | undefined {
  const [x, y] = [constantScalar(a), constantScalar(b)];
  return x === undefined || y === undefined || !isFloat(a.dtype) || a.dtype !== b.dtype
    ? undefined
    : a.graph.scalar(compute(x, y), a.dtype);
}

export function add(a: Operand, b: Operand): Value {
  const [x, y] = asValues(a, b);
  if (x.dtype === y.dtype) {
    if (constantScalar(y) === 0) return x;
    if (constantScalar(x) === 0) return y;
    const negative = producedBy(y, elementwiseOps.neg);
    if (negative) return sub(x, negative.inputs[0]!);
  }
  return folded(x, y, (p, q) => p + q) ?? binary(elementwiseOps.add, x, y);
}

export function sub(a: Operand, b: Operand): Value {
  const [x, y] = asValues(a, b);
  if (x.dtype === y.dtype) {
    if (constantScalar(y) === 0) return x;
    if (constantScalar(x) === 0) return neg(y);
    const negative = producedBy(y, elementwiseOps.neg);
    if (negative) return add(x, negative.inputs[0]!);
  }
  return folded(x, y, (p, q) => p - q) ?? binary(elementwiseOps.sub, x, y);
}

export function mul(a: Operand, b: Operand): Value {
  const [x, y] = asValues(a, b);
  if (constantScalar(x) !== undefined && constantScalar(y) === undefined) return mul(y, x);
  const factor = constantScalar(y);
  if (factor !== undefined && x.dtype === y.dtype) {
    if (factor === 1) return x;
    if (factor === -1) return neg(x);
    if (isFloat(x.dtype)) {
      const inner = producedBy(x, elementwiseOps.mul);
      const before = inner && constantScalar(inner.inputs[1]!);
      if (before !== undefined) return mul(inner!.inputs[0]!, before * factor);
      const wide = producedBy(x, layoutOps.expand);
      if (wide) return apply1(layoutOps.expand, [mul(wide.inputs[0]!, y), ...wide.inputs.slice(1)], wide.attributes);
    }
  }
  return folded(x, y, (p, q) => p * q) ?? binary(elementwiseOps.mul, x, y);
}

export function div(a: Operand, b: Operand): Value {
  const [x, y] = asValues(a, b);
  if (constantScalar(y) === 1 && x.dtype === y.dtype) return x;
  return folded(x, y, (p, q) => p / q) ?? binary(elementwiseOps.div, x, y);
}

/** a ** b. The gradient with respect to b needs a > 0. */
export function pow(a: Operand, b: Operand): Value {
  const [x, y] = asValues(a, b);
  if (constantScalar(y) === 1) return x;
  if (constantScalar(y) === 2) return square(x);
  return folded(x, y, (p, q) => p ** q) ?? binary(elementwiseOps.pow, x, y);
}

export function maximum(a: Operand, b: Operand): Value {
  return binary(elementwiseOps.maximum, ...asValues(a, b));
}

export function minimum(a: Operand, b: Operand): Value {
  return binary(elementwiseOps.minimum, ...asValues(a, b));
}

const unary =
  (op: Op<None>) =>
  (x: Value): Value =>
    apply1(op, [x], none);

export function neg(x: Value): Value {
  const inner = producedBy(x, elementwiseOps.neg);
  if (inner) return inner.inputs[0]!;
  const difference = producedBy(x, elementwiseOps.sub);
  if (difference) return sub(difference.inputs[1]!, difference.inputs[0]!);
  const product = producedBy(x, elementwiseOps.mul);
  const factor = product && constantScalar(product.inputs[1]!);
  if (factor !== undefined) return mul(product!.inputs[0]!, -factor);
  const constant = constantScalar(x);
  return constant !== undefined && isFloat(x.dtype) ? x.graph.scalar(-constant, x.dtype) : unary(elementwiseOps.neg)(x);
}

export const abs = unary(elementwiseOps.abs);
export const sign = unary(elementwiseOps.sign);
export const exp = unary(elementwiseOps.exp);
export const cos = unary(elementwiseOps.cos);
export const sin = unary(elementwiseOps.sin);
export const log = unary(elementwiseOps.log);
export const sqrt = unary(elementwiseOps.sqrt);
export const reciprocal = unary(elementwiseOps.reciprocal);
export const sigmoid = unary(elementwiseOps.sigmoid);
export const tanh = unary(elementwiseOps.tanh);
export const erf = unary(elementwiseOps.erf);
export const relu = unary(elementwiseOps.relu);
export const gelu = unary(elementwiseOps.gelu);
export const geluTanh = unary(elementwiseOps.geluTanh);
export const silu = unary(elementwiseOps.silu);
export const square = unary(elementwiseOps.square);
