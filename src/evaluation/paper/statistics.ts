/** @file What tables say of many numbers: medians with their spread, and whether two methods differ on the same rows. */
import { mean, median, Random } from "../../base/index.ts";
import { percentileInterval } from "../interval.ts";
import { type CellOf, canonical, type Figure, type Results, type Scope, type Seedless } from "./study.ts";

/** Null where there is nothing. */
export function figureOf(values: readonly number[]): Figure | null {
  if (values.length === 0) return null;
  return { value: median(values), low: Math.min(...values), high: Math.max(...values), seeds: values.length };
}

/** The cells of an adapter's seeds on a task or a group of tasks. */
export function accuracyCells(scope: Scope, training: Seedless, name: string): CellOf<"accuracy">[] {
  return seedsOf(scope).flatMap((seed) => ofSeed(scope, training, name, seed));
}

const seedsOf = ({ seeds }: Scope): number[] => Array.from({ length: seeds }, (_, seed) => seed);

const ofSeed = (scope: Scope, training: Seedless, name: string, seed: number): CellOf<"accuracy">[] =>
  scope.tasksOf(name).map((task) => ({ kind: "accuracy", training: { ...training, seed }, task }));

/** Right or wrong for all rows of a task or group, by seed; seeds of which something is missing are left out. */
function scoresOf(scope: Scope, results: Results, training: Seedless, name: string): Map<number, readonly number[]> {
  const scores = new Map<number, readonly number[]>();
  for (const seed of seedsOf(scope)) {
    const found = ofSeed(scope, training, name, seed).map((cell) => results.get(cell)?.scores);
    if (found.every((rows) => rows !== undefined)) scores.set(seed, found.flat());
  }
  return scores;
}

/** Accuracy in percent, median of seeds; all rows of a group weigh the same. */
export function accuracyFigure(scope: Scope, results: Results, training: Seedless, name: string): Figure | null {
  return figureOf([...scoresOf(scope, results, training, name).values()].map((rows) => 100 * mean(rows)));
}

/** The mean of medians, where all are there. */
export function averageOf(figures: readonly (Figure | null)[]): number | null {
  const values = figures.flatMap((figure) => (figure === null ? [] : [figure.value]));
  return values.length === figures.length && values.length > 0 ? mean(values) : null;
}

export interface Comparison {
  /** Of the means over seeds, a − b, in points. */
  readonly difference: number;
  /** At 95 %. */
  readonly low: number;
  readonly high: number;
  /** Share of resamples, centred at no difference, that differ as much. */
  readonly p: number;
}

const DRAWS = 2000;

/**
 * Paired bootstrap over rows: both methods answered the same rows, so rows are drawn and both answers with them. A
 * row's score is its mean over the seeds that both have: seeds of one row are no independent rows.
 * @param strata pairs of score lists, one for each task; tasks weigh the same
 */
export function pairedBootstrap(
  strata: readonly { readonly a: readonly number[]; readonly b: readonly number[] }[],
): Comparison {
  const random = new Random(1234);
  const differences = strata.map(({ a, b }) => a.map((value, row) => value - b[row]!));
  const difference = mean(differences.map(mean));
  const draws = Array.from({ length: DRAWS }, () =>
    mean(
      differences.map((rows) => {
        let sum = 0;
        for (let i = 0; i < rows.length; i++) sum += rows[random.integer(rows.length)]!;
        return sum / rows.length;
      }),
    ),
  );
  const slack = 1e-12; // sums of the same numbers in another order
  const extreme = draws.filter((draw) => Math.abs(draw - difference) >= Math.abs(difference) - slack).length;
  const [low, high] = percentileInterval(draws);
  return {
    difference: 100 * difference,
    low: 100 * low,
    high: 100 * high,
    p: (1 + extreme) / (1 + DRAWS),
  };
}

/** Two adapters on the same tasks; null where they have no seed in common. */
export function compare(
  scope: Scope,
  results: Results,
  [a, b]: readonly [Seedless, Seedless],
  names: readonly string[],
): Comparison | null {
  if (canonical(a) === canonical(b)) return null;
  const strata = [];
  for (const name of names) {
    const [ofA, ofB] = [scoresOf(scope, results, a, name), scoresOf(scope, results, b, name)];
    const seeds = [...ofA.keys()].filter((seed) => ofB.has(seed));
    if (seeds.length === 0) return null;
    const rowMeans = (scores: Map<number, readonly number[]>) =>
      scores.get(seeds[0]!)!.map((_, row) => mean(seeds.map((seed) => scores.get(seed)![row]!)));
    strata.push({ a: rowMeans(ofA), b: rowMeans(ofB) });
  }
  return pairedBootstrap(strata);
}
