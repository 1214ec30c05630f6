/** @file Element types as bytes: ONNX codes, sizes, and turning plain numbers into little-endian storage. */
import { float32ToBfloat16, float32ToFloat16 } from "../base/index.ts";
import type { DType, TensorData } from "../runtime/index.ts";

/** ONNX TensorProto.DataType and bytes per element. */
export const dtypeInfo: Readonly<Record<DType, { code: number; bytes: number; float: boolean }>> = {
  float32: { code: 1, bytes: 4, float: true },
  uint8: { code: 2, bytes: 1, float: false },
  int8: { code: 3, bytes: 1, float: false },
  uint16: { code: 4, bytes: 2, float: false },
  int16: { code: 5, bytes: 2, float: false },
  int32: { code: 6, bytes: 4, float: false },
  int64: { code: 7, bytes: 8, float: false },
  bool: { code: 9, bytes: 1, float: false },
  float16: { code: 10, bytes: 2, float: true },
  float64: { code: 11, bytes: 8, float: true },
  bfloat16: { code: 16, bytes: 2, float: true },
  uint4: { code: 21, bytes: 0.5, float: false },
};

export function isFloat(dtype: DType): boolean {
  return dtypeInfo[dtype].float;
}

/** Storage bytes of a constant given as numbers or as a typed array that already is its storage. */
export function toBytes(dtype: DType, data: TensorData | readonly (number | bigint | boolean)[]): Uint8Array {
  if (ArrayBuffer.isView(data)) return new Uint8Array(data.buffer, data.byteOffset, data.byteLength).slice();
  const numbers = data.map(Number);
  const view = (array: ArrayBufferView): Uint8Array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  switch (dtype) {
    case "float32":
      return view(Float32Array.from(numbers));
    case "float64":
      return view(Float64Array.from(numbers));
    case "int64":
      return view(BigInt64Array.from(data.map((value) => BigInt(value))));
    case "int32":
      return view(Int32Array.from(numbers));
    case "int16":
      return view(Int16Array.from(numbers));
    case "uint16":
      return view(Uint16Array.from(numbers));
    case "int8":
      return view(Int8Array.from(numbers));
    case "uint8":
    case "bool":
      return view(Uint8Array.from(numbers));
    case "uint4":
      return Uint8Array.from(
        { length: Math.ceil(numbers.length / 2) },
        (_, i) => (numbers[2 * i]! & 15) | ((numbers[2 * i + 1] ?? 0) << 4),
      );
    case "float16":
      return view(float32ToFloat16(Float32Array.from(numbers)));
    case "bfloat16":
      return view(float32ToBfloat16(Float32Array.from(numbers)));
  }
}
