/** @file Where sessions can run: one row per device, and everything that differs between them. */
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";

export type DeviceName = "cpu" | "webgpu" | "cuda";

/** The allocator of a device. */
export function deviceAllocator(device: DeviceName): { allocator: Pointer; onFree?: () => void } {
  if (device === "cpu") return { allocator: environment().allocator };
  throw new RuntimeError("DEVICE_UNAVAILABLE", `${device} is not available`);
}
export function deviceMemoryInfo(device: DeviceName): Pointer {
  if (device === "cpu") return environment().cpu;
  throw new RuntimeError("DEVICE_UNAVAILABLE", `${device} is not available`);
}
export function appendDevice(_options: Pointer, device: DeviceName): void {
  if (device === "cpu") return;
  throw new RuntimeError("DEVICE_UNAVAILABLE", `${device} is not available`);
}
export function availableDevices(): DeviceName[] {
  return ["cpu"];
}
