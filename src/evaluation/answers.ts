/** @file Answers to conversations as FastChat keeps them, and what a judge is given of them. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { z } from "zod";
import { InputError } from "../base/index.ts";
import { readRecords, shorten } from "../training/index.ts";
import type { AnsweredRow } from "./conversation.ts";
import type { AnsweredQuestion } from "./judge/index.ts";
import { loadSplit } from "./load.ts";
import type { ConversationForm, Document, Task } from "./task.ts";

const ASSETS = fileURLToPath(new URL("../../assets/", import.meta.url)); // same place from src/ and dist/

const answerSchema = z.object({
  question_id: z.union([z.string(), z.number()]),
  model_id: z.string().optional(),
  choices: z.array(z.object({ turns: z.array(z.string()) })).min(1),
});

/** A model's answers, by question. */
export interface Answers {
  readonly model: string;
  readonly turns: ReadonlyMap<string, readonly string[]>;
}

/** A file as FastChat's `model_answer/MODEL.jsonl`. */
export function answersText(model: string, samples: readonly AnsweredRow[]): string {
  const lines = samples.map(({ document, answers }) => {
    const said = JSON.stringify([model, document.id, answers]);
    const row = {
      question_id: document.id,
      answer_id: createHash("sha256").update(said).digest("hex").slice(0, 22),
      model_id: model,
      choices: [{ index: 0, turns: answers }],
      tstamp: Date.now() / 1000,
    };
    return `${JSON.stringify(row)}\n`;
  });
  return lines.join("");
}

/**
 * Answers of milora or of FastChat; the first of several choices. @param name of the model, where the file has none
 * @throws InputError FILE_UNREADABLE, DATA_INVALID naming the bad rows
 */
export async function readAnswers(path: string, name = path): Promise<Answers> {
  const turns = new Map<string, readonly string[]>();
  const bad: string[] = [];
  let model: string | undefined;
  for (const record of await readRecords(path)) {
    const found = "problem" in record ? undefined : answerSchema.safeParse(record.value);
    if (!found?.success) {
      const problem = "problem" in record ? record.problem : 'needs "question_id" and "choices" with "turns"';
      bad.push(`row ${record.number}: ${problem}`);
      continue;
    }
    const { question_id, model_id, choices } = found.data;
    model ??= model_id;
    turns.set(String(question_id), choices[0]!.turns);
  }
  if (bad.length) throw new InputError("DATA_INVALID", `${path} (answers)`, shorten(bad));
  return { model: model ?? name, turns };
}

/** The answers to documents. @throws InputError DATA_INVALID naming the questions that lack some */
export function answersTo(documents: readonly Document[], answers: Answers, path: string): AnsweredRow[] {
  const lacking = documents.filter(({ id, turns }) => (answers.turns.get(String(id))?.length ?? 0) < turns!.length);
  if (lacking.length) {
    const problems = lacking.map(({ id, turns }) => `no answers to the ${turns!.length} turns of question ${id}`);
    throw new InputError("DATA_INVALID", path, shorten(problems, 5));
  }
  return documents.map((document, row) => {
    const own = answers.turns.get(String(document.id))!;
    return { row, document, answers: own.slice(0, document.turns!.length) };
  });
}

/**
 * What a judge is to read: questions with answers, reference answers where the form has them shown.
 * @param references a file in FastChat's form instead of the task's own
 * @throws InputError DATA_INVALID naming questions without reference answers
 */
export async function judgedQuestions(
  task: Task,
  form: ConversationForm,
  samples: readonly AnsweredRow[],
  references?: string,
): Promise<AnsweredQuestion[]> {
  const wanted = samples.map(({ document }) => document).filter((document) => form.isReferenced(document));
  const known = wanted.length === 0 ? undefined : await referencesOf(task, form, references);
  const turnsOf = (document: Document) => (form.isReferenced(document) ? known!(document) : undefined);
  const lacking = wanted.filter((document) => (turnsOf(document)?.length ?? 0) < document.turns!.length);
  if (lacking.length) {
    const problems = lacking.map(({ id }) => `no reference answers for question ${id}`);
    const where = references ?? `${task.name} (--judge-references names a file with those of other questions)`;
    throw new InputError("DATA_INVALID", where, shorten(problems, 5));
  }
  return samples.map(({ document, answers }) => {
    const own = turnsOf(document);
    const { id, category = task.name, turns } = document;
    return { question: { id: id!, category, turns: turns!, ...(own && { references: own }) }, answers };
  });
}

async function referencesOf(
  task: Task,
  form: ConversationForm,
  path: string | undefined,
): Promise<(document: Document) => readonly string[] | undefined> {
  const { turns } = await readAnswers(path ?? join(ASSETS, form.references));
  if (path !== undefined) return ({ id }) => turns.get(String(id));
  // Another data set may have questions of the same numbers.
  const { documents } = await loadSplit(task, form.split, {});
  const own = new Map(documents.map((document) => [document.id, JSON.stringify(document.turns)]));
  return ({ id, turns: asked }) => (own.get(id) === JSON.stringify(asked) ? turns.get(String(id)) : undefined);
}
