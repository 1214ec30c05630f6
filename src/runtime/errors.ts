/** @file Errors of the runtime: one class, stable codes, so that callers can tell a wrong shape from a missing GPU. */
import { MiloraError } from "../base/index.ts";

export type RuntimeErrorCode =
  | "DEVICE_UNAVAILABLE"
  | "DTYPE_MISMATCH"
  | "LIBRARY_MISSING"
  | "MISSING_BINDING"
  | "RUN_CANCELLED"
  | "RUN_IN_PROGRESS"
  | "RUNTIME_FAILED"
  | "SESSION_CLOSED"
  | "SHAPE_MISMATCH"
  | "TENSOR_FREED"
  | "UNKNOWN_NAME";

/** What a user can change (the device, the installation) exits with 2, a cancelled run with 130, the rest with 1. */
const EXIT_CODES: Partial<Record<RuntimeErrorCode, number>> = {
  DEVICE_UNAVAILABLE: 2,
  LIBRARY_MISSING: 2,
  RUN_CANCELLED: 130,
};

/** Anything that goes wrong at the border to ONNX Runtime. `code` is one of {@link RuntimeErrorCode}. */
export class RuntimeError extends MiloraError {
  declare readonly code: RuntimeErrorCode;

  constructor(code: RuntimeErrorCode, message: string, options: { cause?: unknown } = {}) {
    super(code, message, { ...options, exitCode: EXIT_CODES[code] ?? 1 });
  }
}
