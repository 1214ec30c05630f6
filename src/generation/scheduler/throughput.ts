/** @file How fast the work goes, for telling those who are refused when to come back. */

/** Seconds in which what was measured loses half of its weight. */
const HALF_LIFE = 10;
const LONGEST_WAIT = 120;

/** Work is counted as fairness does: a token that was read for 1, one that was generated for 2. */
export class Throughput {
  #work = 0;
  #seconds = 0;
  /** Of the work that requests might have been, how much they were; answers often end early. */
  #asked = 0;
  #done = 0;

  /** @param ms how long the loop was busy with it */
  worked(work: number, ms: number): void {
    const seconds = ms / 1000;
    const fade = 0.5 ** (seconds / HALF_LIFE);
    this.#work = this.#work * fade + work;
    this.#seconds = this.#seconds * fade + seconds;
  }

  /** A request has ended that might have been `asked`. */
  ended(asked: number, done: number): void {
    this.#asked = this.#asked * 0.95 + asked;
    this.#done = this.#done * 0.95 + done;
  }

  /** Whole seconds until that much asked work is done; 1 before anything was measured. */
  secondsFor(asked: number): number {
    if (this.#work === 0 || this.#seconds === 0) return 1;
    const part = this.#asked > 0 ? this.#done / this.#asked : 1;
    const seconds = (asked * part * this.#seconds) / this.#work;
    return Math.min(LONGEST_WAIT, Math.max(1, Math.ceil(seconds)));
  }
}
