/** @file What waits: per tenant in order of arrival, among tenants the one that has been served least. */
import type { Fairness } from "./fairness.ts";

export interface Waiting {
  readonly tenant: string;
}

/**
 * What a look at a waiting item says.
 * - `take`: it goes now.
 * - `serve`: a part of it goes now, and it stays where it is.
 * - `pass`: not now; others may go before it.
 * - `tenant`: nothing of this tenant now.
 * - `stop`: nothing behind it may go before it.
 */
export type Verdict = "take" | "serve" | "pass" | "tenant" | "stop";

export class FairQueue<T extends Waiting> {
  readonly #fairness: Fairness;
  /** First come first; only tenants that have something waiting. */
  readonly #tenants = new Map<string, { readonly item: T; readonly arrival: number }[]>();
  #arrivals = 0;
  #size = 0;

  constructor(fairness: Fairness) {
    this.#fairness = fairness;
  }

  get size(): number {
    return this.#size;
  }

  sizeOf(tenant: string): number {
    return this.#tenants.get(tenant)?.length ?? 0;
  }

  add(item: T): void {
    const entry = { item, arrival: this.#arrivals++ };
    const own = this.#tenants.get(item.tenant);
    if (own) own.push(entry);
    else this.#tenants.set(item.tenant, [entry]);
    this.#size++;
  }

  /** False if it does not wait here. */
  remove(item: T): boolean {
    const own = this.#tenants.get(item.tenant);
    const at = own?.findIndex((entry) => entry.item === item) ?? -1;
    if (!own || at < 0) return false;
    own.splice(at, 1);
    if (own.length === 0) this.#tenants.delete(item.tenant);
    this.#size--;
    return true;
  }

  *[Symbol.iterator](): IterableIterator<T> {
    for (const own of this.#tenants.values()) for (const { item } of own) yield item;
  }

  /** Takes the first item, in order of fairness, that `look` lets go. */
  take(look: (item: T) => Verdict): T | undefined {
    const order = [...this.#tenants].map(([tenant, own]) => ({
      own,
      counter: this.#fairness.counter(tenant),
      arrival: own[0]!.arrival,
    }));
    order.sort((a, b) => a.counter - b.counter || a.arrival - b.arrival);
    for (const { own } of order) {
      for (const { item } of own) {
        const verdict = look(item);
        if (verdict === "stop") return undefined;
        if (verdict === "tenant") break;
        if (verdict === "pass") continue;
        if (verdict === "take") this.remove(item);
        return item;
      }
    }
    return undefined;
  }
}
