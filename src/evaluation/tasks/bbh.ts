/** @file BIG-Bench Hard (Suzgun et al. 2022): 27 tasks, answered step by step after three worked examples of each. */
import { readFileSync } from "node:fs";
import { textOf } from "../forms.ts";
import type { Document, Task } from "../task.ts";

/** Descriptions and worked examples, as the harness has them. */
const prompts = JSON.parse(
  readFileSync(new URL("../../../assets/tasks/bbh-cot.json", import.meta.url), "utf8"), // same place from dist/
) as Record<string, { description: string; samples: { input: string; target: string }[] }>;

const documentOf = (question: string, target: string, fields: Readonly<Record<string, unknown>>): Document => ({
  question,
  choices: [],
  gold: -1,
  target,
  fields,
});

/** `{input, target}`, or the authors' files: one object with all `examples`. */
function read(fields: Readonly<Record<string, unknown>>): Document | readonly Document[] | string {
  if (Array.isArray(fields.examples)) {
    const documents = fields.examples.map((example) => read(example as Record<string, unknown>) as Document | string);
    return documents.find((document) => typeof document === "string") ?? (documents as Document[]);
  }
  const [input, target] = [textOf(fields, "input"), textOf(fields, "target")];
  return input === undefined || target === undefined ? 'needs "input" and "target"' : documentOf(input, target, fields);
}

const bbh = (name: string): Task => {
  const { description, samples } = prompts[name]!;
  return {
    name: `bbh_${name}`,
    title: `BIG-Bench Hard, ${name.replaceAll("_", " ")}`,
    groups: ["bbh"],
    data: { hub: `hf:SaylorTwift/bbh:${name}`, files: { test: [`bbh/${name}.json`] } },
    credit: { source: "BIG-Bench Hard, github.com/suzgunm/BIG-Bench-Hard", licence: "MIT" },
    read,
    protocols: {
      "lm-eval": {
        kind: "generate",
        version: 4,
        harnessName: `bbh_cot_fewshot_${name}`,
        split: "test",
        shots: {
          count: 3,
          from: samples.map((sample) => documentOf(sample.input, sample.target, sample)),
          order: "first",
        },
        description,
        prompt: ({ question }) => `Q: ${question}\nA: Let's think step by step.\n`,
        promptIs: "text",
        delimiter: "",
        stop: ["</s>", "Q", "\n\n"],
        maxNewTokens: 1024,
        metric: "exact_match",
        readings: [
          {
            name: "get-answer",
            rule: "(?<=the answer is )(.*)(?=.)",
            read: (text) => /(?<=the answer is )[^\n]*(?=[^\n])/.exec(text)?.[0].trim() ?? "[invalid]",
            isCorrect: (answer, { target }) => answer === target,
          },
        ],
      },
    },
  };
};

export const tasks = Object.keys(prompts).map(bbh);
