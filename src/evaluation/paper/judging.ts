/** @file MT-Bench in the paper's tables: answered through an adapter, rated by the judge that the flags name. */
import { sum } from "../../base/index.ts";
import type { Engine } from "../../generation/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { Template } from "../../training/index.ts";
import { judgedQuestions } from "../answers.ts";
import { answerTask, conversationForm } from "../conversation.ts";
import { gradeSingle, type Judge } from "../judge/index.ts";
import { loadTasks } from "../registry.ts";
import { RowStore } from "../store.ts";
import type { Data } from "./data.ts";
import type { MeasureContext } from "./measure.ts";
import type { PlannedCell } from "./plan.ts";
import type { Scope, Values } from "./study.ts";

/** What adapters are trained with, and asked in. */
export const TEMPLATE: Template = "alpaca";

/** The task that a judge marks. */
export const JUDGED = "mt_bench";

/** Questions as far as the preset has them. */
export async function judgedRows(scope: Scope, data: Data) {
  const task = (await loadTasks()).get(JUDGED)!;
  const { form } = conversationForm(task);
  const { digest, documents } = await data.test(task);
  return { task, form, digest, documents: documents.slice(0, scope.limit) };
}

/** All that decides a rating, besides the adapter; and how many turns there are. */
export async function judgedCell(scope: Scope, data: Data, { endpoint }: Judge) {
  const { form, digest, documents } = await judgedRows(scope, data);
  const { url, model, temperature = null, maxTokens } = endpoint;
  const decided = [JUDGED, form.version, digest, scope.limit, scope.maxNewTokens, url, model, temperature, maxTokens];
  return { decided, turns: sum(documents.map(({ turns }) => turns!.length)) };
}

/** Answers and rates. Answers are kept by themselves: another judge finds them made. */
export async function judgedOf(
  planned: PlannedCell,
  engine: Engine,
  adapter: Adapter,
  { scope, data, store, judge, signal, onProgress }: MeasureContext,
): Promise<Values["judged"]> {
  const { task, form } = await judgedRows(scope, data);
  const { maxNewTokens: most } = scope;
  const { samples, ...result } = await answerTask(engine, task, {
    data: { directory: data.directory },
    limit: scope.limit,
    template: TEMPLATE,
    ...(most !== undefined && { maxNewTokens: Math.min(most, form.maxNewTokens) }),
    adapter,
    store: new RowStore(store.rowsPath(planned.run!.id)),
    signal,
    onProgress: (done, total) => onProgress(done, 2 * total),
  });
  const turns = sum(samples.map(({ answers }) => answers.length));
  const { scores, judgments } = await gradeSingle(judge!, await judgedQuestions(task, form, samples), {
    signal,
    onProgress: (done, open) => onProgress(2 * turns - open + done, 2 * turns),
  });
  const { value, interval, unjudged } = scores.overall;
  return {
    value,
    interval,
    unjudged,
    judge: judge!.endpoint.model,
    scores,
    ratings: judgments.map(({ rating }) => rating ?? null),
    result,
  };
}
