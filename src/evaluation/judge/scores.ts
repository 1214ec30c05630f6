/** @file From verdicts to scores: means by turn and category, with intervals that know that two turns share a question. */
import { mean, Random, sum } from "../../base/index.ts";
import { percentileInterval } from "../interval.ts";
import type { Turn } from "./prompts.ts";
import type { Outcome } from "./verdict.ts";

/** Bootstrap at 95 %. */
export type Interval = readonly [low: number, high: number];

export interface Score {
  /** Mean over what was judged; null where nothing was. */
  readonly value: number | null;
  readonly interval: Interval | null;
  readonly judged: number;
  /** Judgements without a verdict: not in the mean. */
  readonly unjudged: number;
}

/** A verdict on one turn of a question. */
export interface Mark {
  readonly question: string | number;
  readonly category: string;
  readonly turn: Turn;
  /** Rating, or 1, ½, 0 for win, tie and loss; undefined without a verdict. */
  readonly value: number | undefined;
}

/** By turn, in order, and all turns together. */
export interface Scores<S> {
  readonly overall: S;
  readonly turns: readonly { readonly turn: Turn; readonly score: S }[];
  readonly categories: readonly {
    readonly category: string;
    readonly overall: S;
    readonly turns: readonly { readonly turn: Turn; readonly score: S }[];
  }[];
}

const DRAWS = 1000;

/** Percentile bootstrap of the mean of all values; groups, and not values, are drawn. Null for no group. */
export function clusterInterval(groups: readonly (readonly number[])[], seed: number): Interval | null {
  if (groups.length === 0) return null;
  const random = new Random(seed);
  const totals = groups.map((values) => [sum(values), values.length] as const);
  const means = Array.from({ length: DRAWS }, () => {
    let [total, count] = [0, 0];
    for (let i = 0; i < totals.length; i++) {
      const [own, size] = totals[random.integer(totals.length)]!;
      total += own;
      count += size;
    }
    return total / count;
  });
  return percentileInterval(means);
}

function scoreOf(marks: readonly Mark[], seed: number): Score {
  const byQuestion = new Map<string | number, number[]>();
  for (const { question, value } of marks) {
    if (value !== undefined) byQuestion.set(question, [...(byQuestion.get(question) ?? []), value]);
  }
  const groups = [...byQuestion.values()];
  const values = groups.flat();
  return {
    value: values.length ? mean(values) : null,
    interval: clusterInterval(groups, seed),
    judged: values.length,
    unjudged: marks.length - values.length,
  };
}

function byTurn<S, M extends Mark>(marks: readonly M[], score: (marks: readonly M[]) => S) {
  const turns = [...new Set(marks.map(({ turn }) => turn))].sort();
  return turns.map((turn) => ({ turn, score: score(marks.filter((mark) => mark.turn === turn)) }));
}

function scoresOf<S, M extends Mark>(marks: readonly M[], score: (marks: readonly M[]) => S): Scores<S> {
  const names = [...new Set(marks.map(({ category }) => category))];
  const categories = names.map((category) => {
    const own = marks.filter((mark) => mark.category === category);
    return { category, overall: score(own), turns: byTurn(own, score) };
  });
  return { overall: score(marks), turns: byTurn(marks, score), categories };
}

/** Ratings, averaged as FastChat does: over all that have one. */
export function ratingScores(marks: readonly Mark[], seed: number): Scores<Score> {
  return scoresOf(marks, (own) => scoreOf(own, seed));
}

/** Of games against another model. `value` is the adjusted win rate: a tie is half a win. */
export interface PairScore extends Score {
  readonly wins: number;
  readonly losses: number;
  readonly ties: number;
}

export interface PairMark extends Mark {
  readonly outcome: Outcome | undefined;
}

export const VALUE_OF: Readonly<Record<Outcome, number>> = { win: 1, tie: 0.5, loss: 0 };

export function pairScores(marks: readonly PairMark[], seed: number): Scores<PairScore> {
  return scoresOf(marks, (own) => {
    const count = (wanted: Outcome) => own.filter(({ outcome }) => outcome === wanted).length;
    return { ...scoreOf(own, seed), wins: count("win"), losses: count("loss"), ties: count("tie") };
  });
}
