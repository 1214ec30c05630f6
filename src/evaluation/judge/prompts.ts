/** @file What a judge is asked: FastChat's prompts for one answer or two, with a reference where the category needs one. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { z } from "zod";

// FastChat, fastchat/llm_judge/data/judge_prompts.jsonl at 0e6d3e4b, unchanged; Apache-2.0 (assets/judge/README.md).
const FILE = fileURLToPath(new URL("../../../assets/judge/prompts.jsonl", import.meta.url)); // same place from src/ and dist/

const promptSchema = z.object({
  name: z.string(),
  type: z.enum(["single", "pairwise"]),
  system_prompt: z.string(),
  prompt_template: z.string(),
});
type Prompt = z.infer<typeof promptSchema>;

/** A message as the OpenAI protocol has it. */
export interface JudgeMessage {
  readonly role: "system" | "user";
  readonly content: string;
}

/** A question of one or two turns. */
export interface JudgedQuestion {
  /** As its data set numbers it. */
  readonly id: string | number;
  readonly category: string;
  readonly turns: readonly string[];
  /** A reference answer for each turn; given, the judge sees them. */
  readonly references?: readonly string[];
}

/** The turn that is judged, from 1. The second is judged with the first before it. */
export type Turn = 1 | 2;

let loaded: ReadonlyMap<string, Prompt> | undefined;

function promptOf(name: string): Prompt {
  if (!loaded) {
    const lines = readFileSync(FILE, "utf8").split("\n").filter(Boolean);
    loaded = new Map(lines.map((line) => promptSchema.parse(JSON.parse(line))).map((prompt) => [prompt.name, prompt]));
  }
  return loaded.get(name)!;
}

/** FastChat's name of the prompt, such as `pair-math-v1-multi-turn`. */
export function promptName(kind: "single" | "pair", question: JudgedQuestion, turn: Turn): string {
  const general = kind === "single" ? "single-v1" : "pair-v2";
  return `${question.references ? `${kind}-math-v1` : general}${turn === 2 ? "-multi-turn" : ""}`;
}

/** As Python's `str.format`: every field once, nothing in what is filled in. */
function filled({ system_prompt, prompt_template }: Prompt, fields: Readonly<Record<string, string>>): JudgeMessage[] {
  const content = prompt_template.replace(/\{(\w+)\}/g, (_, name: string) => fields[name]!);
  return [
    { role: "system", content: system_prompt },
    { role: "user", content },
  ];
}

function questionFields({ turns, references = [] }: JudgedQuestion): Record<string, string> {
  const [first = "", second = ""] = turns;
  const [ref_answer_1 = "", ref_answer_2 = ""] = references;
  return { question: first, question_1: first, question_2: second, ref_answer_1, ref_answer_2 };
}

/** Asks for a rating from 1 to 10. @param answers one for each turn up to the one that is judged */
export function singleMessages(question: JudgedQuestion, answers: readonly string[], turn: Turn): JudgeMessage[] {
  const [first = "", second = ""] = answers;
  const fields = { ...questionFields(question), answer: first, answer_1: first, answer_2: second };
  return filled(promptOf(promptName("single", question, turn)), fields);
}

/** Asks which of two is better. */
export function pairMessages(
  question: JudgedQuestion,
  a: readonly string[],
  b: readonly string[],
  turn: Turn,
): JudgeMessage[] {
  const [answer_a_1 = "", answer_a_2 = ""] = a;
  const [answer_b_1 = "", answer_b_2 = ""] = b;
  const answers = { answer_a: answer_a_1, answer_b: answer_b_1, answer_a_1, answer_a_2, answer_b_1, answer_b_2 };
  return filled(promptOf(promptName("pair", question, turn)), { ...questionFields(question), ...answers });
}
