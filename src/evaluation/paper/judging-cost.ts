/** @file What judging a plan's conversations may cost, before any of them is answered. */
import { judgedQuestions } from "../answers.ts";
import { type JudgingCost, judgingCost, type Prices, requestsOf } from "../judge/index.ts";
import { judgedRows } from "./judging.ts";
import type { Plan } from "./plan.ts";
import { openCells } from "./run.ts";
import type { World } from "./work.ts";

/**
 * What judging the open cells of a plan may cost: their answers are not known yet, and counted as long as they may be.
 * Undefined where nothing is to be judged.
 */
export async function judgingOfPlan(plan: Plan, world: World, prices?: Prices): Promise<JudgingCost | undefined> {
  const { judge, data } = world;
  const cells = openCells(plan).filter(({ cell, problem }) => cell.kind === "judged" && !problem).length;
  if (!judge || cells === 0) return undefined;
  const { task, form, documents } = await judgedRows(plan.scope, data);
  const { backbone, maxNewTokens } = plan.scope;
  const context = backbone?.maxPositions ?? Number.POSITIVE_INFINITY;
  const most = Math.min(form.maxNewTokens, maxNewTokens ?? Math.floor(context / 4));
  const longest = "word".repeat(most);
  const samples = documents.map((document, row) => ({ row, document, answers: document.turns!.map(() => longest) }));
  const one = judgingCost(judge, requestsOf(await judgedQuestions(task, form, samples)), prices);
  const times = (value: number | null) => (value === null ? null : value * cells);
  return {
    judgments: one.judgments * cells,
    known: one.known * cells,
    calls: one.calls * cells,
    promptTokens: one.promptTokens * cells,
    completionTokens: one.completionTokens * cells,
    mostCompletionTokens: one.mostCompletionTokens * cells,
    money: times(one.money),
    mostMoney: times(one.mostMoney),
  };
}
