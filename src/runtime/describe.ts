/** @file Reads element types and shapes out of the runtime's objects. */
import { check, out, outPointer } from "./api.ts";
import { type DType, dtypeOfOnnx } from "./dtypes.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";

/** Element type and shape of an OrtValue. */
export function describe(value: Pointer): { dtype: DType; shape: number[] } {
  const { api } = environment();
  check(api, api.GetTensorTypeAndShape(value, out), "describe a tensor");
  const info = outPointer();
  try {
    return typeOfInfo(info);
  } finally {
    api.ReleaseTensorTypeAndShapeInfo(info);
  }
}

/** Element type and shape of an OrtTensorTypeAndShapeInfo, -1 for a dimension that is not fixed. */
export function typeOfInfo(info: Pointer): { dtype: DType; shape: number[] } {
  const { api } = environment();
  check(api, api.GetTensorElementType(info, out), "give the type of a tensor");
  const onnx = Number(out[0]! & 0xffff_ffffn); // an enum: 4 bytes, little end first
  const dtype = dtypeOfOnnx(onnx);
  if (dtype === undefined)
    throw new RuntimeError("DTYPE_MISMATCH", `tensors of ONNX element type ${onnx} are not supported`);
  check(api, api.GetDimensionsCount(info, out), "give the rank of a tensor");
  const rank = Number(out[0]!);
  const shape = new BigInt64Array(rank);
  if (rank > 0) check(api, api.GetDimensions(info, shape, rank), "give the shape of a tensor");
  return { dtype, shape: Array.from(shape, Number) };
}
