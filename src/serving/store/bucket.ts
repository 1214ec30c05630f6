/** @file A token bucket: so much a minute, so much at once, to the millisecond. */

const MINUTE = 60_000;

/**
 * Holds up to a minute's allowance and fills evenly. It may go below zero: what was taken by an estimate that turned
 * out too small is owed.
 */
export class Bucket {
  #level: number | undefined;
  #at = 0;

  /** Seconds, whole ones, until `amount` can be taken; 0: now. An amount larger than the bucket asks for a full one. */
  wait(amount: number, perMinute: number, now: number): number {
    const missing = Math.min(amount, perMinute) - this.#fill(perMinute, now);
    // A trillionth of a minute's allowance is rounding, not something to wait for.
    return missing <= perMinute * 1e-12 ? 0 : Math.max(1, Math.ceil((missing * (MINUTE / 1000)) / perMinute - 1e-9));
  }

  /** Negative amounts are given back. */
  take(amount: number, perMinute: number, now: number): void {
    this.#level = Math.min(perMinute, this.#fill(perMinute, now) - amount);
  }

  #fill(perMinute: number, now: number): number {
    // A clock that is set back fills nothing; the bucket goes on from the new time.
    const filled = this.#level === undefined ? perMinute : (Math.max(0, now - this.#at) / MINUTE) * perMinute;
    this.#at = now;
    this.#level = Math.min(perMinute, (this.#level ?? 0) + filled);
    return this.#level;
  }
}
