/** @file What a model takes and gives: names, element types and shapes, and the check of tensors against them. */
import koffi from "koffi";
import { check, out, outPointer } from "./api.ts";
import { typeOfInfo } from "./describe.ts";
import type { DType } from "./dtypes.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";
import { showShape, type Tensor } from "./tensor.ts";

/** One input or output of a session. A string is a symbolic dimension; "?" one without a name. */
export interface Port {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly (number | string)[];
}

/** Reads the inputs or the outputs of a loaded model, by name and in the model's order. */
export function readPorts(session: Pointer, side: "Input" | "Output"): ReadonlyMap<string, Port> {
  const { api } = environment();
  check(api, api[`SessionGet${side}Count`](session, out), `count the ${side.toLowerCase()}s`);
  const count = Number(out[0]!);
  const ports = Array.from({ length: count }, (_, index) => readPort(session, side, index));
  return new Map(ports.map((port) => [port.name, port]));
}

function readPort(session: Pointer, side: "Input" | "Output", index: number): Port {
  const { api, allocator } = environment();
  check(api, api[`SessionGet${side}Name`](session, index, allocator, out), "name an input or output");
  const text = outPointer();
  const name = koffi.decode.string(text);
  check(api, api.AllocatorFree(allocator, text), "free a name");
  check(api, api[`SessionGet${side}TypeInfo`](session, index, out), `describe ${name}`);
  const typeInfo = outPointer();
  try {
    check(api, api.CastTypeInfoToTensorInfo(typeInfo, out), `describe ${name}`);
    if (out[0] === 0n) throw new RuntimeError("DTYPE_MISMATCH", `${name} of the model is not a tensor`);
    const info = outPointer();
    const { dtype, shape } = typeOfInfo(info);
    const symbols = new BigUint64Array(shape.length);
    if (shape.length > 0) check(api, api.GetSymbolicDimensions(info, symbols, shape.length), `describe ${name}`);
    const dims = shape.map((dim, axis) => {
      if (dim >= 0) return dim;
      const symbol = symbols[axis] ? koffi.decode.string(symbols[axis]) : "";
      return symbol === "" ? "?" : symbol;
    });
    return Object.freeze({ name, dtype, shape: Object.freeze(dims) });
  } finally {
    api.ReleaseTypeInfo(typeInfo);
  }
}

/** Names in messages: all of a few, the first of many. */
export function showNames(names: Iterable<string>): string {
  const all = [...names];
  if (all.length === 0) return "none";
  return all.length <= 12 ? all.join(", ") : `${all.slice(0, 12).join(", ")} and ${all.length - 12} more`;
}

/** @throws RuntimeError UNKNOWN_NAME, listing the names there are */
export function findPort(ports: ReadonlyMap<string, Port>, name: string, what: "input" | "output"): Port {
  const port = ports.get(name);
  if (port !== undefined) return port;
  throw new RuntimeError("UNKNOWN_NAME", `the model has no ${what} ${name}; it has ${showNames(ports.keys())}`);
}

/** @throws RuntimeError DTYPE_MISMATCH, SHAPE_MISMATCH when a tensor does not fit a port; symbols fit any size */
export function requireFit(port: Port, tensor: Tensor): void {
  if (tensor.dtype !== port.dtype) {
    throw new RuntimeError(
      "DTYPE_MISMATCH",
      `${port.name} is ${port.dtype} in the model, the tensor is ${tensor.dtype}`,
    );
  }
  const fits =
    tensor.shape.length === port.shape.length &&
    port.shape.every((dim, axis) => typeof dim === "string" || dim === tensor.shape[axis]);
  if (fits) return;
  throw new RuntimeError(
    "SHAPE_MISMATCH",
    `${port.name} has shape ${showShape(port.shape)} in the model, the tensor has ${showShape(tensor.shape)}`,
  );
}

const SYMBOL = /^[A-Za-z_]\w*$/;

/**
 * Checks that a symbol stands for one size in all inputs, and that sums of products of symbols ("B*T", "P+T") hold.
 *
 * Kernels trust these equalities, so a batch bound with two lengths would read past an end instead of failing.
 *
 * @throws RuntimeError SHAPE_MISMATCH naming both inputs
 */
export function requireConsistent(ports: Iterable<Port>, tensorOf: (name: string) => Tensor): void {
  const known = new Map<string, { size: number; by: string }>();
  const expressions: { expression: string; size: number; port: Port }[] = [];
  for (const port of ports) {
    port.shape.forEach((dim, axis) => {
      if (typeof dim === "number" || dim === "?") return;
      const size = tensorOf(port.name).shape[axis]!;
      const other = known.get(dim);
      if (other !== undefined && other.size !== size) {
        throw new RuntimeError(
          "SHAPE_MISMATCH",
          `${dim} is ${other.size} in ${other.by} but ${size} in ${port.name} ${showShape(port.shape)}`,
        );
      }
      known.set(dim, { size, by: port.name });
      if (!SYMBOL.test(dim)) expressions.push({ expression: dim, size, port });
    });
  }
  for (const { expression, size, port } of expressions) {
    const expected = evaluate(expression, (symbol) => known.get(symbol)?.size);
    if (expected !== undefined && expected !== size) {
      throw new RuntimeError(
        "SHAPE_MISMATCH",
        `${expression} is ${expected} by the other inputs but ${size} in ${port.name} ${showShape(port.shape)}`,
      );
    }
  }
}

/** Value of a sum of products; undefined when it is none or a symbol is unknown. */
function evaluate(expression: string, sizeOf: (symbol: string) => number | undefined): number | undefined {
  let sum = 0;
  for (const term of expression.split("+")) {
    let product = 1;
    for (const factor of term.split("*").map((part) => part.trim())) {
      const size = /^\d+$/.test(factor) ? Number(factor) : SYMBOL.test(factor) ? sizeOf(factor) : undefined;
      if (size === undefined) return undefined;
      product *= size;
    }
    sum += product;
  }
  return sum;
}
