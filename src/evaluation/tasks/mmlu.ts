/** @file MMLU (Hendrycks et al. 2021): 57 subjects with four options, five solved questions of the subject in front. */
import { choiceDocument, questionAnswer, textOf } from "../forms.ts";
import type { Document, Task } from "../task.ts";

/** By the harness's categories. */
const SUBJECTS = {
  humanities:
    "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law world_religions",
  other:
    "business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology",
  social_sciences:
    "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations security_studies sociology us_foreign_policy",
  stem: "abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science college_mathematics college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics high_school_statistics machine_learning",
} as const;

const LETTERS = ["A", "B", "C", "D"];

/** `{question, choices, answer: 0 … 3}` on the hub, `question, A, B, C, D, answer` in the authors' files. */
function read(fields: Readonly<Record<string, unknown>>): Document | string {
  const question = textOf(fields, "question");
  if (question === undefined) return 'missing "question"';
  const choices = Array.isArray(fields.choices)
    ? fields.choices.map(String)
    : LETTERS.flatMap((letter) => textOf(fields, letter) ?? []);
  const answer = String(fields.answer).trim();
  return choiceDocument(question, choices, /^[A-D]$/.test(answer) ? LETTERS.indexOf(answer) : Number(answer), fields);
}

const mmlu = (category: string, subject: string): Task => ({
  name: `mmlu_${subject}`,
  title: `MMLU, ${subject.replaceAll("_", " ")}`,
  groups: ["mmlu", `mmlu_${category}`],
  data: {
    hub: `hf:cais/mmlu:${subject}`,
    files: Object.fromEntries(
      ["dev", "val", "test"].map((split) => [split, [`mmlu/${split}/${subject}_${split}.csv`]]),
    ),
    columns: ["question", ...LETTERS, "answer"],
  },
  credit: { source: "MMLU, github.com/hendrycks/test", licence: "MIT" },
  read,
  protocols: {
    "lm-eval": questionAnswer("test", {
      metrics: ["acc"],
      shots: { count: 5, from: "dev", order: "first" },
      description: `The following are multiple choice questions (with answers) about ${subject.replaceAll("_", " ")}.\n\n`,
      prompt: ({ question, choices }) =>
        `${question.trim()}\n${choices.map((choice, i) => `${LETTERS[i]}. ${choice}\n`).join("")}Answer:`,
      choices: () => LETTERS,
    }),
  },
});

export const tasks = Object.entries(SUBJECTS).flatMap(([category, subjects]) =>
  subjects.split(" ").map((subject) => mmlu(category, subject)),
);
