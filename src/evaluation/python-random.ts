/** @file Python's `random.Random(seed).sample`, number for number: the harness draws its shots with it. */

const N = 624;
const M = 397;

/** MT19937 (Matsumoto and Nishimura 1998), seeded and read as CPython does. */
export class PythonRandom {
  readonly #state = new Uint32Array(N);
  #index = N;

  /** @param seed a whole number of at least 0 that fits 32 bits */
  constructor(seed: number) {
    const state = this.#state;
    state[0] = 19650218;
    for (let i = 1; i < N; i++) state[i] = Math.imul(1812433253, state[i - 1]! ^ (state[i - 1]! >>> 30)) + i;
    let i = 1;
    // A key of one word, so that its index, which is added, is always 0.
    for (let k = N; k > 0; k--) {
      state[i] = (state[i]! ^ Math.imul(state[i - 1]! ^ (state[i - 1]! >>> 30), 1664525)) + (seed >>> 0);
      i = this.#wrap(i + 1);
    }
    for (let k = N - 1; k > 0; k--) {
      state[i] = (state[i]! ^ Math.imul(state[i - 1]! ^ (state[i - 1]! >>> 30), 1566083941)) - i;
      i = this.#wrap(i + 1);
    }
    state[0] = 0x80000000;
  }

  #wrap(i: number): number {
    if (i < N) return i;
    this.#state[0] = this.#state[N - 1]!;
    return 1;
  }

  uint32(): number {
    const state = this.#state;
    if (this.#index >= N) {
      for (let k = 0; k < N; k++) {
        const y = (state[k]! & 0x80000000) | (state[(k + 1) % N]! & 0x7fffffff);
        state[k] = state[(k + M) % N]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.#index = 0;
    }
    let y = state[this.#index++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** Uniform in 0 … n - 1. */
  below(n: number): number {
    const bits = 32 - Math.clz32(n);
    let r = this.uint32() >>> (32 - bits);
    while (r >= n) r = this.uint32() >>> (32 - bits);
    return r;
  }

  /** `count` different places of `items`, in the order drawn. */
  sample<T>(items: readonly T[], count: number): T[] {
    const n = items.length;
    const small = 21 + (count > 5 ? 4 ** Math.ceil(Math.log(count * 3) / Math.log(4)) : 0);
    if (n <= small) {
      const pool = [...items];
      return Array.from({ length: count }, (_, i) => {
        const j = this.below(n - i);
        const drawn = pool[j]!;
        pool[j] = pool[n - i - 1]!;
        return drawn;
      });
    }
    const taken = new Set<number>();
    return Array.from({ length: count }, () => {
      let j = this.below(n);
      while (taken.has(j)) j = this.below(n);
      taken.add(j);
      return items[j]!;
    });
  }
}
