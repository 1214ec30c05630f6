/** @file Fair shares: virtual token counters of tenants (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). */

/** What reading a token of a prompt, and generating one, count for. */
export const INPUT_COST = 1;
export const OUTPUT_COST = 2;

interface Account {
  counter: number;
  /** Requests that wait or run. */
  active: number;
}

/** Tenants without requests that are remembered because they have had more than others. */
const REMEMBERED = 4096;

/**
 * Counts what tenants have been served, by their weights: counter ← counter + (input · 1 + output · 2) / weight. The
 * tenant with the least is next. One that comes back after a rest is lifted to the least of those that are active, so
 * that resting saves up no claim; one that has had more keeps its counter.
 */
export class Fairness {
  readonly #accounts = new Map<string, Account>();
  /** The counter of the tenant that rested last: where those begin who find nobody active. */
  #floor = 0;

  /** Tenants that are known. */
  get size(): number {
    return this.#accounts.size;
  }

  /** A tenant has one more request. */
  enter(tenant: string): void {
    let account = this.#accounts.get(tenant);
    if (!account) {
      account = { counter: 0, active: 0 };
      this.#accounts.set(tenant, account);
    }
    if (account.active++ > 0) return;
    let least = Number.POSITIVE_INFINITY;
    for (const [other, { counter, active }] of this.#accounts) {
      if (active > 0 && other !== tenant) least = Math.min(least, counter);
    }
    account.counter = Math.max(account.counter, least === Number.POSITIVE_INFINITY ? this.#floor : least);
  }

  /** One of a tenant's requests has ended. */
  leave(tenant: string): void {
    const account = this.#accounts.get(tenant)!;
    if (--account.active > 0) return;
    this.#floor = account.counter;
    if (this.#accounts.size > REMEMBERED) this.#forget();
  }

  /** Counts tokens that were served to a tenant. */
  charge(tenant: string, tokens: { readonly input?: number; readonly output?: number }, weight: number): void {
    const account = this.#accounts.get(tenant);
    const { input = 0, output = 0 } = tokens;
    if (account) account.counter += (input * INPUT_COST + output * OUTPUT_COST) / weight;
  }

  counter(tenant: string): number {
    return this.#accounts.get(tenant)?.counter ?? 0;
  }

  /** Those who have had no more than the active ones would be lifted anyway; of the others the least matter least. */
  #forget(): void {
    const resting = [...this.#accounts].filter(([, { active }]) => active === 0);
    resting.sort(([, a], [, b]) => a.counter - b.counter);
    for (const [tenant] of resting.slice(0, Math.ceil(resting.length / 2))) this.#accounts.delete(tenant);
  }
}
