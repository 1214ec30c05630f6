/** @file Byte-pair encoding of one piece of text: merges by rank, in time that grows with the length, not its square. */

/** Pairs of token ids to the number of the merge that joins them: open addressing in one typed array. */
class PairTable {
  readonly #mask: number;
  readonly #slots: Int32Array;

  constructor(size: number) {
    const capacity = 2 ** Math.ceil(Math.log2(2 * size + 2));
    this.#mask = capacity - 1;
    this.#slots = new Int32Array(3 * capacity).fill(-1);
  }

  #slot(left: number, right: number): number {
    let hash = Math.imul(left, 0x9e3779b1) ^ Math.imul(right, 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
    hash ^= hash >>> 13;
    for (let at = hash & this.#mask; ; at = (at + 1) & this.#mask) {
      const slot = 3 * at;
      const found = this.#slots[slot]!;
      if (found === -1 || (found === left && this.#slots[slot + 1] === right)) return slot;
    }
  }

  /** The number of the merge, or -1. */
  get(left: number, right: number): number {
    return this.#slots[this.#slot(left, right) + 2]!;
  }

  /** A pair given twice keeps its last number, as in the reference. */
  set(left: number, right: number, merge: number): void {
    this.#slots.set([left, right, merge], this.#slot(left, right));
  }
}

/** Positions by rank, equal ranks from left to right: a binary heap of rank × 2³² + position. */
class Queue {
  #keys = new Float64Array(1024);
  #size = 0;

  get empty(): boolean {
    return this.#size === 0;
  }

  push(key: number): void {
    if (this.#size === this.#keys.length) {
      const grown = new Float64Array(2 * this.#size);
      grown.set(this.#keys);
      this.#keys = grown;
    }
    const keys = this.#keys;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent]! <= key) break;
      keys[at] = keys[parent]!;
      at = parent;
    }
    keys[at] = key;
  }

  pop(): number {
    const keys = this.#keys;
    const top = keys[0]!;
    const last = keys[--this.#size]!;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= this.#size) break;
      if (child + 1 < this.#size && keys[child + 1]! < keys[child]!) child++;
      if (keys[child]! >= last) break;
      keys[at] = keys[child]!;
      at = child;
    }
    keys[at] = last;
    return top;
  }
}

const POSITIONS = 2 ** 32;
/** Up to this many symbols a search through all pairs beats a queue. */
const SHORT = 24;

/** A merge: the tokens that join, what they become, and when. */
export interface Merge {
  readonly left: number;
  readonly right: number;
  readonly result: number;
  /** Lower ones come first. */
  readonly rank: number;
}

/** Joins neighbouring tokens by a list of merges until none applies: the lowest rank first, then the leftmost. */
export class Merger {
  readonly #table: PairTable;
  readonly #rank: Int32Array;
  readonly #result: Int32Array;

  constructor(merges: readonly Merge[]) {
    this.#table = new PairTable(merges.length);
    this.#rank = Int32Array.from(merges, (merge) => merge.rank);
    this.#result = Int32Array.from(merges, (merge) => merge.result);
    for (const [index, { left, right }] of merges.entries()) this.#table.set(left, right, index);
  }

  /** @param symbols ids to start from; used up */
  merge(symbols: number[]): number[] {
    return symbols.length <= SHORT ? this.#mergeShort(symbols) : this.#mergeLong(symbols);
  }

  #mergeShort(symbols: number[]): number[] {
    const merges = new Array<number>(Math.max(0, symbols.length - 1));
    for (let at = 0; at < merges.length; at++) merges[at] = this.#table.get(symbols[at]!, symbols[at + 1]!);
    for (;;) {
      let best = -1;
      let rank = 0x7fffffff;
      for (let at = 0; at < merges.length; at++) {
        const merge = merges[at]!;
        if (merge >= 0 && this.#rank[merge]! < rank) {
          rank = this.#rank[merge]!;
          best = at;
        }
      }
      if (best < 0) return symbols;
      symbols[best] = this.#result[merges[best]!]!;
      symbols.splice(best + 1, 1);
      merges.splice(best, 1);
      if (best > 0) merges[best - 1] = this.#table.get(symbols[best - 1]!, symbols[best]!);
      if (best < merges.length) merges[best] = this.#table.get(symbols[best]!, symbols[best + 1]!);
    }
  }

  #mergeLong(given: number[]): number[] {
    const count = given.length;
    const symbols = Int32Array.from(given);
    const next = Int32Array.from(given, (_, at) => at + 1);
    const previous = Int32Array.from(given, (_, at) => at - 1);
    const queue = new Queue();
    const consider = (at: number): void => {
      const merge = this.#table.get(symbols[at]!, symbols[next[at]!]!);
      if (merge >= 0) queue.push(this.#rank[merge]! * POSITIONS + at);
    };
    for (let at = 0; at + 1 < count; at++) consider(at);
    while (!queue.empty) {
      const key = queue.pop();
      const at = key % POSITIONS;
      const right = next[at]!;
      if (symbols[at] === -1 || right >= count) continue;
      const merge = this.#table.get(symbols[at]!, symbols[right]!);
      // The pair that was queued here may have been joined with others since.
      if (merge < 0 || this.#rank[merge] !== Math.floor(key / POSITIONS)) continue;
      symbols[at] = this.#result[merge]!;
      symbols[right] = -1;
      const after = next[right]!;
      next[at] = after;
      if (after < count) {
        previous[after] = at;
        consider(at);
      }
      if (previous[at]! >= 0) consider(previous[at]!);
    }
    const ids: number[] = [];
    for (let at = 0; at < count; at = next[at]!) ids.push(symbols[at]!);
    return ids;
  }
}
