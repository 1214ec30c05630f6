/** @file The element types a tensor may have: ONNX number, bytes, and the typed array that shows them. */

/**
 * Element types. `float16` and `bfloat16` are shown as their bits in a Uint16Array, `bool` as a Uint8Array of 0 and 1,
 * `uint4` as a Uint8Array of pairs, the earlier element in the low bits.
 */
export type DType =
  | "float32"
  | "float64"
  | "float16"
  | "bfloat16"
  | "int64"
  | "int32"
  | "int16"
  | "int8"
  | "uint16"
  | "uint8"
  | "uint4"
  | "bool";

export type TensorData =
  | Float32Array
  | Float64Array
  | BigInt64Array
  | Int32Array
  | Int16Array
  | Int8Array
  | Uint16Array
  | Uint8Array;

interface ArrayConstructor {
  readonly BYTES_PER_ELEMENT: number;
  new (length: number): TensorData;
  new (buffer: ArrayBufferLike, byteOffset: number, length: number): TensorData;
}

export interface DTypeInfo {
  /** ONNXTensorElementDataType of the C API, the same numbers as TensorProto.DataType. */
  readonly onnx: number;
  /** One half where two elements share a byte. */
  readonly bytes: number;
  readonly array: ArrayConstructor;
}

export const DTYPES: Readonly<Record<DType, DTypeInfo>> = Object.freeze({
  float32: { onnx: 1, bytes: 4, array: Float32Array },
  uint8: { onnx: 2, bytes: 1, array: Uint8Array },
  int8: { onnx: 3, bytes: 1, array: Int8Array },
  uint16: { onnx: 4, bytes: 2, array: Uint16Array },
  int16: { onnx: 5, bytes: 2, array: Int16Array },
  int32: { onnx: 6, bytes: 4, array: Int32Array },
  int64: { onnx: 7, bytes: 8, array: BigInt64Array },
  bool: { onnx: 9, bytes: 1, array: Uint8Array },
  float16: { onnx: 10, bytes: 2, array: Uint16Array },
  float64: { onnx: 11, bytes: 8, array: Float64Array },
  bfloat16: { onnx: 16, bytes: 2, array: Uint16Array },
  uint4: { onnx: 21, bytes: 0.5, array: Uint8Array },
});

const BY_ONNX = new Map((Object.keys(DTYPES) as DType[]).map((dtype) => [DTYPES[dtype].onnx, dtype]));

/** Bytes of so many elements. */
export function bytesOf(dtype: DType, elements: number): number {
  return Math.ceil(elements * DTYPES[dtype].bytes);
}

/** The element type of an ONNX number; undefined for what this project has no use for (strings, complex, float8, int4). */
export function dtypeOfOnnx(onnx: number): DType | undefined {
  return BY_ONNX.get(onnx);
}
