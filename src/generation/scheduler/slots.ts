/** @file Which adapters decode together: at most so many at a time, and none of them for ever while another waits. */

/**
 * Adapter slots of a batch. When all are taken, one that waits has the slot promised that will be free soonest: its holder
 * takes no new sequences until the one that waits has had its turn. So a cold adapter waits for the end of the
 * sequences that run, however many more wait for the hot ones.
 */
export class AdapterSlots<A> {
  readonly #most: number;
  /** Sequences by adapter. */
  readonly #taken = new Map<A, number>();
  /** Holders that take no new sequences, and for whom. */
  readonly #closing = new Map<A, A>();
  /** Adapters for which a free slot is kept. */
  readonly #kept = new Set<A>();

  constructor(most: number) {
    this.#most = most;
  }

  /** Adapters that have sequences. */
  get size(): number {
    return this.#taken.size;
  }

  enter(adapter: A): void {
    this.#taken.set(adapter, (this.#taken.get(adapter) ?? 0) + 1);
    this.#takeBack((next) => next === adapter);
  }

  leave(adapter: A): void {
    const left = this.#taken.get(adapter)! - 1;
    if (left > 0) {
      this.#taken.set(adapter, left);
      return;
    }
    this.#taken.delete(adapter);
    if (!this.#closing.has(adapter)) return;
    this.#kept.add(this.#closing.get(adapter) as A);
    this.#closing.delete(adapter);
  }

  /**
   * Whether a sequence of this adapter may join. If not, and it has no slot, one is promised to it.
   * @param remaining how long the present sequences of an adapter may still take
   */
  admits(adapter: A, remaining: (holder: A) => number): boolean {
    if (this.#taken.has(adapter)) return !this.#closing.has(adapter);
    const kept = this.#kept.size - (this.#kept.has(adapter) ? 1 : 0);
    if (this.#taken.size + kept < this.#most) return true;
    if (![...this.#closing.values()].includes(adapter)) {
      const open = [...this.#taken.keys()].filter((holder) => !this.#closing.has(holder));
      const [soonest] = open.map((holder) => ({ holder, left: remaining(holder) })).sort((a, b) => a.left - b.left);
      if (soonest) this.#closing.set(soonest.holder, adapter);
    }
    return false;
  }

  /** Promises to adapters for which nothing waits any more are taken back. */
  keep(waits: (adapter: A) => boolean): void {
    if (this.#closing.size + this.#kept.size > 0) this.#takeBack((next) => !waits(next));
  }

  #takeBack(unwanted: (next: A) => boolean): void {
    for (const [holder, next] of this.#closing) if (unwanted(next)) this.#closing.delete(holder);
    for (const next of this.#kept) if (unwanted(next)) this.#kept.delete(next);
  }
}
