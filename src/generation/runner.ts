/** @file Runs bound sessions without holding up the event loop: on a worker thread, or here when that is quicker. */
import { setImmediate } from "node:timers/promises";
import type { Binding, Session } from "../runtime/index.ts";

/** Runs shorter than this are made on this thread: handing them to a worker costs a good part of such a time. */
const SHORT_MS = 2;
/** Longest time of such runs in a row before timers and sockets get their turn. */
const TURN_MS = 4;

export class Runner {
  /** Milliseconds that the last run took, by session and size. */
  readonly #took = new WeakMap<Session, Map<number, number>>();
  #turnStarted = performance.now();

  /**
   * Runs a binding.
   * @param size what the time of a run depends on (rows, tokens)
   * @throws RuntimeError RUN_CANCELLED when the signal aborts a run on a worker thread; between short runs the caller
   *   looks at it
   */
  async run(session: Session, binding: Binding, size: number, signal?: AbortSignal): Promise<void> {
    let took = this.#took.get(session);
    if (!took) {
      took = new Map();
      this.#took.set(session, took);
    }
    const started = performance.now();
    if ((took.get(size) ?? Number.POSITIVE_INFINITY) < SHORT_MS) {
      session.run(binding);
      const ended = performance.now();
      took.set(size, ended - started);
      if (ended - this.#turnStarted > TURN_MS) {
        await setImmediate();
        this.#turnStarted = performance.now();
      }
      return;
    }
    await session.runAsync(binding, signal ? { signal } : undefined);
    this.#turnStarted = performance.now();
    took.set(size, this.#turnStarted - started);
  }
}
