/** @file PIQA (Bisk et al. 2020): which of two ways does the job. */
import { choiceDocument, hu2023, questionAnswer, textOf } from "../forms.ts";
import type { Document, Task } from "../task.ts";

const FRAME =
  /^Please choose the correct solution to the question: ([\s\S]*)\n\nSolution1: ([\s\S]*)\n\nSolution2: ([\s\S]*)\n\nAnswer format: solution1\/solution2$/;

function read(fields: Readonly<Record<string, unknown>>): Document | string {
  const instruction = textOf(fields, "instruction");
  if (instruction !== undefined) {
    const match = FRAME.exec(instruction);
    if (!match) return '"instruction" is no prompt of LLM-Adapters for PIQA';
    const gold = Number(/^solution([12])$/.exec(String(fields.answer))?.[1]) - 1;
    return choiceDocument(match[1]!, [match[2]!, match[3]!], gold, fields);
  }
  const [goal, sol1, sol2] = ["goal", "sol1", "sol2"].map((key) => textOf(fields, key));
  if (goal === undefined || sol1 === undefined || sol2 === undefined) return 'needs "goal", "sol1" and "sol2"';
  return choiceDocument(goal, [sol1, sol2], Number(fields.label), fields);
}

const piqa: Task = {
  name: "piqa",
  title: "PIQA: which of two ways does the job",
  data: {
    hub: "hf:baber/piqa",
    files: {
      validation: ["llm-adapters/piqa/test.json"],
      train: ["piqa/train.jsonl", "piqa/train-reconstructed-{1,2}.jsonl"],
    },
  },
  credit: { source: "PIQA, yonatanbisk.com/piqa", licence: "AFL-3.0" },
  read,
  protocols: {
    hu2023: hu2023({
      split: "validation",
      instruction: ({ question, choices }) =>
        `Please choose the correct solution to the question: ${question}\n\nSolution1: ${choices[0]}\n\nSolution2: ${choices[1]}\n\nAnswer format: solution1/solution2`,
      answer: ({ gold }) => `solution${gold + 1}`,
      extraction: { kind: "pattern", pattern: "solution1|solution2" },
    }),
    "lm-eval": questionAnswer("validation", {
      shots: { count: 0, from: "train", order: "sampled", spare: 1 },
    }),
  },
};

export const tasks = [piqa];
