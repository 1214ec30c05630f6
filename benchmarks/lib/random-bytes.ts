/** @file Cheap endless randomness for files of weights: timing needs full-entropy bytes, not good statistics. */
import { Random } from "../../src/base/index.ts";

const POOL_WORDS = 1 << 20; // 4 MiB, larger than one core's L2 cache

/** Uniform random words out of a pool drawn once from `seed`; each call starts somewhere else in the pool. */
export class RandomPool {
  readonly #words = new Uint32Array(POOL_WORDS);
  readonly #random: Random;

  constructor(seed: number) {
    this.#random = new Random(seed);
    for (let i = 0; i < POOL_WORDS; i++) this.#words[i] = this.#random.uint32();
  }

  fillBytes(target: Uint8Array): void {
    const bytes = new Uint8Array(this.#words.buffer);
    for (let done = 0; done < target.length; ) {
      const start = this.#random.integer(bytes.length);
      const part = bytes.subarray(start, Math.min(bytes.length, start + target.length - done));
      target.set(part, done);
      done += part.length;
    }
  }

  /** Uniform in ±bound. */
  fillFloats(target: Float32Array, bound: number): void {
    const scale = bound / 2 ** 31;
    let at = this.#random.integer(POOL_WORDS);
    for (let i = 0; i < target.length; i++) {
      target[i] = ((this.#words[at] as number) - 2 ** 31) * scale;
      at = (at + 1) % POOL_WORDS;
    }
  }
}
