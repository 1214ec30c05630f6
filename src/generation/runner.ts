/** @file Runs bound sessions without holding up the event loop: on a worker thread, or here when that is quicker. */
import { setImmediate } from "node:timers/promises";
import type { Binding, Session } from "../runtime/index.ts";

/**
 * Runs shorter than this are made on this thread: handing a step to a worker thread costs 0.03 ms of 0.25 on a tiny
 * model, and 10 to 15 % of the 5 to 10 ms of a 135M model when other processes compete for the cores.
 */
const SHORT_MS = 5;
/** Longest time of such runs in a row before timers and sockets get their turn. */
const TURN_MS = 4;

export class Runner {
  /** Sizes at which the last run of a session was short. */
  readonly #short = new WeakMap<Session, Set<number>>();
  #turnStarted = performance.now();

  /**
   * Runs a binding.
   * @param size what the time of a run depends on (rows, tokens)
   * @throws RuntimeError RUN_CANCELLED when the signal aborts a run on a worker thread; between short runs the caller
   *   looks at it
   */
  async run(session: Session, binding: Binding, size: number, signal?: AbortSignal): Promise<void> {
    let short = this.#short.get(session);
    if (!short) {
      short = new Set();
      this.#short.set(session, short);
    }
    const started = performance.now();
    if (short.has(size)) {
      session.run(binding);
      const ended = performance.now();
      if (ended - started > SHORT_MS) short.delete(size);
      if (ended - this.#turnStarted > TURN_MS) {
        await setImmediate();
        this.#turnStarted = performance.now();
      }
      return;
    }
    await session.runAsync(binding, signal ? { signal } : undefined);
    this.#turnStarted = performance.now();
    if (this.#turnStarted - started < SHORT_MS) short.add(size);
  }
}
