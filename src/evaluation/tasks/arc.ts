/** @file ARC (Clark et al. 2018): questions of science exams, the easy and the challenge set. */
import { adaptersChoices, hu2023, questionAnswer, readLabelledChoices } from "../forms.ts";
import type { Task } from "../task.ts";

const arc = (name: string, title: string): Task => ({
  name,
  title: `${title}: questions of science exams`,
  data: {
    hub: `hf:allenai/ai2_arc:${title}`,
    files: {
      test: [`llm-adapters/${title}/test.json`],
      validation: [`arc/${title}-Dev.jsonl`],
      train: [`arc/${title}-Train.jsonl`, `llm-adapters/${title}/train.json`],
    },
  },
  credit: { source: "AI2 Reasoning Challenge, allenai.org/data/arc", licence: "CC BY-SA 4.0" },
  read: readLabelledChoices,
  protocols: {
    hu2023: hu2023({
      split: "test",
      instruction: adaptersChoices,
      answer: ({ gold }) => `answer${gold + 1}`,
      extraction: { kind: "pattern", pattern: "answer1|answer2|answer3|answer4|answer5" },
    }),
    "lm-eval": questionAnswer("test"),
  },
});

export const tasks = [arc("arc_easy", "ARC-Easy"), arc("arc_challenge", "ARC-Challenge")];
