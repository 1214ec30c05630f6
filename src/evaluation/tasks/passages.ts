/** @file The two bundled tasks: which subject or author a passage is from; the tenants of `milora demo`. */
import { hu2023, textOf } from "../forms.ts";
import type { Document, Task } from "../task.ts";

/** `<question>\n\n<passage>\n\nAnswer format: a/b/c`, and the label as `answer`. */
function read(fields: Readonly<Record<string, unknown>>): Document | string {
  const match = /^([^\n]*)\n\n([\s\S]*)\n\nAnswer format: (.*)$/.exec(textOf(fields, "instruction") ?? "");
  if (!match) return '"instruction" is no question, passage and answer format';
  const [, , question, format] = match as unknown as [string, string, string, string];
  const choices = format.split("/");
  const answer = textOf(fields, "answer") ?? "";
  const gold = choices.indexOf(answer);
  return gold < 0
    ? `its answer "${answer}" is none of those listed`
    : { question, choices, gold, target: answer, fields };
}

const passages = (name: string, title: string, labels: string, credit: Task["credit"]): Task => ({
  name,
  title,
  data: { bundled: `data/${name}` },
  credit,
  read,
  protocols: {
    hu2023: hu2023({
      split: "test",
      instruction: ({ fields }) => String(fields.instruction),
      answer: ({ target }) => target,
      extraction: { kind: "labels", labels: labels.split(" ") },
    }),
  },
});

export const tasks = [
  passages(
    "subjects",
    "Subjects: which textbook a passage is from",
    "government anatomy astronomy chemistry physics anthropology philosophy sociology statistics microbiology economics psychology",
    { source: "textbooks of OpenStax, Rice University", licence: "CC BY 4.0" },
  ),
  passages(
    "authors",
    "Authors: who wrote a passage",
    "austen doyle stevenson carroll wells london twain kipling alcott grahame",
    { source: "novels in the editions of Standard Ebooks", licence: "CC0" },
  ),
];
