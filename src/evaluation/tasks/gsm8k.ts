/** @file GSM8K (Cobbe et al. 2021): grade school word problems; with five solved ones in front, strict and flexible. */
import { hu2023, textOf } from "../forms.ts";
import type { Document, Reading, Task } from "../task.ts";

/** The harness's fallback where nothing matches. */
const INVALID = "[invalid]";

function read(fields: Readonly<Record<string, unknown>>): Document | string {
  const answer = textOf(fields, "answer");
  const instruction = textOf(fields, "instruction");
  const question = instruction ?? textOf(fields, "question");
  if (question === undefined || answer === undefined) return 'needs "question" and "answer"';
  // LLM-Adapters has the number alone, as a float.
  const target = instruction === undefined ? answer : `#### ${answer.replace(/\.0$/, "")}`;
  return { question, choices: [], gold: -1, target, fields };
}

/** What the harness takes away before it compares. */
function plain(text: string): string {
  return text
    .replaceAll(",", "")
    .replaceAll("$", "")
    .replace(/[\s\S]*#### /, "")
    .replace(/\.(?=\n?$)/, "")
    .toLowerCase();
}

const reading = (name: string, rule: string, find: (text: string) => string | undefined): Reading => ({
  name,
  rule,
  read: (text) => find(text)?.trim() ?? INVALID,
  isCorrect: (answer, { target }) => plain(answer) === plain(target),
});

const gsm8k: Task = {
  name: "gsm8k",
  title: "GSM8K: grade school word problems",
  data: {
    hub: "hf:openai/gsm8k:main",
    files: { test: ["gsm8k/test.jsonl", "llm-adapters/gsm8k/test.json"], train: ["gsm8k/train.jsonl"] },
  },
  credit: { source: "Grade School Math, github.com/openai/grade-school-math", licence: "MIT" },
  read,
  protocols: {
    hu2023: hu2023({
      split: "test",
      instruction: ({ question }) => question,
      answer: ({ target }) => target.replace(/[\s\S]*#### /, "").trim(),
      extraction: { kind: "number" },
      maxNewTokens: 256,
    }),
    "lm-eval": {
      kind: "generate",
      version: 3,
      split: "test",
      shots: { count: 5, from: "train", order: "sampled" },
      prompt: ({ question }) => `Question: ${question}\nAnswer:`,
      promptIs: "text",
      delimiter: " ",
      stop: ["Question:", "</s>", "<|im_end|>"],
      maxNewTokens: 256,
      metric: "exact_match",
      readings: [
        reading("strict-match", "#### (\\-?[0-9\\.\\,]+)", (text) => /#### (-?[0-9.,]+)/.exec(text)?.[1]),
        reading(
          "flexible-extract",
          "last of (-?[$0-9.,]{2,})|(-?[0-9]+)",
          (text) => [...text.matchAll(/-?[$0-9.,]{2,}|-?[0-9]+/g)].at(-1)?.[0],
        ),
      ],
    },
  },
};

export const tasks = [gsm8k];
