/** @file The last answers with an error: what went wrong where, and nothing that a client sent. */
import type { ServerErrorEntry } from "../studio/types.ts";

/** Errors that are kept. */
export const KEPT_ERRORS = 200;

export class Faults {
  readonly #ring: ServerErrorEntry[] = [];
  #next = 0;

  add(entry: ServerErrorEntry): void {
    this.#ring[this.#next] = entry;
    this.#next = (this.#next + 1) % KEPT_ERRORS;
  }

  /** Newest first. */
  list(): ServerErrorEntry[] {
    return [...this.#ring.slice(this.#next), ...this.#ring.slice(0, this.#next)].reverse();
  }
}
