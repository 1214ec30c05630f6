/** @file Seeded random numbers whose whole state is a few integers, so that a run can be resumed bit for bit. */

export interface RandomState {
  readonly a: number;
  readonly b: number;
  readonly c: number;
  readonly d: number;
}

/** sfc32 (Chris Doty-Humphrey, PractRand): small, fast, and its state is four 32-bit integers. */
export class Random {
  #a: number;
  #b: number;
  #c: number;
  #d: number;

  /** @param seed an integer, or the state of another generator to go on from */
  constructor(seed: number | RandomState) {
    if (typeof seed === "number") {
      this.#a = seed >>> 0;
      this.#b = Math.floor(seed / 2 ** 32) >>> 0;
      this.#c = 0x9e3779b9;
      this.#d = 1;
      for (let i = 0; i < 15; i++) this.uint32();
    } else {
      this.#a = seed.a;
      this.#b = seed.b;
      this.#c = seed.c;
      this.#d = seed.d;
    }
  }

  get state(): RandomState {
    return { a: this.#a, b: this.#b, c: this.#c, d: this.#d };
  }

  uint32(): number {
    const t = (this.#a + this.#b + this.#d) >>> 0;
    this.#d = (this.#d + 1) >>> 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) >>> 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) >>> 0;
    this.#c = (this.#c + t) >>> 0;
    return t;
  }

  /** Uniform in [0, 1), 53 bits. */
  uniform(): number {
    return ((this.uint32() >>> 5) * 2 ** 26 + (this.uint32() >>> 6)) / 2 ** 53;
  }

  /** Uniform integer in [0, n). */
  integer(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  /** Standard normal (Box–Muller, one of the pair, so that the state stays four integers). */
  normal(): number {
    return Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** A permutation of 0 … n-1 (Fisher–Yates). */
  permutation(n: number): Uint32Array {
    const order = Uint32Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      const kept = order[i]!;
      order[i] = order[j]!;
      order[j] = kept;
    }
    return order;
  }
}

/** A seed for one purpose of a run, e.g. `deriveSeed(seed, "init")`, so that purposes do not share numbers (FNV-1a). */
export function deriveSeed(seed: number, purpose: string): number {
  let hash = 0x811c9dc5;
  for (const byte of Buffer.from(`${seed}/${purpose}`)) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
  return hash;
}
