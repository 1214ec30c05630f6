/** @file Door of the room `evaluation`: tasks and protocols, accuracy by generation, perplexity. */
export { type Answers, answersText, answersTo, judgedQuestions, readAnswers } from "./answers.ts";
export {
  type AnsweredRow,
  answerTask,
  type ConversationOptions,
  type ConversationResult,
  conversationForm,
} from "./conversation.ts";
export {
  checkData,
  type EvaluateOptions,
  evaluateTask,
  type Metric,
  type Sample,
  type TaskResult,
} from "./evaluate.ts";
export { type ExactMatchOptions, type ExactMatchResult, exactMatch, type ScoredRow } from "./exact-match.ts";
export { chooseExtraction, type Extraction, extractAnswer, isCorrect } from "./extract.ts";
export * from "./grid/index.ts";
export { type Accuracy, accuracyOf } from "./interval.ts";
export * from "./judge/index.ts";
export { loadSplit, type Rows } from "./load.ts";
export {
  findOverlap,
  knownTraining,
  type Overlap,
  runConfigOf,
  type TrainingSource,
  type TrainingTexts,
  textOfDocument,
  trainingSourcesOf,
  trainingTexts,
} from "./overlap.ts";
export * from "./paper/index.ts";
export { type PerplexityResult, perplexity, textPerplexity } from "./perplexity.ts";
export { conversationOf, defaultProtocol, findTasks, hasSameShots, loadTasks } from "./registry.ts";
export { type GroupResult, groupResults, harnessTable, type RunFacts, summaryOf, writeResults } from "./report.ts";
export { type LabelledRow, loadLabelledRows } from "./rows.ts";
export { RowStore } from "./store.ts";
export { type Document, type Form, PROTOCOLS, type Protocol, type Task } from "./task.ts";
