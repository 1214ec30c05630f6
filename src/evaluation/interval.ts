/** @file How sure an accuracy is. */
import { mean, Random, sum } from "../base/index.ts";

export interface Accuracy {
  readonly correct: number;
  readonly total: number;
  /** Share of correct answers, 0 to 1. */
  readonly value: number;
  /** Wilson score interval at 95 %: unlike ± 1.96 standard errors it is right near 0 and 1 and for few rows. */
  readonly interval: readonly [low: number, high: number];
}

const Z = 1.959963984540054; // 97.5 % quantile of the standard normal

/** Wilson (1927), eq. for the score interval. No rows give 0 with the interval [0, 1]. */
export function accuracyOf(correct: number, total: number): Accuracy {
  if (total === 0) return { correct, total, value: 0, interval: [0, 1] };
  const p = correct / total;
  const scale = 1 + (Z * Z) / total;
  const centre = (p + (Z * Z) / (2 * total)) / scale;
  const half = (Z / scale) * Math.sqrt((p * (1 - p)) / total + (Z * Z) / (4 * total * total));
  const low = correct === 0 ? 0 : Math.max(0, centre - half);
  const high = correct === total ? 1 : Math.min(1, centre + half);
  return { correct, total, value: p, interval: [low, high] };
}

/** Standard error of the mean, from the sample's own deviation (n - 1); null for fewer than two values. */
export function standardError(values: readonly number[]): number | null {
  if (values.length < 2) return null;
  const centre = mean(values);
  const squares = values.reduce((total, value) => total + (value - centre) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1)) / Math.sqrt(values.length);
}

/** The interval at 95 % of what was drawn: 2.5 % lies below, 2.5 % above. */
export function percentileInterval(draws: readonly number[]): readonly [low: number, high: number] {
  const sorted = draws.toSorted((a, b) => a - b);
  return [sorted[Math.floor(0.025 * (sorted.length - 1))]!, sorted[Math.ceil(0.975 * (sorted.length - 1))]!];
}

/** Percentile bootstrap of the mean at 95 %, seeded. */
export function bootstrapInterval(
  values: readonly number[],
  seed: number,
  draws = 1000,
): readonly [low: number, high: number] {
  const random = new Random(seed);
  const means = Array.from({ length: draws }, () => {
    let total = 0;
    for (let i = 0; i < values.length; i++) total += values[random.integer(values.length)]!;
    return total / values.length;
  });
  return percentileInterval(means);
}

/**
 * Standard error of the mean over all rows of several tasks, from those of the tasks: within-task variance only, as
 * the harness pools it.
 */
export function pooledError(errors: readonly (number | null)[], sizes: readonly number[]): number | null {
  const total = sum(sizes);
  if (errors.includes(null) || total <= sizes.length) return null;
  const squares = errors.reduce<number>((squared, error, i) => squared + (sizes[i]! - 1) * error! ** 2 * sizes[i]!, 0);
  return Math.sqrt(squares / (total - sizes.length) / total);
}
