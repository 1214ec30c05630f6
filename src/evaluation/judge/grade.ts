/** @file Grades answered conversations: one model's by ratings, two models' against each other in both orders. */
import type { AskOptions, Judge } from "./judge.ts";
import {
  type JudgedQuestion,
  type JudgeMessage,
  pairMessages,
  promptName,
  singleMessages,
  type Turn,
} from "./prompts.ts";
import {
  type PairMark,
  type PairScore,
  pairScores,
  ratingScores,
  type Score,
  type Scores,
  VALUE_OF,
} from "./scores.ts";
import { type Outcome, outcomeOf, ratingOf, winnerOf } from "./verdict.ts";

/** A question and what a model answered, turn by turn. */
export interface AnsweredQuestion {
  readonly question: JudgedQuestion;
  readonly answers: readonly string[];
  /** What another model answered, to compare with. */
  readonly baseline?: readonly string[];
}

/** One request of a turn; a comparison has two, the second with changed places. */
interface Match {
  readonly item: AnsweredQuestion;
  readonly turn: Turn;
  readonly prompt: string;
  readonly requests: readonly (readonly JudgeMessage[])[];
}

/** What the judge said of one turn. */
export interface Judgment {
  readonly question: string | number;
  readonly category: string;
  readonly turn: Turn;
  /** FastChat's name of the prompt. */
  readonly prompt: string;
  /** User messages and the judge's texts, in the order of the games. */
  readonly asked: readonly string[];
  readonly texts: readonly string[];
  readonly finishReasons: readonly (string | null)[];
  /** Of single grading; null without a verdict. */
  readonly rating?: number | null;
  /** Of a comparison, seen from the first model: all of both games, then of each. */
  readonly outcome?: Outcome | null;
  readonly winners?: readonly ("A" | "B" | "tie" | null)[];
}

export interface Graded<S> {
  readonly scores: Scores<S>;
  readonly judgments: readonly Judgment[];
}

export interface GradeOptions extends AskOptions {
  /** Of the bootstrap. Default 1234. */
  readonly seed?: number | undefined;
}

const turnsOf = ({ question }: AnsweredQuestion): Turn[] => (question.turns.length > 1 ? [1, 2] : [1]);

function matchesOf(items: readonly AnsweredQuestion[]): Match[] {
  return items.flatMap((item) =>
    turnsOf(item).map((turn): Match => {
      const { question, answers, baseline } = item;
      const requests = baseline
        ? [pairMessages(question, answers, baseline, turn), pairMessages(question, baseline, answers, turn)]
        : [singleMessages(question, answers, turn)];
      return { item, turn, prompt: promptName(baseline ? "pair" : "single", question, turn), requests };
    }),
  );
}

/** All that the judge would be asked; for the estimate. */
export function requestsOf(items: readonly AnsweredQuestion[]): (readonly JudgeMessage[])[] {
  return matchesOf(items).flatMap(({ requests }) => requests);
}

async function judgmentsOf(
  judge: Judge,
  items: readonly AnsweredQuestion[],
  options: GradeOptions,
): Promise<Judgment[]> {
  const matches = matchesOf(items);
  const answers = await judge.ask(
    matches.flatMap(({ requests }) => requests),
    options,
  );
  let next = 0;
  return matches.map(({ item: { question }, turn, prompt, requests }) => {
    const own = requests.map(() => answers[next++]!);
    return {
      question: question.id,
      category: question.category,
      turn,
      prompt,
      asked: requests.map((messages) => messages.at(-1)!.content),
      texts: own.map(({ text }) => text),
      finishReasons: own.map(({ finishReason }) => finishReason),
    };
  });
}

/** Ratings from 1 to 10. @throws as `Judge.ask` */
export async function gradeSingle(
  judge: Judge,
  items: readonly AnsweredQuestion[],
  options: GradeOptions = {},
): Promise<Graded<Score>> {
  const single = items.map(({ question, answers }) => ({ question, answers }));
  const judgments = (await judgmentsOf(judge, single, options)).map((judgment) => ({
    ...judgment,
    rating: ratingOf(judgment.texts[0]!) ?? null,
  }));
  const marks = judgments.map((judgment) => ({ ...judgment, value: judgment.rating ?? undefined }));
  return { scores: ratingScores(marks, options.seed ?? 1234), judgments };
}

/** Wins, losses and ties against each item's baseline. @throws as `Judge.ask` */
export async function gradePairs(
  judge: Judge,
  items: readonly (AnsweredQuestion & { readonly baseline: readonly string[] })[],
  options: GradeOptions = {},
): Promise<Graded<PairScore>> {
  const judgments = (await judgmentsOf(judge, items, options)).map((judgment) => {
    const winners = judgment.texts.map(winnerOf);
    return {
      ...judgment,
      outcome: outcomeOf(winners[0], winners[1]) ?? null,
      winners: winners.map((winner) => winner ?? null),
    };
  });
  const marks = judgments.map((judgment): PairMark => {
    const outcome = judgment.outcome ?? undefined;
    return { ...judgment, outcome, value: outcome && VALUE_OF[outcome] };
  });
  return { scores: pairScores(marks, options.seed ?? 1234), judgments };
}
