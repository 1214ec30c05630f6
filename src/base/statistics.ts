/** @file Sums, means and medians of plain numbers. */

/** Added from the first to the last; 0 for none. */
export function sum(values: Iterable<number>): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

/** NaN for none. */
export function mean(values: readonly number[]): number {
  return sum(values) / values.length;
}

/** The one in the middle, or the mean of both; NaN for none. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
