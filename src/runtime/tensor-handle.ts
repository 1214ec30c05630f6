/** @file What is behind a tensor: the runtime's value and its memory, until it is released. */
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";
import type { Memory } from "./memory.ts";

/** Counts released tensors, so that a binding looks through its tensors only after one has been released. */
export const epoch = { freed: 0 };

/** What sessions and bindings need of a tensor; it outlives the Tensor object until it has been released. */
export class TensorHandle {
  readonly kind = "Tensor";
  readonly value: Pointer;
  readonly memory: Memory;
  /** Asynchronous runs that are reading or writing it. */
  runs = 0;
  released = false;

  constructor(value: Pointer, memory: Memory) {
    this.value = value;
    this.memory = memory;
  }

  release(): void {
    if (this.released) return;
    this.released = true;
    epoch.freed++;
    if (this.value !== this.memory.value) environment().api.ReleaseValue(this.value);
    this.memory.release();
  }
}

/** @throws RuntimeError TENSOR_FREED when the memory behind a handle is gone */
export function requireUsable(handle: TensorHandle, what: string): void {
  if (handle.released) throw new RuntimeError("TENSOR_FREED", `${what} was disposed and cannot be used any more`);
  if (!handle.memory.intact) {
    throw new RuntimeError(
      "TENSOR_FREED",
      `the array behind ${what} was transferred or detached; keep it on this thread`,
    );
  }
}
