/** @file Medians and spreads. */

/** The p-quantile, linear between neighbours. */
export function quantile(values: readonly number[], p: number): number {
  if (values.length === 0) return Number.NaN;
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * p;
  const low = sorted[Math.floor(at)] as number;
  const high = sorted[Math.ceil(at)] as number;
  return low + (high - low) * (at - Math.floor(at));
}

/** What a benchmark says about a quantity that it measured once a round. */
export interface Summary {
  readonly median: number;
  /** Quartiles. */
  readonly low: number;
  readonly high: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

export function summarize(values: readonly number[]): Summary {
  return {
    median: quantile(values, 0.5),
    low: quantile(values, 0.25),
    high: quantile(values, 0.75),
    min: Math.min(...values),
    max: Math.max(...values),
    count: values.length,
  };
}

/** Ratios a/b round by round: what moves the whole machine for a while moves both, and falls out. */
export function ratios(a: readonly number[], b: readonly number[]): Summary {
  return summarize(a.slice(0, b.length).map((value, round) => value / (b[round] as number)));
}

/** A straight line through points, by least squares. */
export interface Line {
  readonly slope: number;
  /** Standard error of the slope, as if points were independent. */
  readonly error: number;
  /** Of the points' heights. */
  readonly median: number;
}

export function lineThrough(points: readonly (readonly [x: number, y: number])[]): Line {
  const n = points.length;
  const mean = (at: 0 | 1) => points.reduce((sum, point) => sum + point[at], 0) / n;
  const [x, y] = [mean(0), mean(1)];
  const sxx = points.reduce((sum, point) => sum + (point[0] - x) ** 2, 0);
  const slope = points.reduce((sum, point) => sum + (point[0] - x) * (point[1] - y), 0) / sxx;
  const rest = points.reduce((sum, point) => sum + (point[1] - y - slope * (point[0] - x)) ** 2, 0);
  const median = quantile(
    points.map((point) => point[1]),
    0.5,
  );
  return { slope, error: Math.sqrt(rest / (n - 2) / sxx), median };
}
