/** @file AQuA-RAT (Ling et al. 2017): algebra word problems with five options; by likelihood as AGIEval asks it. */
import { choiceDocument, hu2023, questionAnswer, textOf } from "../forms.ts";
import type { Document, Task } from "../task.ts";

/** `Q: … Answer Choices: (A)… (B)…\nA: Among A through E, the answer is`: a row of AGIEval. */
const AGIEVAL = /^Q: ([\s\S]*) Answer Choices: [\s\S]*\nA: Among A through E, the answer is$/;

function read(fields: Readonly<Record<string, unknown>>): Document | string {
  const query = textOf(fields, "query");
  if (query !== undefined && Array.isArray(fields.choices)) {
    const choices = fields.choices.map((choice) => String(choice).replace(/^\([A-E]\)/, ""));
    return choiceDocument(AGIEVAL.exec(query)?.[1] ?? query, choices, Number([fields.gold].flat()[0]), fields);
  }
  const instruction = textOf(fields, "instruction");
  if (instruction !== undefined) {
    const [question, list] = instruction.split(/ Answer Choices: (?=\(A\) )/);
    if (list === undefined) return '"instruction" has no "Answer Choices:"';
    const choices = ` ${list}`.split(/ \([A-E]\) /).slice(1);
    return choiceDocument(question!, choices, "ABCDE".indexOf(String(fields.answer)), fields);
  }
  const question = textOf(fields, "question");
  if (question === undefined || !Array.isArray(fields.options)) return 'needs "question" and "options"';
  const choices = fields.options.map((option) => String(option).replace(/^[A-E]\)/, ""));
  return choiceDocument(question, choices, "ABCDE".indexOf(String(fields.correct)), fields);
}

const letter = (index: number): string => "ABCDE"[index]!;
const options = ({ choices }: Document, blank: string): string[] =>
  choices.map((choice, i) => `(${letter(i)})${blank}${choice}`);

const aqua: Task = {
  name: "aqua",
  title: "AQuA-RAT: algebra word problems with options",
  data: {
    hub: "hf:deepmind/aqua_rat:raw",
    files: {
      test: ["aqua/test.json", "llm-adapters/AQuA/test.json"],
      validation: ["aqua/dev.json"],
    },
  },
  credit: { source: "AQuA-RAT, github.com/google-deepmind/AQuA", licence: "Apache-2.0" },
  read,
  protocols: {
    hu2023: hu2023({
      split: "test",
      instruction: (document) => `${document.question} Answer Choices: ${options(document, " ").join(" ")}`,
      answer: ({ gold }) => letter(gold),
      extraction: { kind: "letter" },
      maxNewTokens: 256,
    }),
    "lm-eval": questionAnswer("test", {
      harnessName: "agieval_aqua_rat",
      shots: { count: 0, from: "validation", order: "sampled" },
      prompt: (document) =>
        `Q: ${document.question} Answer Choices: ${options(document, "").join(" ")}\nA: Among A through E, the answer is`,
      choices: (document) => options(document, ""),
    }),
  },
};

export const tasks = [aqua];
