/** @file Measures one adapter, or the bare backbone, on one of a grid's evaluations, as `milora eval` does. */
import { Adapter } from "../../methods/index.ts";
import { loadRows, PromptTemplate, templateOf } from "../../training/index.ts";
import { evaluateTask } from "../evaluate.ts";
import { exactMatch } from "../exact-match.ts";
import { knownTraining, runConfigOf } from "../overlap.ts";
import type { CellContext, WorkCell } from "../paper/work.ts";
import { perplexity } from "../perplexity.ts";
import { findTasks } from "../registry.ts";
import { loadLabelledRows } from "../rows.ts";
import { RowStore } from "../store.ts";
import type { Evaluation } from "./schema.ts";

/** What is measured of an adapter. */
export interface Score {
  readonly kind: "score";
  readonly evaluation: Evaluation;
  /** Undefined: that of the cell's run; null: none. */
  readonly adapter: string | null | undefined;
}

export interface ScoreCell extends WorkCell {
  readonly cell: Score;
}

/** The result of a cell. */
export interface Scored {
  readonly metric: string;
  readonly value: number;
  /** At 95 %. */
  readonly interval: readonly [low: number, high: number] | null;
  readonly rows: number;
  /** 0 or 1 for each row, and what was read out of each output; empty for perplexity. */
  readonly scores: readonly number[];
  readonly answers: readonly (string | null)[];
  /** All that decided the number, without the rows. */
  readonly result: object;
}

/** Rows of `data` are answered in at most so many tokens, as in LLM-Adapters. */
const ANSWER_TOKENS = 32;

/** What the adapter was trained with, unless something else is asked for. */
export function templateFor({ template }: Evaluation, adapter: string | undefined, trained?: string): string {
  return template ?? trained ?? (adapter === undefined ? undefined : runConfigOf(adapter)?.data.template) ?? "alpaca";
}

export async function measureScore(planned: ScoreCell, context: CellContext): Promise<Scored> {
  const { models, store, signal, onProgress } = context;
  const { evaluation, adapter: named } = planned.cell;
  const directory = named === undefined ? store.adapter(planned.run!.id) : (named ?? undefined);
  const engine = await models.engine(planned.model, planned.holding);
  const { tokenizer } = engine.backbone;
  using adapter = directory === undefined ? undefined : Adapter.load(directory, engine.backbone.config);
  const template = templateOf(templateFor(evaluation, directory));
  const training = await knownTraining(directory);
  const { limit, beams, max_new_tokens: most, seed } = evaluation;
  if (evaluation.task !== undefined) {
    const [task] = await findTasks([evaluation.task], evaluation.protocol);
    const { samples, ...result } = await evaluateTask(engine, task!, {
      ...{ protocol: evaluation.protocol, data: { directory: evaluation.data_dir }, shots: evaluation.num_fewshot },
      ...{ limit, beams, seed, template, adapter, training, signal, onProgress },
      ...(most !== undefined && { maxNewTokens: most }),
      store: new RowStore(store.rowsPath(planned.run?.id ?? planned.id)),
    });
    const { metric, filter, value, interval } = result.metrics.at(-1)!;
    return {
      ...{ metric: filter === "none" ? metric : `${metric} (${filter})`, value, interval, rows: samples.length },
      scores: samples.map(({ scores }) => scores[filter]![metric]!),
      answers: samples.map(({ answers }) => answers[filter] ?? null),
      result,
    };
  }
  const free = template instanceof PromptTemplate;
  const common = { template, ...(adapter && { adapter }) };
  if (evaluation.metric === "perplexity") {
    const rows = (await loadRows(evaluation.data!, { free })).slice(0, limit);
    const { perplexity: value, ...result } = await perplexity(engine, tokenizer, rows, common);
    signal?.throwIfAborted();
    return { metric: "perplexity", value, interval: null, rows: rows.length, scores: [], answers: [], result };
  }
  const rows = (await loadLabelledRows(evaluation.data!, { free })).slice(0, limit);
  const { rows: scored, ...result } = await exactMatch(engine, tokenizer, rows, {
    ...{ ...common, training, beams, maxNewTokens: most ?? ANSWER_TOKENS, onProgress, ...(signal && { signal }) },
  });
  return {
    ...{ metric: "accuracy", value: result.accuracy.value, interval: result.accuracy.interval, rows: scored.length },
    scores: scored.map(({ correct }) => Number(correct)),
    answers: scored.map(({ extracted }) => extracted),
    result,
  };
}
