/** @file MT-Bench (Zheng et al. 2023, arXiv 2306.05685): 80 questions of two turns, whose answers a judge rates. */
import { textOf, textsOf } from "../forms.ts";
import type { Document, Task } from "../task.ts";

/** FastChat's `temperature_config`; 0.7 for categories of one's own, as there. */
const TEMPERATURES: Readonly<Record<string, number>> = {
  writing: 0.7,
  roleplay: 0.7,
  extraction: 0,
  math: 0,
  coding: 0,
  reasoning: 0,
  stem: 0.1,
  humanities: 0.1,
};
/** FastChat's `NEED_REF_CATS`. */
const REFERENCED = new Set(["math", "reasoning", "coding"]);

/** `{question_id, category, turns}` of FastChat, `{prompt_id, category, prompt}` on the hub. */
function read(fields: Readonly<Record<string, unknown>>): Document | string {
  const turns = textsOf(fields.turns ?? fields.prompt);
  const category = textOf(fields, "category");
  const id = (fields.question_id ?? fields.prompt_id) as string | number | undefined;
  if (!turns || category === undefined) return 'needs "turns", a list of texts, and "category"';
  if (typeof id !== "number" && typeof id !== "string") return 'needs "question_id"';
  if (turns.length < 1 || turns.length > 2) return `has ${turns.length} turns; judges' prompts know one or two`;
  return { question: turns[0]!, turns, id, category, choices: [], gold: -1, target: "", fields };
}

const mtBench: Task = {
  name: "mt_bench",
  title: "MT-Bench: open questions of two turns, for a judge",
  data: { bundled: "data/mt_bench", files: { test: ["mt_bench/question.jsonl"] } },
  credit: { source: "FastChat, github.com/lm-sys/FastChat", licence: "Apache-2.0" },
  read,
  protocols: {
    fastchat: {
      kind: "conversation",
      version: 1,
      split: "test",
      shots: { count: 0, from: "test", order: "first" },
      prompt: ({ question }) => question,
      maxNewTokens: 1024,
      temperature: ({ category }) => TEMPERATURES[category!] ?? 0.7,
      topK: 50, // FastChat generates with transformers' defaults
      isReferenced: ({ category }) => REFERENCED.has(category!),
      references: "data/mt_bench/references.jsonl",
    },
  },
};

export const tasks = [mtBench];
