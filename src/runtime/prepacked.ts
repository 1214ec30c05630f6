/** @file A container for prepacked weights, so that sessions over the same weights keep the packed copy once. */
import { check, out, outPointer } from "./api.ts";
import { environment } from "./environment.ts";
import { RuntimeError } from "./errors.ts";
import { unwatchLeak, watchLeak } from "./leaks.ts";
import type { Pointer } from "./library.ts";

/** The native container; sessions that use it keep it until they close. */
export class PrepackedHandle {
  readonly kind = "PrepackedWeights";
  readonly pointer: Pointer;
  released = false;
  #users = 1;

  constructor() {
    const { api } = environment();
    check(api, api.CreatePrepackedWeightsContainer(out), "create a container for prepacked weights");
    this.pointer = outPointer();
  }

  retain(): this {
    this.#users++;
    return this;
  }

  /** One user fewer; the last one frees it. */
  drop(): void {
    if (--this.#users === 0) environment().api.ReleasePrepackedWeightsContainer(this.pointer);
  }

  release(): void {
    if (this.released) return;
    this.released = true;
    this.drop();
  }
}

export let prepackedHandle: (container: PrepackedWeights) => PrepackedHandle;

/**
 * Give one to every session over the same `initializers`: what their kernels rearrange for speed then exists once.
 * Disposing it is safe at any time; the memory goes when the last session that uses it has been closed.
 */
export class PrepackedWeights implements Disposable {
  readonly #handle = new PrepackedHandle();

  static {
    prepackedHandle = (container) => {
      if (container.#handle.released) throw new RuntimeError("TENSOR_FREED", "the PrepackedWeights were disposed");
      return container.#handle;
    };
  }

  constructor() {
    watchLeak(this, this.#handle);
  }

  dispose(): void {
    unwatchLeak(this.#handle);
    this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
