/** @file How many requests run under each name, and waiting for them to end. */

export class InFlight {
  readonly #counts = new Map<string, number>();
  readonly #waiting = new Map<string, Set<() => void>>();

  readonly #lastUsed = new Map<string, Date>();

  /** @returns to be called once, at the end */
  enter(name: string): () => void {
    this.#lastUsed.set(name, new Date());
    this.#counts.set(name, this.count(name) + 1);
    let left = false;
    return () => {
      if (left) return;
      left = true;
      this.#lastUsed.set(name, new Date());
      const rest = this.count(name) - 1;
      if (rest > 0) this.#counts.set(name, rest);
      else {
        this.#counts.delete(name);
        for (const tell of this.#waiting.get(name) ?? []) tell();
      }
    };
  }

  count(name: string): number {
    return this.#counts.get(name) ?? 0;
  }

  /** Since the start of this process. */
  lastUsed(name: string): Date | undefined {
    return this.#lastUsed.get(name);
  }

  /** Waits until none runs, or the time is up. @returns how many then run */
  async ended(name: string, timeoutMs: number): Promise<number> {
    if (this.count(name) === 0) return 0;
    const waiting = this.#waiting.get(name) ?? new Set();
    this.#waiting.set(name, waiting);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(done, timeoutMs);
      waiting.add(done);
      function done(): void {
        clearTimeout(timer);
        waiting.delete(done);
        resolve();
      }
    });
    if (waiting.size === 0) this.#waiting.delete(name);
    return this.count(name);
  }
}
