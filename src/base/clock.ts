/** @file What time it is and how to be called later: by the machine's clock, or by one that a simulation moves. */
import { setImmediate } from "node:timers/promises";

export interface Clock {
  /** Milliseconds that have passed since some time. */
  now(): number;
  /**
   * Calls once, `ms` from now.
   * @param waits whether the process stays for it; default true
   * @returns what calls it off
   */
  after(ms: number, call: () => void, waits?: boolean): () => void;
  /** Lets timers and sockets have their turn. */
  turn(): Promise<void>;
}

export const machineClock: Clock = {
  now: () => performance.now(),
  after(ms, call, waits = true) {
    const timer = setTimeout(call, ms);
    if (!waits) timer.unref();
    return () => clearTimeout(timer);
  },
  turn: () => setImmediate(),
};

/** What a turn takes on a virtual clock, ms: whoever turns until something happens lets time pass. */
const TURN_MS = 0.01;

interface Event {
  readonly at: number;
  readonly order: number;
  call: (() => void) | undefined;
}

/**
 * A clock that jumps from one event to the next as fast as what they do is done. What waits for anything but this clock,
 * a file or a real timer, is out of step. Events of one time happen in the order in which they were asked for.
 */
export class VirtualClock implements Clock {
  /** A binary heap. */
  readonly #events: Event[] = [];
  #now = 0;
  #made = 0;

  now(): number {
    return this.#now;
  }

  after(ms: number, call: () => void): () => void {
    const event: Event = { at: this.#now + Math.max(0, ms), order: this.#made++, call };
    this.#push(event);
    return () => {
      event.call = undefined;
    };
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  turn(): Promise<void> {
    return this.sleep(TURN_MS);
  }

  /** Goes on until nothing is left to happen. */
  async run(): Promise<void> {
    for (;;) {
      await setImmediate(); // everything that follows from the last event has been done
      const event = this.#pop();
      if (!event) return;
      this.#now = event.at;
      event.call?.();
    }
  }

  #push(event: Event): void {
    const events = this.#events;
    let at = events.length;
    events.push(event);
    while (at > 0) {
      const above = (at - 1) >> 1;
      if (!isBefore(event, events[above]!)) break;
      events[at] = events[above]!;
      at = above;
    }
    events[at] = event;
  }

  /** The next event that was not called off. */
  #pop(): Event | undefined {
    for (;;) {
      const first = this.#events[0];
      if (!first) return undefined;
      const last = this.#events.pop()!;
      if (last !== first) this.#sink(last);
      if (first.call) return first;
    }
  }

  /** Puts an event in the place of the first one. */
  #sink(event: Event): void {
    const events = this.#events;
    let at = 0;
    for (;;) {
      let below = 2 * at + 1;
      if (below >= events.length) break;
      if (below + 1 < events.length && isBefore(events[below + 1]!, events[below]!)) below++;
      if (!isBefore(events[below]!, event)) break;
      events[at] = events[below]!;
      at = below;
    }
    events[at] = event;
  }
}

function isBefore(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}
