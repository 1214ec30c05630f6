/** @file The functions of ONNX Runtime's C API that this project calls, with their places in the struct OrtApi. */
import koffi, { type TypeObject } from "koffi";
import { RuntimeError, type RuntimeErrorCode } from "./errors.ts";
import type { Library, Pointer } from "./library.ts";

/** Pointers as numbers, buffers in place of pointers, or plain values. */
type Argument = Pointer | number | string | null | ArrayBufferView | readonly string[];

interface Native<Result> {
  (...args: Argument[]): Result;
  /** The same call on a worker thread of libuv; the callback runs on the event loop. */
  async(...args: [...Argument[], (error: Error | null, result: Result) => void]): void;
}

/** Most functions give an OrtStatus: NULL for success, else an object to read and to release. */
export type StatusCall = Native<Pointer | null>;

const P = "void *";
/** ORTCHAR_T, the character type of paths: wide on Windows. */
const PATH = process.platform === "win32" ? "str16" : "str";
const STRINGS = "const char **";

/**
 * Position in the struct OrtApi and parameter types. The order of that struct never changes (functions are only
 * appended), so positions hold for every runtime that answers the API version asked for.
 * Source: include/onnxruntime/core/session/onnxruntime_c_api.h.
 */
const STATUS_CALLS = {
  CreateSessionFromArray: [8, P, P, "size_t", P, P],
  CreateSessionOptions: [10, P],
  EnableProfiling: [14, P, PATH],
  DisableMemPattern: [17, P],
  SetSessionGraphOptimizationLevel: [23, P, "int"],
  CreateCustomOpDomain: [26, "str", P],
  CustomOpDomain_Add: [27, P, P],
  AddCustomOpDomain: [28, P, P],
  SessionGetInputCount: [30, P, P],
  SessionGetOutputCount: [31, P, P],
  SessionGetInputTypeInfo: [33, P, "size_t", P],
  SessionGetOutputTypeInfo: [34, P, "size_t", P],
  SessionGetInputName: [36, P, "size_t", P, P],
  SessionGetOutputName: [37, P, "size_t", P, P],
  CreateRunOptions: [39, P],
  RunOptionsSetTerminate: [46, P],
  CreateTensorAsOrtValue: [48, P, P, "size_t", "int", P],
  CreateTensorWithDataAsOrtValue: [49, P, P, "size_t", P, "size_t", "int", P],
  GetTensorMutableData: [51, P, P],
  CastTypeInfoToTensorInfo: [55, P, P],
  GetTensorElementType: [60, P, P],
  GetDimensionsCount: [61, P, P],
  GetDimensions: [62, P, P, "size_t"],
  GetSymbolicDimensions: [63, P, P, "size_t"],
  GetTensorTypeAndShape: [65, P, P],
  CreateMemoryInfo: [68, "str", "int", "int", "int", P],
  CreateCpuMemoryInfo: [69, "int", "int", P],
  AllocatorFree: [76, P, P],
  GetAllocatorWithDefaultOptions: [78, P],
  SessionEndProfiling: [110, P, P, P],
  CreateEnvWithGlobalThreadPools: [119, "int", "str", P, P],
  DisablePerSessionThreads: [120, P],
  CreateThreadingOptions: [121, P],
  GetAvailableProviders: [125, P, P],
  ReleaseAvailableProviders: [126, P, "int"],
  AddSessionConfigEntry: [130, P, "str", "str"],
  CreateAllocator: [131, P, P, P],
  RunWithBinding: [133, P, P, P],
  CreateIoBinding: [134, P, P],
  BindInput: [136, P, "str", P],
  BindOutput: [137, P, "str", P],
  BindOutputToDevice: [138, P, "str", P],
  GetBoundOutputValues: [140, P, P, P, P],
  CreateAndRegisterAllocator: [144, P, P, P],
  SetGlobalIntraOpNumThreads: [147, P, "int"],
  SetGlobalInterOpNumThreads: [148, P, "int"],
  SetGlobalSpinControl: [149, P, "int"],
  AddInitializer: [150, P, "str", P],
  CreatePrepackedWeightsContainer: [166, P],
  CreateSessionFromArrayWithPrepackedWeightsContainer: [169, P, P, "size_t", P, P, P],
  SynchronizeBoundInputs: [202, P],
  SessionOptionsAppendExecutionProvider_CUDA_V2: [204, P, P],
  CreateCUDAProviderOptions: [205, P],
  AddExternalInitializers: [210, P, STRINGS, P, "size_t"],
  SessionOptionsAppendExecutionProvider: [216, P, "str", STRINGS, STRINGS, "size_t"],
  CopyTensors: [386, P, P, P, P, "size_t"],
} as const;

const VOID_CALLS = {
  ReleaseStatus: 93,
  ReleaseSession: 95,
  ReleaseValue: 96,
  ReleaseRunOptions: 97,
  ReleaseTypeInfo: 98,
  ReleaseTensorTypeAndShapeInfo: 99,
  ReleaseSessionOptions: 100,
  ReleaseThreadingOptions: 122,
  ReleaseIoBinding: 135,
  ClearBoundInputs: 141,
  ClearBoundOutputs: 142,
  ReleasePrepackedWeightsContainer: 167,
  ReleaseCUDAProviderOptions: 208,
} as const;

type StatusCalls = Record<keyof typeof STATUS_CALLS, StatusCall>;
type VoidCalls = Record<keyof typeof VOID_CALLS, Native<void>>;

export interface Api extends StatusCalls, VoidCalls {
  GetErrorCode: Native<number>;
  GetErrorMessage: Native<string>;
}

/** Binds the table to callable functions, once per process. */
export function bindApi(library: Library): Api {
  const at = (position: number, result: string, parameters: readonly string[]): unknown => {
    const pointer = koffi.decode(library.table, position * 8, "void *") as Pointer;
    const proto: TypeObject = koffi.proto(result, [...parameters]);
    return koffi.decode(pointer, proto);
  };
  const api: Record<string, unknown> = {
    GetErrorCode: at(1, "int", [P]),
    GetErrorMessage: at(2, "str", [P]),
  };
  for (const [name, [position, ...parameters]] of Object.entries(STATUS_CALLS)) api[name] = at(position, P, parameters);
  for (const [name, position] of Object.entries(VOID_CALLS)) api[name] = at(position, "void", [P]);
  return api as unknown as Api;
}

/** Where in the runtime's C++ sources an error arose: of no use to whom the message is for. */
const SOURCE_PLACE = /\S+\.(?:cc|h):\d+ [^\n]*?(?:\[ONNXRuntimeError\] : \d+ : \w+ : | was false\. )/g;

/** Reads and releases a status. */
export function messageOf(api: Api, status: Pointer): string {
  const message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  return message.replaceAll(SOURCE_PLACE, "").trim();
}

/** Turns a failed status into a thrown error and releases it. @param doing ends the sentence "ONNX Runtime could not …" */
export function check(
  api: Api,
  status: Pointer | null,
  doing: string,
  code: RuntimeErrorCode = "RUNTIME_FAILED",
): void {
  if (status === null) return;
  throw new RuntimeError(code, `ONNX Runtime could not ${doing}: ${messageOf(api, status)}`);
}

/** Where functions put the pointer or size they give. Reused: read it before the next call. */
export const out = new BigUint64Array(1);
void out.buffer; // moves the eight bytes out of V8's moving heap

/** The pointer a function has just put into {@link out}. */
export function outPointer(): Pointer {
  return out[0]!;
}
