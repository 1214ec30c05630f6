/** @file BoolQ (Clark et al. 2019): yes or no; with its passage by likelihood, without any as LLM-Adapters asks it. */
import { choiceDocument, hu2023, questionAnswer, textOf } from "../forms.ts";
import type { Document, Task } from "../task.ts";

const FRAME =
  /^Please answer the following question with true or false, question: ([\s\S]*)\?\n\nAnswer format: true\/false$/;

function read(fields: Readonly<Record<string, unknown>>): Document | string {
  const instruction = textOf(fields, "instruction");
  const question = instruction === undefined ? textOf(fields, "question") : FRAME.exec(instruction)?.[1];
  if (question === undefined) return 'missing "question"';
  const given = fields.label ?? fields.answer;
  const gold = [false, 0, "false", "0"].includes(given as string)
    ? 0
    : [true, 1, "true", "1"].includes(given as string)
      ? 1
      : -1;
  return choiceDocument(question, ["no", "yes"], gold, fields, textOf(fields, "passage"));
}

const boolq: Task = {
  name: "boolq",
  title: "BoolQ: yes or no",
  data: {
    hub: "hf:aps/super_glue:boolq",
    files: { validation: ["llm-adapters/boolq/test.json"], train: ["llm-adapters/boolq/train.json"] },
  },
  credit: { source: "BoolQ, github.com/google-research-datasets/boolean-questions", licence: "CC BY-SA 3.0" },
  read,
  protocols: {
    hu2023: hu2023({
      split: "validation",
      instruction: ({ question }) =>
        `Please answer the following question with true or false, question: ${question}?\n\nAnswer format: true/false`,
      answer: ({ gold }) => (gold === 1 ? "true" : "false"),
      extraction: { kind: "pattern", pattern: "true|false" },
    }),
    "lm-eval": questionAnswer("validation", {
      version: 2,
      metrics: ["acc"],
      shots: { count: 0, from: "train", order: "sampled", spare: 1 },
      needs: ["passage"],
      prompt: ({ passage, question }) => `${passage}\nQuestion: ${question}?\nAnswer:`,
    }),
  },
};

export const tasks = [boolq];
