/** @file The protocol of LLM-Adapters: its prompts out of every format, its reading of answers as the reference has it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { formOf, loadTasks } from "./registry.ts";
import type { Document, GenerateForm } from "./task.ts";

const root = join(import.meta.dirname, "../..");

interface Choices {
  readonly texts: readonly string[];
  readonly answer: string;
  readonly read: readonly (string | null)[];
  readonly right: readonly boolean[];
}
const { gsm8k, aqua, ...named } = JSON.parse(
  readFileSync(join(root, "test/fixtures/lm-eval/hu2023.json"), "utf8"),
) as Record<string, Choices> & {
  readonly gsm8k: unknown;
  readonly aqua: unknown;
};

async function formOfTask(name: string): Promise<GenerateForm> {
  return formOf((await loadTasks()).get(name)!, "hu2023") as GenerateForm;
}

async function documentOf(task: string, fields: Record<string, unknown>): Promise<Document> {
  const document = (await loadTasks()).get(task)!.read(fields);
  if (typeof document === "string") throw new Error(document);
  return document as Document;
}

test.each(Object.entries(named))("answers of %s", async (task, { texts, answer, read, right }) => {
  const [reading] = (await formOfTask(task)).readings;
  const document = { question: "", choices: [], gold: -1, target: "", fields: { instruction: "", answer } };
  const own = texts.map((text) => reading!.read(text, document) ?? null);
  expect(own).toEqual(read);
  expect(own.map((found) => found !== null && reading!.isCorrect(found, document))).toEqual(right);
});

test("answers of gsm8k", async () => {
  const [reading] = (await formOfTask("gsm8k")).readings;
  for (const { answer, texts, right } of gsm8k as readonly Choices[]) {
    const document = { question: "", choices: [], gold: -1, target: "", fields: { instruction: "", answer } };
    const own = texts.map((text) => reading!.read(text, document));
    expect(own.map((found) => found !== undefined && reading!.isCorrect(found, document))).toEqual(right);
  }
});

test("answers of aqua", async () => {
  const { texts, read } = aqua as Choices;
  const [reading] = (await formOfTask("aqua")).readings;
  expect(texts.map((text) => reading!.read(text, {} as Document) ?? null)).toEqual(read);
});

test("one prompt, whatever format a question comes in", async () => {
  const arc = [
    {
      instruction:
        "Please choose the correct answer to the question: What is hot?\n\nAnswer1: ice Answer2: fire Answer3: a stone\n\nAnswer format: answer1/answer2/answer3",
      answer: "answer2",
    },
    {
      question: "What is hot?",
      choices: { text: ["ice", "fire", "a stone"], label: ["1", "2", "3"] },
      answerKey: "2",
    },
    {
      question: {
        stem: "What is hot?",
        choices: [
          { text: "ice", label: "A" },
          { text: "fire", label: "B" },
          { text: "a stone", label: "C" },
        ],
      },
      answerKey: "B",
    },
  ];
  const piqa = [
    {
      instruction:
        "Please choose the correct solution to the question: boil water\n\nSolution1: heat it\n\nSolution2: cool it\n\nAnswer format: solution1/solution2",
      answer: "solution1",
    },
    { goal: "boil water", sol1: "heat it", sol2: "cool it", label: 0 },
  ];
  const boolq = [
    {
      instruction:
        "Please answer the following question with true or false, question: is it so?\n\nAnswer format: true/false",
      answer: "true",
    },
    { question: "is it so", passage: "It is so.", label: 1 },
    { question: "is it so", passage: "It is so.", answer: true },
  ];
  const aqua = [
    { instruction: "2 + 2? Answer Choices: (A) 1 (B) 4 (C) 5", answer: "B" },
    { question: "2 + 2?", options: ["A)1", "B)4", "C)5"], correct: "B" },
    {
      query: "Q: 2 + 2? Answer Choices: (A)1 (B)4 (C)5\nA: Among A through E, the answer is",
      choices: ["(A)1", "(B)4", "(C)5"],
      gold: [1],
    },
  ];
  for (const [task, rows] of Object.entries({ arc_easy: arc, openbookqa: arc, piqa, boolq, aqua })) {
    const form = await formOfTask(task);
    const documents = await Promise.all(rows.map((fields) => documentOf(task, fields)));
    expect(new Set(documents.map((document) => form.prompt(document)))).toEqual(new Set([rows[0]!.instruction]));
    expect(new Set(documents.map(({ gold }) => gold))).toEqual(new Set([documents[0]!.gold]));
    const [reading] = form.readings;
    const right = { arc_easy: "answer2", openbookqa: "answer2", piqa: "solution1", boolq: "true", aqua: "B" }[task]!;
    for (const document of documents) {
      expect(reading!.isCorrect(right, document)).toBe(true);
      expect(reading!.isCorrect("answer1", document)).toBe(false);
    }
  }
});

test("what a row lacks is said", async () => {
  const problem = async (task: string, fields: Record<string, unknown>) => (await loadTasks()).get(task)!.read(fields);
  expect(await problem("arc_easy", { question: "x" })).toBe('missing "choices"');
  expect(await problem("arc_easy", { instruction: "Say it." })).toMatch(/no prompt of LLM-Adapters/);
  expect(await problem("piqa", { goal: "x", sol1: "a" })).toMatch(/needs "goal", "sol1" and "sol2"/);
  expect(await problem("boolq", { question: "x", label: 7 })).toBe("its answer is none of its choices");
  expect(await problem("mmlu_anatomy", { question: "x", choices: ["a", "b", "c", "d"], answer: "E" })).toBe(
    "its answer is none of its choices",
  );
  expect(await problem("bbh_snarks", { examples: [{ input: "x" }] })).toBe('needs "input" and "target"');
  expect(await problem("subjects", { instruction: "Q\n\npassage\n\nAnswer format: a/b", answer: "c" })).toMatch(
    /none of/,
  );
});
