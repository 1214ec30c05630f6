/** @file From generated text to an answer: what counts as the model's choice, and when it is right. */

/**
 * How an answer is read out of generated text.
 * - `labels`: the first label of the row set that occurs as a whole word (Hu et al. 2023, LLM-Adapters)
 * - `pattern`: the first match of a regular expression, as it is written (LLM-Adapters' own tasks)
 * - `number`: the last number, thousands separators removed (LLM-Adapters, arithmetic)
 * - `letter`: the option letter after the last "answer is", else the last stand-alone A–E
 * - `text`: all of it, normalised
 */
export type Extraction =
  | { readonly kind: "labels"; readonly labels: readonly string[] }
  | { readonly kind: "pattern"; readonly pattern: string }
  | { readonly kind: "number" | "letter" | "text" };

export interface LabelledText {
  readonly instruction: string;
  readonly answer: string;
}

/** More distinct answers than this, and no list of them in the prompt, mean that the answers are free text. */
const MOST_LABELS = 64;

/** The rule that fits a set of rows: the labels their prompts list, else the kind that all answers have in common. */
export function chooseExtraction(rows: readonly LabelledText[]): Extraction {
  const answers = new Set(rows.map((row) => row.answer.trim()));
  const listed = new Set(rows.flatMap((row) => listedLabels(row.instruction)));
  if (listed.size > 0 && [...answers].every((answer) => listed.has(answer)))
    return { kind: "labels", labels: [...listed] };
  if ([...answers].every((answer) => /^[A-E]$/.test(answer))) return { kind: "letter" };
  if ([...answers].every((answer) => parseNumber(answer) !== undefined)) return { kind: "number" };
  if (answers.size > 1 && answers.size <= MOST_LABELS) return { kind: "labels", labels: [...answers] };
  return { kind: "text" };
}

/** The labels after "Answer format:" in a prompt of LLM-Adapters, e.g. `true/false`. */
function listedLabels(instruction: string): string[] {
  const list = /Answer format:\s*([^\n]+)/.exec(instruction)?.[1];
  return list
    ? list
        .split("/")
        .map((label) => label.trim())
        .filter(Boolean)
    : [];
}

/** The answer found in `text`, or undefined where there is none, which counts as wrong. */
export function extractAnswer(text: string, rule: Extraction): string | undefined {
  switch (rule.kind) {
    case "labels":
      return firstLabel(text, rule.labels);
    case "pattern":
      return new RegExp(rule.pattern).exec(text)?.[0];
    case "number": {
      const found = text.replaceAll(",", "").match(/-?\d+(?:\.\d+)?/g);
      return found?.at(-1);
    }
    case "letter": {
      const after = [...text.matchAll(/answer is:?\s*\(?([A-E])\b/gi)].at(-1)?.[1];
      return (after ?? [...text.matchAll(/(?<![A-Za-z])([A-E])(?![A-Za-z'’])/g)].at(-1)?.[1])?.toUpperCase();
    }
    case "text":
      return normalise(text) || undefined;
  }
}

/** Whether an extracted answer is the row's. Numbers are compared as numbers, everything else as normalised text. */
export function isCorrect(extracted: string | undefined, answer: string, rule: Extraction): boolean {
  if (extracted === undefined) return false;
  if (rule.kind === "number") return Math.abs(Number(extracted) - parseNumber(answer)!) < 1e-3; // tolerance of LLM-Adapters
  return normalise(extracted) === normalise(answer);
}

function firstLabel(text: string, labels: readonly string[]): string | undefined {
  // Longest first, so that of two labels starting at one place the whole one wins.
  const alternatives = [...labels].sort((a, b) => b.length - a.length).map(escapeRegExp);
  const found = new RegExp(`(?<![\\p{L}\\p{N}])(?:${alternatives.join("|")})(?![\\p{L}\\p{N}])`, "iu").exec(text)?.[0];
  return labels.find((label) => label.toLowerCase() === found?.toLowerCase());
}

function escapeRegExp(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");
}

/** Case, outer punctuation and runs of white space do not make an answer another one. */
export function normalise(text: string): string {
  return text
    .normalize("NFKC")
    .toLowerCase()
    .replace(/\s+/g, " ")
    .replace(/^[\s\p{P}]+|[\s\p{P}]+$/gu, "");
}

function parseNumber(text: string): number | undefined {
  const cleaned = text.replaceAll(",", "").trim();
  return /^-?\d+(?:\.\d+)?$/.test(cleaned) ? Number(cleaned) : undefined;
}
