/** @file OpenBookQA (Mihaylov et al. 2018): elementary science, one fact and common sense away. */
import { adaptersChoices, hu2023, questionAnswer, readLabelledChoices } from "../forms.ts";
import type { Task } from "../task.ts";

const openbookqa: Task = {
  name: "openbookqa",
  title: "OpenBookQA: elementary science, without the book",
  data: {
    hub: "hf:allenai/openbookqa:main",
    files: {
      test: ["openbookqa/test.jsonl", "llm-adapters/openbookqa/test.json"],
      validation: ["openbookqa/dev.jsonl", "openbookqa/dev-reconstructed.jsonl"],
      train: ["openbookqa/train.jsonl", "llm-adapters/openbookqa/train.json"],
    },
  },
  credit: { source: "OpenBookQA, allenai.org/data/open-book-qa", licence: "Apache-2.0" },
  read: readLabelledChoices,
  protocols: {
    hu2023: hu2023({
      split: "test",
      instruction: adaptersChoices,
      answer: ({ gold }) => `answer${gold + 1}`,
      extraction: { kind: "pattern", pattern: "answer1|answer2|answer3|answer4|answer5" },
    }),
    "lm-eval": questionAnswer("test", { prompt: ({ question }) => question }),
  },
};

export const tasks = [openbookqa];
