/** @file Door of the room `evaluation`: accuracy by generation, perplexity. */
export { type ExactMatchOptions, type ExactMatchResult, exactMatch, type ScoredRow } from "./exact-match.ts";
export { chooseExtraction, type Extraction, extractAnswer, isCorrect } from "./extract.ts";
export { type Accuracy, accuracyOf } from "./interval.ts";
export { type PerplexityResult, perplexity, textPerplexity } from "./perplexity.ts";
export { type LabelledRow, loadLabelledRows } from "./rows.ts";
