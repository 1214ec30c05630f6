/** @file Whom requests are for and when they come: Zipf's law, and arrivals that know nothing of each other. */
import type { Random } from "../../src/base/index.ts";

/** Draws 0 … count − 1, the i-th with probability proportional to (i + 1)^−exponent. */
export class Zipf {
  readonly #cumulated: readonly number[];

  constructor(count: number, exponent: number) {
    let sum = 0;
    this.#cumulated = Array.from({ length: count }, (_, i) => {
      sum += (i + 1) ** -exponent;
      return sum;
    });
  }

  /** @param uniform in [0, 1) */
  at(uniform: number): number {
    const wanted = uniform * (this.#cumulated.at(-1) ?? 0);
    let low = 0;
    let high = this.#cumulated.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.#cumulated[middle] as number) > wanted) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** Times in [0, seconds) of a Poisson process, in seconds. */
export function arrivals(perSecond: number, seconds: number, random: Random): number[] {
  const times: number[] = [];
  for (let at = gap(); at < seconds; at += gap()) times.push(at);
  return times;

  function gap(): number {
    return -Math.log(1 - random.uniform()) / perSecond;
  }
}
