/** @file Series as lines of a chart: points with their band, smoothed, and put into words. */
import type { RunEvaluation, RunSeries } from "../../../../src/serving/studio/types.ts";
import { number } from "../../ui/index.ts";

export interface Point {
  readonly x: number;
  /** Null: a gap. */
  readonly y: number | null;
  /** Least and largest of the steps that the point stands for. */
  readonly low?: number | null;
  readonly high?: number | null;
}

export interface Line {
  readonly label: string;
  /** 1 to 8: a colour of the theme. */
  readonly series: number;
  readonly points: readonly Point[];
  readonly dots?: boolean;
  readonly dashed?: boolean;
}

/** What a name of a series is called, and its unit. */
const TITLES: Readonly<Record<string, string>> = {
  lm_loss: "Loss, nats a token",
  lr: "Learning rate",
  grad_norm: "Norm of the gradients",
  tokens_per_second: "Tokens a second",
  "activation.lr": "Learning rate of the activations",
  "activation.lm_loss": "Loss of the activation steps, nats a token",
};

export function titleOf(name: string): string {
  const auxiliary = /^auxiliary\.(.*)$/.exec(name)?.[1];
  return auxiliary ? `Loss of the method: ${auxiliary.replaceAll("_", " ")} (weighted)` : (TITLES[name] ?? name);
}

/** Quantities with a chart of their own, in their order; `loss` is the sum of others that have one. */
export function chartedNames(all: readonly RunSeries[]): string[] {
  const names = new Set(all.flatMap(({ series }) => series.map(({ name }) => name)));
  const auxiliary = [...names].filter((name) => name.startsWith("auxiliary.")).sort();
  const order = [
    "lm_loss",
    ...auxiliary,
    "tokens_per_second",
    "grad_norm",
    "lr",
    "activation.lm_loss",
    "activation.lr",
  ];
  return order.filter((name) => names.has(name));
}

export function seriesPoints({ step, series }: RunSeries, name: string): Point[] {
  const part = series.find((one) => one.name === name);
  return part ? step.map((x, i) => ({ x, y: part.mean[i]!, low: part.min[i]!, high: part.max[i]! })) : [];
}

export function evaluationPoints(
  evaluations: readonly RunEvaluation[],
  value: (evaluation: RunEvaluation) => number | null,
): Point[] {
  return evaluations.map((evaluation) => ({ x: evaluation.step, y: value(evaluation) }));
}

/** An exponential mean of what came before, not pulled towards zero at its start; the bands stay as they are. */
export function smoothed(points: readonly Point[], weight: number): readonly Point[] {
  if (weight === 0) return points;
  let [sum, weights] = [0, 0];
  return points.map((point) => {
    if (point.y === null) return point;
    sum = weight * sum + (1 - weight) * point.y;
    weights = weight * weights + (1 - weight);
    return { ...point, y: sum / weights };
  });
}

/** First, last, least and largest, for who does not see the line. */
export function inWords({ label, points }: Line): string {
  const known = points.filter((point): point is Point & { y: number } => point.y !== null);
  const [first, last] = [known[0], known.at(-1)];
  if (!first || !last) return `${label}: nothing yet`;
  const all = known.flatMap(({ y, low, high }) => [low ?? y, high ?? y]);
  return (
    `${label}: ${number(first.y)} at step ${first.x}, ${number(last.y)} at step ${last.x}, ` +
    `between ${number(Math.min(...all))} and ${number(Math.max(...all))}`
  );
}
