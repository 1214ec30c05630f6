/** @file What tasks are written with: readers of the formats that data sets come in, and the forms that several tasks share. */
import { type Extraction, extractAnswer, isCorrect } from "./extract.ts";
import type { ChoiceForm, Document, GenerateForm, Split } from "./task.ts";

type Fields = Readonly<Record<string, unknown>>;

/** A field that must be text; numbers count as such. */
export function textOf(fields: Fields, key: string): string | undefined {
  const value = fields[key];
  return typeof value === "string" ? value : typeof value === "number" ? String(value) : undefined;
}

/** A document whose right choice is `gold`; what is wrong with it, if anything. */
export function choiceDocument(
  question: string,
  choices: readonly string[],
  gold: number,
  fields: Fields,
  passage?: string,
): Document | string {
  if (choices.length < 2) return "has fewer than two choices";
  const target = choices[gold];
  if (target === undefined) return "its answer is none of its choices";
  return { question, choices, gold, target, fields, ...(passage !== undefined && { passage }) };
}

/** A list of texts. */
export const textsOf = (list: unknown): string[] | undefined =>
  Array.isArray(list) && list.every((item) => typeof item === "string") ? list : undefined;

/**
 * Questions with labelled choices, as ARC and OpenBookQA come: `{question | question_stem, choices: {text, label},
 * answerKey}` on the hub, `{question: {stem, choices: [{text, label}]}, answerKey}` from AI2, or the prompts of
 * LLM-Adapters.
 */
export function readLabelledChoices(fields: Fields): Document | string {
  if (typeof fields.instruction === "string") return readAdaptersChoices(fields);
  const nested = fields.question as { stem?: unknown; choices?: unknown } | string | undefined;
  const stem = typeof nested === "object" ? nested.stem : (fields.question_stem ?? nested);
  if (typeof stem !== "string") return 'missing "question"';
  const list = (typeof nested === "object" ? nested.choices : fields.choices) as
    | { text?: unknown; label?: unknown }
    | readonly { text?: unknown; label?: unknown }[]
    | undefined;
  const choices = textsOf(Array.isArray(list) ? list.map(({ text }) => text) : (list as { text?: unknown })?.text);
  const labels = textsOf(Array.isArray(list) ? list.map(({ label }) => label) : (list as { label?: unknown })?.label);
  if (!choices || !labels) return 'missing "choices"';
  return choiceDocument(stem, choices, labels.indexOf(String(fields.answerKey).trimStart()), fields);
}

/** `Please choose the correct answer to the question: … Answer1: … Answer2: … Answer format: answer1/answer2`. */
function readAdaptersChoices(fields: Fields): Document | string {
  const match =
    /^Please choose the correct answer to the question: ([\s\S]*)\n\nAnswer1: ([\s\S]*)\n\nAnswer format: (.*)$/.exec(
      String(fields.instruction),
    );
  if (!match) return '"instruction" is no prompt of LLM-Adapters for choices';
  const [, question, list, format] = match as unknown as [string, string, string, string];
  const choices: string[] = [];
  let rest = list;
  for (let next = 2; next <= format.split("/").length; next++) {
    const at = rest.indexOf(` Answer${next}: `);
    if (at < 0) return `"instruction" has no Answer${next}`;
    choices.push(rest.slice(0, at));
    rest = rest.slice(at + ` Answer${next}: `.length);
  }
  choices.push(rest);
  const gold = Number(/^answer(\d)$/.exec(String(fields.answer))?.[1]) - 1;
  return choiceDocument(question, choices, gold, fields);
}

/** The prompt of LLM-Adapters for questions with choices. */
export function adaptersChoices({ question, choices }: Document): string {
  const list = choices.map((choice, i) => `Answer${i + 1}: ${choice}`).join(" ");
  const format = choices.map((_, i) => `answer${i + 1}`).join("/");
  return `Please choose the correct answer to the question: ${question}\n\n${list}\n\nAnswer format: ${format}`;
}

export interface AdaptersOptions {
  readonly split: Split;
  /** The instruction, where the row does not bring its own. */
  instruction(document: Document): string;
  /** The answer as the rule finds it. */
  answer(document: Document): string;
  readonly extraction: Extraction;
  readonly maxNewTokens?: number;
}

/** LLM-Adapters (Hu et al. 2023): the answer is generated after an instruction and matched. */
export function hu2023(options: AdaptersOptions): GenerateForm {
  const { extraction } = options;
  const answerOf = (document: Document): string =>
    typeof document.fields.instruction === "string" && typeof document.fields.answer === "string"
      ? document.fields.answer
      : options.answer(document);
  return {
    kind: "generate",
    version: 1,
    split: options.split,
    shots: { count: 0, from: "train", order: "first" },
    prompt: (document) =>
      typeof document.fields.instruction === "string" ? document.fields.instruction : options.instruction(document),
    promptIs: "instruction",
    delimiter: "",
    stop: [],
    maxNewTokens: options.maxNewTokens ?? 32,
    metric: "exact_match",
    answer: answerOf,
    readings: [
      {
        name: "first-match",
        rule: extraction,
        read: (text) => extractAnswer(text, extraction),
        isCorrect: (answer, document) => isCorrect(answer, answerOf(document), extraction),
      },
    ],
  };
}

/** `Question: …\nAnswer:`, then each choice: the harness's form of ARC and PIQA. */
export function questionAnswer(split: Split, options: Partial<ChoiceForm> = {}): ChoiceForm {
  return {
    kind: "choice",
    version: 1,
    split,
    shots: { count: 0, from: "train", order: "sampled" },
    prompt: ({ question }) => `Question: ${question}\nAnswer:`,
    metrics: ["acc", "acc_norm"],
    ...options,
  };
}
