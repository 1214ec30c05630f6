/** @file Where sessions can run: one row per device, and everything that differs between them. */
import koffi from "koffi";
import { reasonOf } from "../base/index.ts";
import { type Api, check, out, outPointer } from "./api.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";

interface DeviceRow {
  /** Name of the execution provider in the runtime's list. */
  readonly provider: string;
  /** Names that runtimes have given to the device's memory, newest first. */
  readonly memoryNames: readonly string[];
  /** Whether its provider is a part of the library, which can then copy to and from it. */
  readonly copies: boolean;
  /** Makes a session use the device. */
  append(api: Api, options: Pointer): void;
  /** What has to be there, said when it is not. */
  readonly remedy: string;
}

const OrtDeviceAllocator = 0;
const OrtMemTypeDefault = 0;

const DEVICES = Object.freeze({
  cpu: {
    provider: "CPUExecutionProvider",
    memoryNames: ["Cpu"],
    copies: false,
    append: () => {},
    remedy: "",
  },
  webgpu: {
    provider: "WebGpuExecutionProvider",
    memoryNames: ["WebGPU_Buf", "WebGPU_Buffer"],
    copies: true,
    append: (api, options) =>
      check(
        api,
        api.SessionOptionsAppendExecutionProvider(options, "WebGPU", [], [], 0),
        "use WebGPU",
        "DEVICE_UNAVAILABLE",
      ),
    remedy:
      "it needs a GPU with a driver for Vulkan (Linux: the loader libvulkan.so.1 and the vendor's driver), Direct3D 12 (Windows) or Metal (macOS)",
  },
  cuda: {
    provider: "CUDAExecutionProvider",
    memoryNames: ["Cuda"],
    copies: false,
    append: (api, options) => {
      check(api, api.CreateCUDAProviderOptions(out), "set up CUDA", "DEVICE_UNAVAILABLE");
      const cuda = outPointer();
      try {
        const status = api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda);
        check(api, status, "use CUDA", "DEVICE_UNAVAILABLE");
      } finally {
        api.ReleaseCUDAProviderOptions(cuda);
      }
    },
    remedy:
      "it needs an NVIDIA GPU with its driver, CUDA and cuDNN, and beside the runtime's library the libraries of its CUDA provider, " +
      "which the installer of onnxruntime-node fetches on Linux x64 (`npm rebuild onnxruntime-node --ignore-scripts=false`)",
  },
} satisfies Record<string, DeviceRow>);

export type DeviceName = keyof typeof DEVICES;
export const DEVICE_NAMES = Object.freeze(Object.keys(DEVICES)) as readonly DeviceName[];

/** A device in use: a tiny session that proves it works and through which its memory is got. */
interface OpenDevice {
  readonly memoryInfo: Pointer;
  readonly allocator: Pointer;
  /** Another one, that copies; made when it is first needed. */
  copier: Pointer | undefined;
}

const opened = new Map<DeviceName, OpenDevice | RuntimeError>();

/** y = Identity(x), float32 [N]: the ModelProto of the session that opens a device. */
const IDENTITY =
  "CAo6SgoeCgF4EgF5GgpJZGVudGl0eV8wIghJZGVudGl0eToAEgR0ZXN0WhAKAXgSCwoJCAESBQoDEgFOYhAKAXkSCwoJCAESBQoDEgFOQgQKABAVQhEKDWNvbS5taWNyb3NvZnQQAQ==";

/**
 * Whether everything on a device is to be done on one thread: its sessions share a queue of commands which is not made
 * for several.
 */
export function isOneThreaded(device: DeviceName): boolean {
  return device !== "cpu";
}

/** y = Identity(x), uint8 [N]. */
const COPY =
  "CAoSBm1pbG9yYTpKCh4KAXgSAXkaCmlkZW50aXR5IzAiCElkZW50aXR5OgASBGNvcHlaEAoBeBILCgkIAhIFCgMSAU5iEAoBeRILCgkIAhIFCgMSAU5CBAoAEBVCEQoNY29tLm1pY3Jvc29mdBAB";

/**
 * Copies between values uint8 [N] on the device and the CPU, or on the device alone, by running a model: the runtime's own
 * function for that knows only the devices whose provider is a part of the library.
 */
export function copyThrough(device: DeviceName, from: Pointer, to: Pointer): void {
  const { api } = environment();
  const opened = openDevice(device);
  opened.copier ??= createSession(rowOf(device), COPY);
  check(api, api.CreateIoBinding(opened.copier, out), "create a binding");
  const binding = outPointer();
  try {
    check(api, api.BindInput(binding, "x", from), "bind what is to be copied");
    check(api, api.BindOutput(binding, "y", to), "bind what is to be written");
    check(api, api.SynchronizeBoundInputs(binding), "copy to the device");
    check(api, api.RunWithBinding(opened.copier, null, binding), `copy to or from ${device}`);
  } finally {
    api.ReleaseIoBinding(binding);
  }
}

/** Whether the runtime's own function copies to and from a device. */
export function copiesItself(device: DeviceName): boolean {
  return rowOf(device).copies;
}

/** Lets a session run on a device. @throws RuntimeError DEVICE_UNAVAILABLE */
export function appendDevice(options: Pointer, device: DeviceName): void {
  if (device === "cpu") return;
  openDevice(device);
  rowOf(device).append(environment().api, options);
}

/** Where tensors on a device come from; belongs to the device. @throws RuntimeError DEVICE_UNAVAILABLE */
export function deviceAllocator(device: DeviceName): Pointer {
  return device === "cpu" ? environment().allocator : openDevice(device).allocator;
}

/** Describes the memory of a device to the runtime. @throws RuntimeError DEVICE_UNAVAILABLE */
export function deviceMemoryInfo(device: DeviceName): Pointer {
  return device === "cpu" ? environment().cpu : openDevice(device).memoryInfo;
}

/**
 * Optimizers that are not to rewrite graphs for a device, with semicolons between them: the fusion of attention with the
 * norms of queries and keys makes a node for WebGPU that the runtime then refuses.
 */
export function unwantedOptimizers(device: DeviceName): string {
  return device === "webgpu" ? "GroupQueryAttentionPreNormFusion" : "";
}

/** Makes sure that sessions can run on a device. @throws RuntimeError DEVICE_UNAVAILABLE, which says what is missing */
export function requireDevice(device: DeviceName): void {
  if (device !== "cpu") openDevice(device);
}

/** The devices on which a session can run here and now. Looking opens them, which may take a second at first. */
export function availableDevices(): DeviceName[] {
  return (Object.keys(DEVICES) as DeviceName[]).filter((device) => {
    try {
      if (device !== "cpu") openDevice(device);
      return true;
    } catch (error) {
      if (error instanceof RuntimeError && error.code === "DEVICE_UNAVAILABLE") return false;
      throw error;
    }
  });
}

function rowOf(device: DeviceName): DeviceRow {
  const row: DeviceRow | undefined = Object.hasOwn(DEVICES, device) ? DEVICES[device] : undefined;
  if (row !== undefined) return row;
  throw new RuntimeError("DEVICE_UNAVAILABLE", `${device} is no device; use one of ${Object.keys(DEVICES).join(", ")}`);
}

/** Opens a device once; a failure is remembered too, because asking a missing driver again is slow. */
function openDevice(device: DeviceName): OpenDevice {
  let result = opened.get(device);
  if (result === undefined) {
    result = tryOpen(device);
    opened.set(device, result);
  }
  if (result instanceof RuntimeError) throw result;
  return result;
}

function tryOpen(device: DeviceName): OpenDevice | RuntimeError {
  const row = rowOf(device);
  try {
    return open(row);
  } catch (error) {
    const reason = reasonOf(error);
    return new RuntimeError("DEVICE_UNAVAILABLE", `${device} cannot be used here: ${row.remedy}. (${reason})`, {
      cause: error,
    });
  }
}

function createSession(row: DeviceRow, base64: string): Pointer {
  const { api, env } = environment();
  check(api, api.CreateSessionOptions(out), "create session options");
  const options = outPointer();
  try {
    check(api, api.DisablePerSessionThreads(options), "share its threads");
    row.append(api, options);
    const model = Buffer.from(base64, "base64");
    check(api, api.CreateSessionFromArray(env, model, model.byteLength, options, out), "open the device");
    return outPointer();
  } finally {
    api.ReleaseSessionOptions(options);
  }
}

function open(row: DeviceRow): OpenDevice {
  const { api } = environment();
  if (!providers().includes(row.provider)) {
    throw new RuntimeError("DEVICE_UNAVAILABLE", `this build of ONNX Runtime has no ${row.provider}`);
  }
  const session = createSession(row, IDENTITY);
  let failure: unknown;
  for (const name of row.memoryNames) {
    try {
      check(api, api.CreateMemoryInfo(name, OrtDeviceAllocator, 0, OrtMemTypeDefault, out), "describe device memory");
      const memoryInfo = outPointer();
      check(api, api.CreateAllocator(session, memoryInfo, out), "give the allocator of the device");
      return { memoryInfo, allocator: outPointer(), copier: undefined };
    } catch (error) {
      failure = error;
    }
  }
  api.ReleaseSession(session);
  throw failure;
}

/** The execution providers that the library was built with; their drivers need not be there. */
function providers(): string[] {
  const { api } = environment();
  const count = new Int32Array(2);
  check(api, api.GetAvailableProviders(out, count), "list its providers");
  const list = outPointer();
  const length = count[0]!;
  const names = koffi.decode(list, koffi.array("str", length)) as string[];
  check(api, api.ReleaseAvailableProviders(list, length), "free a list");
  return names;
}
