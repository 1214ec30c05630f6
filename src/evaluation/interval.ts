/** @file How sure an accuracy is. */

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
