/** @file Door of the room `runtime`: ONNX Runtime through its C API. Sessions, tensors, bindings, devices. */

export { hasFusedAttention } from "./attention.ts";
export type { Binding } from "./binding.ts";
export { availableDevices, DEVICE_NAMES, type DeviceName, requireDevice } from "./devices.ts";
export type { DType, TensorData } from "./dtypes.ts";
export { configureRuntime, type LogLevel, type RuntimeOptions, runtimeVersion } from "./environment.ts";
export { RuntimeError, type RuntimeErrorCode } from "./errors.ts";
export { EXTERNAL_LOCATION, type SessionOptions } from "./load.ts";
export { FileMapping } from "./mapping.ts";
export { adviseLargePages, allocateLarge } from "./memory-calls.ts";
export {
  OPERATOR_DOMAIN,
  type Operators,
  operators,
  PACKED_FORMS,
  type PackedForm,
  type Packing,
} from "./operators.ts";
export { PrepackedWeights } from "./prepacked.ts";
export { type RunOptions, Session } from "./session.ts";
export type { Port } from "./signature.ts";
export { Tensor } from "./tensor.ts";
