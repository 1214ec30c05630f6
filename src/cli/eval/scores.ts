/** @file Tables of what a judge said: by category and turn, with intervals. */
import type { PairScore, Score, Scores } from "../../evaluation/index.ts";
import { table } from "../terminal.ts";

interface Line<S> {
  readonly name: string;
  readonly overall: S;
  readonly turns: Scores<S>["turns"];
}

function linesOf<S>({ categories, overall, turns }: Scores<S>): Line<S>[] {
  return [
    ...categories.map(({ category, ...scores }) => ({ name: category, ...scores })),
    { name: "all", overall, turns },
  ];
}

/** A value and its interval, as two cells. */
function cellsOf({ value, interval }: Score | undefined = { value: null } as Score, text: (value: number) => string) {
  return value === null || !interval ? ["–", "–"] : [text(value), interval.map(text).join("–")];
}

const rating = (value: number): string => value.toFixed(2);
const share = (value: number): string => (100 * value).toFixed(1);

function turnCells<S extends Score>(scores: Scores<S>, line: Line<S>, text: (value: number) => string): string[] {
  return scores.turns.flatMap(({ turn }) => cellsOf(line.turns.find((own) => own.turn === turn)?.score, text));
}

const turnTitles = <S>({ turns }: Scores<S>): string[] => turns.flatMap(({ turn }) => [`turn ${turn}`, "95 %"]);

/** Means of ratings from 1 to 10. */
export function ratingTable(scores: Scores<Score>): string {
  const lines = linesOf(scores).map((line) => [
    line.name,
    ...cellsOf(line.overall, rating),
    ...turnCells(scores, line, rating),
  ]);
  return table(["", "score", "95 %", ...turnTitles(scores)], lines);
}

/** Games against another model; the win rate counts a tie as half a win. */
export function pairTable(scores: Scores<PairScore>): string {
  const lines = linesOf(scores).map((line) => {
    const { wins, ties, losses } = line.overall;
    const counts = [wins, ties, losses].map(String);
    return [line.name, ...counts, ...cellsOf(line.overall, share), ...turnCells(scores, line, share)];
  });
  return table(["", "wins", "ties", "losses", "win rate %", "95 %", ...turnTitles(scores)], lines);
}
