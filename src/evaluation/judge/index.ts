/** @file Judging of conversations by a model behind an OpenAI-compatible endpoint. */
export { type JudgingCost, judgingCost, moneyOf, type Prices } from "./estimate.ts";
export {
  type AnsweredQuestion,
  type Graded,
  gradePairs,
  gradeSingle,
  type Judgment,
  requestsOf,
} from "./grade.ts";
export { Judge, type JudgeOptions, judgeKey, judgeUrl } from "./judge.ts";
export type { JudgedQuestion, JudgeMessage } from "./prompts.ts";
export { judgmentsText } from "./report.ts";
export type { PairScore, Score, Scores } from "./scores.ts";
