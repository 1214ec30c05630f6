/** @file A piece of memory that tensors, views and sessions share; it goes when its last user has gone. */

import { setFlagsFromString } from "node:v8";
import { runInThisContext } from "node:vm";
import koffi from "koffi";
import type { DeviceName } from "./devices.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import type { Pointer } from "./library.ts";

/** Blocks up to here come from calloc through the FFI, which takes no more. */
const LARGEST_BLOCK = 2 ** 31 - 1;
const ALIGNMENT = 64;

/**
 * Memory with a count of users. Of three kinds: JavaScript memory (`shared` holds it), memory outside of JavaScript
 * (`free` gives it back), and memory of an OrtValue (`value`), which may be on a device and then has no address for the CPU.
 */
export class Memory {
  readonly byteLength: number;
  readonly device: DeviceName;
  /** Of no meaning for empty memory. On a device it is what the runtime knows the memory by, and not to be read or added to. */
  readonly address: Pointer;
  /** The OrtValue that owns the memory, if one does. */
  readonly value: Pointer | undefined;
  readonly #shared: ArrayBufferView | undefined;
  readonly #free: (() => void) | undefined;
  #buffer: ArrayBuffer | undefined;
  #users = 1;

  constructor(memory: {
    byteLength: number;
    device: DeviceName;
    address: Pointer;
    value?: Pointer;
    shared?: ArrayBufferView;
    free?: () => void;
  }) {
    this.byteLength = memory.byteLength;
    this.device = memory.device;
    this.address = memory.address;
    this.value = memory.value;
    this.#shared = memory.shared;
    this.#free = memory.free;
  }

  /**
   * Zeros outside of JavaScript, aligned to 64 bytes. Where the system hands out fresh pages as zeros, a page costs
   * nothing until it is written: a large cache may be allocated for its capacity.
   *
   * Undefined when it is too large for one block.
   */
  static zeros(byteLength: number): Memory | undefined {
    if (byteLength + ALIGNMENT > LARGEST_BLOCK) return undefined;
    let block: Pointer;
    try {
      block = koffi.alloc("uint8_t", byteLength + ALIGNMENT) as Pointer;
    } catch (cause) {
      throw new RuntimeError("RUNTIME_FAILED", `there is no memory for a tensor of ${byteLength} bytes`, { cause });
    }
    const address = (block / BigInt(ALIGNMENT) + 1n) * BigInt(ALIGNMENT);
    return new Memory({ byteLength, device: "cpu", address, free: () => koffi.free(block) });
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
      this.#free?.();
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

  /** Takes the memory away from the arrays over it, which get length 0, where that can be done and it is not theirs. */
  closeWindow(): void {
    if (this.#buffer !== undefined && detach(this.#buffer)) this.#buffer = undefined;
  }
}

/** Frees memory that could not be taken away from the typed arrays over it, once there are none. */
const lingering = new FinalizationRegistry<() => void>((free) => free());

type Detach = (buffer: ArrayBuffer) => void;

/**
 * ArrayBuffer.prototype.transfer, or before Node.js 22, where the language cannot detach memory it does not own, what
 * V8 gives its own tests for that. Undefined where neither is allowed.
 */
function findDetach(): Detach | undefined {
  const { transfer } = ArrayBuffer.prototype as { transfer?: () => ArrayBuffer };
  if (transfer !== undefined) return (buffer) => void transfer.call(buffer);
  try {
    setFlagsFromString("--allow-natives-syntax");
    const detach = runInThisContext("(buffer) => { %ArrayBufferDetach(buffer); }") as Detach;
    detach(new ArrayBuffer(1)); // functions are compiled at their first call, which the flag must still cover
    return detach;
  } catch {
    return undefined;
  } finally {
    setFlagsFromString("--no-allow-natives-syntax");
  }
}

let detachBuffer: Detach | undefined | null = null;

/** Takes native memory away from the typed arrays over it: they get length 0. False where that cannot be done. */
function detach(buffer: ArrayBuffer): boolean {
  if (detachBuffer === null) detachBuffer = findDetach();
  try {
    detachBuffer?.(buffer);
  } catch {
    return false;
  }
  return buffer.byteLength === 0;
}
