/** @file What a model takes and gives: names, element types and shapes, and the check of tensors against them. */
import koffi from "koffi";
import { check, out, outPointer } from "./api.ts";
import type { DType } from "./dtypes.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";
import { showShape, type Tensor, typeOfInfo } from "./tensor.ts";

/** One input or output of a session. A string is a symbolic dimension; "?" one without a name. */
export interface Port {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly (number | string)[];
}

/** Reads the inputs or the outputs of a loaded model. */
export function readPorts(session: Pointer, side: "Input" | "Output"): readonly Port[] {
  const { api } = environment();
  check(api, api[`SessionGet${side}Count`](session, out), `count the ${side.toLowerCase()}s`);
  const count = Number(out[0]!);
  return Object.freeze(Array.from({ length: count }, (_, index) => readPort(session, side, index)));
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
