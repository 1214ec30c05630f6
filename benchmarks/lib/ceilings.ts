/** @file What the machine can do at most, measured in turns with the variants, and what of that a variant reaches. */

export const CEILINGS = "ceilings of the machine";

/** A second, with all threads; the best of a few tries. */
export interface Ceilings {
  /** Bytes read from memory. */
  readonly bytes: number;
  /** Multiplications and additions of large products, int8 and float32. */
  readonly int8: number;
  readonly float32: number;
}

/** The best of all rounds: nothing makes a machine faster than it is. */
export function bestOf(rounds: readonly Ceilings[]): Ceilings {
  const best = (key: keyof Ceilings) => Math.max(...rounds.map((round) => round[key]));
  return { bytes: best("bytes"), int8: best("int8"), float32: best("float32") };
}

export function describe({ bytes, int8, float32 }: Ceilings): string {
  const products = `products int8 ${(int8 / 1e9).toFixed(0)}, float32 ${(float32 / 1e9).toFixed(0)} GFLOP/s`;
  return `Ceilings of this machine: memory ${(bytes / 1e9).toFixed(1)} GB/s, ${products}`;
}

/** What of a ceiling an amount in a time is: `0.87`. */
export function share(amount: number, milliseconds: number, ceiling: number): string {
  return (((amount / milliseconds) * 1000) / ceiling).toFixed(2);
}
