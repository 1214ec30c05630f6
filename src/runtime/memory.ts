/** @file A piece of memory that tensors, views and sessions share; it goes when its last user has gone. */

import koffi from "koffi";
import type { DeviceName } from "./devices.ts";
import { environment } from "./environment.ts";
import type { Pointer } from "./library.ts";

/**
 * Memory with a count of users. Three kinds: JavaScript memory (`shared` holds it), memory of the runtime on the CPU,
 * and memory of the runtime on a device (no address that the CPU may read).
 */
export class Memory {
  readonly byteLength: number;
  readonly device: DeviceName;
  /** 0n on a device and for empty memory. */
  readonly address: Pointer;
  /** The OrtValue that owns the memory; undefined for JavaScript memory. */
  readonly value: Pointer | undefined;
  readonly #shared: ArrayBufferView | undefined;
  #buffer: ArrayBuffer | undefined;
  #users = 1;

  constructor(memory: {
    byteLength: number;
    device: DeviceName;
    address: Pointer;
    value?: Pointer;
    shared?: ArrayBufferView;
  }) {
    this.byteLength = memory.byteLength;
    this.device = memory.device;
    this.address = memory.address;
    this.value = memory.value;
    this.#shared = memory.shared;
  }

  /** Whether the JavaScript side still has the memory: a transferred ArrayBuffer leaves a dangling address behind. */
  get intact(): boolean {
    return this.#shared === undefined || this.#shared.byteLength === this.byteLength;
  }

  /** True when {@link intact} can change. */
  get isShared(): boolean {
    return this.#shared !== undefined;
  }

  retain(): this {
    this.#users++;
    return this;
  }

  release(): void {
    if (--this.#users > 0) return;
    const { value } = this;
    const free = (): void => {
      if (value !== undefined) environment().api.ReleaseValue(value);
    };
    const buffer = this.#buffer;
    this.#buffer = undefined;
    if (buffer === undefined || detach(buffer)) free();
    else lingering.register(buffer, free);
  }

  /** The memory as an ArrayBuffer and the offset in it at which this memory starts. */
  window(): { buffer: ArrayBufferLike; byteOffset: number } {
    if (this.#shared !== undefined) return { buffer: this.#shared.buffer, byteOffset: this.#shared.byteOffset };
    this.#buffer ??= this.byteLength === 0 ? new ArrayBuffer(0) : koffi.view(this.address, this.byteLength);
    return { buffer: this.#buffer, byteOffset: 0 };
  }
}

/** Frees memory whose ArrayBuffer could not be taken away from its readers, once there are none. */
const lingering = new FinalizationRegistry<() => void>((free) => free());

/**
 * Takes native memory away from the typed arrays over it: they get length 0, where reading freed memory would crash.
 * False where JavaScript cannot do that to memory it does not own (Node.js before 22).
 */
function detach(buffer: ArrayBuffer): boolean {
  const { transfer } = buffer as { transfer?: () => ArrayBuffer };
  if (transfer === undefined) return false;
  try {
    transfer.call(buffer);
    return true;
  } catch {
    return false;
  }
}
