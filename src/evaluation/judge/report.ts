/** @file Judgements as FastChat writes them, for tools that read its files (show_result.py among them). */
import type { Judgment } from "./grade.ts";

export interface JudgmentNames {
  readonly judge: string;
  readonly model: string;
  /** Of a comparison: the other model. */
  readonly baseline?: string | undefined;
}

const STRAIGHT = { A: "model_1", B: "model_2", tie: "tie" } as const;
const SWAPPED = { A: "model_2", B: "model_1", tie: "tie" } as const;

/** A line for each judgement, as in `model_judgment/JUDGE_single.jsonl` and `JUDGE_pair.jsonl`. */
export function judgmentsText(judgments: readonly Judgment[], { judge, model, baseline }: JudgmentNames): string {
  const tstamp = Date.now() / 1000;
  const rows = judgments.map(({ question, turn, prompt, asked, texts, rating, winners }) => {
    const about = { judge: [judge, prompt], turn, tstamp };
    if (!winners) {
      const said = { user_prompt: asked[0], judgment: texts[0], score: rating ?? -1 };
      return { question_id: question, model, ...said, ...about };
    }
    const [first, second] = winners;
    return {
      question_id: question,
      model_1: model,
      model_2: baseline,
      g1_winner: first ? STRAIGHT[first] : "error",
      g2_winner: second ? SWAPPED[second] : "error",
      g1_user_prompt: asked[0],
      g1_judgment: texts[0],
      g2_user_prompt: asked[1],
      g2_judgment: texts[1],
      ...about,
    };
  });
  return rows.map((row) => `${JSON.stringify(row)}\n`).join("");
}
