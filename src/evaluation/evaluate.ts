/** @file Measures a model on a task under a protocol: rows to prompts, outputs to scores, and all that decides the number. */
import { InputError, mean, sum } from "../base/index.ts";
import type { Engine } from "../generation/index.ts";
import type { Tokenizer } from "../models/index.ts";
import { shorten, type Template } from "../training/index.ts";
import type { Extraction } from "./extract.ts";
import { accuracyOf, bootstrapInterval, standardError } from "./interval.ts";
import { type DataOptions, loadSplit, type Rows } from "./load.ts";
import { type Ask, checkRoom, type Decoding, measure, type TaskOptions } from "./measure.ts";
import { findOverlap, type Overlap, type TrainingTexts, textOfDocument } from "./overlap.ts";
import { choicesOf, contextsOf, continuedTokens, encodePair, instructionTokens } from "./prompts.ts";
import { formOf, rowFormOf } from "./registry.ts";
import { digestOf, type RowOutput } from "./store.ts";
import type { ChoiceForm, Document, Form, GenerateForm, Protocol, Task } from "./task.ts";

export interface EvaluateOptions extends TaskOptions {
  readonly protocol: Protocol;
  /** Shots instead of the task's own number. */
  readonly shots?: number | undefined;
  /** Of drawing shots (the harness's default) and of the bootstrap. Default 1234. */
  readonly seed?: number | undefined;
  /** How instructions become prompts; must be what the adapter was trained with. Default alpaca. */
  readonly template?: Template | undefined;
  /** Training rows to look for the test's questions in; or why there are none. */
  readonly training?: TrainingTexts | { readonly skipped: string } | undefined;
}

/** A mean over rows, with how sure it is. */
export interface Metric {
  readonly metric: string;
  /** How answers were read; `none` where there is nothing to read. */
  readonly filter: string;
  readonly value: number;
  readonly stderr: number | null;
  /** Wilson's interval at 95 %. */
  readonly interval: readonly [low: number, high: number];
  /** Percentiles of 1000 resamples of the rows. */
  readonly bootstrap: readonly [low: number, high: number];
}

export interface Sample {
  /** In the split, from 0. */
  readonly row: number;
  readonly document: Document;
  /** What the model was given, shots and all. */
  readonly context: string;
  readonly choices: readonly string[];
  readonly output: RowOutput;
  /** By filter, what was read out of the output. */
  readonly answers: Readonly<Record<string, string | null>>;
  /** By filter, then metric: 0 or 1. */
  readonly scores: Readonly<Record<string, Readonly<Record<string, number>>>>;
}

/** Everything that decides the numbers, and the numbers. */
export interface TaskResult {
  readonly task: string;
  readonly title: string;
  readonly groups: readonly string[];
  readonly protocol: Protocol;
  readonly version: number;
  readonly harnessName: string;
  readonly shots: { readonly count: number; readonly order: string; readonly source: string | null };
  readonly seed: number;
  readonly data: { readonly source: string; readonly split: string; readonly digest: string; readonly rows: number };
  /** Rows measured. */
  readonly rows: number;
  /** sha256 of all prompts (and continuations) as token ids, in order. */
  readonly promptDigest: string;
  /** How instructions became prompts; null where prompts are the task's own text. */
  readonly template: Template | null;
  readonly decoding: Decoding | null;
  readonly extraction: Readonly<Record<string, Extraction | string>>;
  readonly backbone: string;
  readonly adapter: string | null;
  /** How the backbone was held. */
  readonly weights: Engine["backbone"]["weights"];
  readonly metrics: readonly Metric[];
  readonly overlap: Overlap | { readonly skipped: string };
  readonly samples: readonly Sample[];
}

/**
 * Measures one task.
 * @throws InputError DATA_INVALID, DATA_UNAVAILABLE, FILE_UNREADABLE, FLAG_INVALID, PROMPT_TOO_LONG
 */
export async function evaluateTask(engine: Engine, task: Task, options: EvaluateOptions): Promise<TaskResult> {
  const { protocol, data = {}, seed = 1234, adapter, signal } = options;
  const form = rowFormOf(task, protocol);
  const whole = await loadSplit(task, form.split, { ...data, signal });
  const documents = whole.documents.slice(0, options.limit);
  checkNeeds(task, form, documents, whole);
  const count = options.shots ?? form.shots.count;
  if (count > 0 && form.kind === "generate" && form.promptIs === "instruction") {
    throw new InputError("FLAG_INVALID", "--num-fewshot", `${task.name} under ${protocol} is asked without shots`);
  }
  const shots = count > 0 ? await loadShots(task, form, { ...data, signal }) : undefined;
  const contexts = contextsOf(form, documents, { count, pool: shots?.documents ?? [], seed });
  const { tokenizer } = engine.backbone;
  const context = engine.contextOf(adapter);
  const decoding = form.kind === "generate" ? decodingOf(form, context, options) : null;
  const template = form.kind === "generate" && form.promptIs === "instruction" ? (options.template ?? "alpaca") : null;
  const asks = documents.map((document, i): Ask => {
    const text = contexts[i]!;
    if (form.kind === "choice") return choiceAsk(tokenizer, form, document, text, context);
    const prompt = template
      ? instructionTokens(tokenizer, text, template)
      : continuedTokens(tokenizer, text, context - decoding!.maxNewTokens);
    return { kind: "generate", prompt, decoding: decoding! };
  });
  const outputs = await measure(engine, asks, { ...options, about: { task: task.name, protocol } });
  const samples = documents.map((document, row): Sample => {
    const output = outputs[row]!;
    const choices = form.kind === "choice" ? choicesOf(form, document) : [];
    const marks = form.kind === "choice" ? markChoice(form, document, output) : markText(form, document, output);
    return { row, document, context: contexts[row]!, choices, output, ...marks };
  });
  const { training = { skipped: "no training rows are known" } } = options;
  return {
    task: task.name,
    title: task.title,
    groups: task.groups ?? [],
    protocol,
    version: form.version,
    harnessName: form.harnessName ?? task.name,
    shots: { count, order: form.shots.order, source: shots?.source ?? null },
    seed,
    data: { source: whole.source, split: form.split, digest: whole.digest, rows: whole.documents.length },
    rows: documents.length,
    promptDigest: digestOf(asks.map((ask) => (ask.kind === "choice" ? ask.pairs : ask.prompt))),
    template,
    decoding,
    extraction:
      form.kind === "choice"
        ? { none: "the choice with the highest log-likelihood" }
        : Object.fromEntries(form.readings.map(({ name, rule }) => [name, rule])),
    backbone: engine.backbone.digest,
    adapter: adapter?.digest ?? null,
    weights: engine.backbone.weights,
    metrics: metricsOf(samples, seed),
    overlap: "skipped" in training ? training : findOverlap(documents.map(textOfDocument), training),
    samples,
  };
}

/**
 * Reads the rows of all tasks once, so that a long measurement does not end at the last task's missing file.
 * @throws InputError naming what is wrong with each
 */
export async function checkData(tasks: readonly Task[], options: Pick<EvaluateOptions, "protocol" | "data" | "shots">) {
  const errors: InputError[] = [];
  for (const task of tasks) {
    const form = formOf(task, options.protocol);
    try {
      const rows = await loadSplit(task, form.split, options.data ?? {});
      checkNeeds(task, form, rows.documents, rows);
      if ((options.shots ?? form.shots.count) > 0) await loadShots(task, form, options.data ?? {});
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      errors.push(error);
    }
  }
  if (errors.length === 1) throw errors[0];
  if (errors.length > 1) {
    const problems = shorten(
      errors.map(({ message }) => message),
      5,
    );
    throw new InputError(errors[0]!.code, "tasks", problems, { cause: errors[0] });
  }
}

function checkNeeds(task: Task, form: Form, documents: readonly Document[], { source }: Rows): void {
  const bad = documents.flatMap((document, i) =>
    (form.needs ?? []).filter((field) => document[field] === undefined).map((field) => `row ${i + 1}: no "${field}"`),
  );
  if (bad.length === 0) return;
  throw new InputError("DATA_INVALID", `${source} (${task.name} under this protocol)`, shorten(bad, 5));
}

async function loadShots(task: Task, form: Form, data: DataOptions): Promise<Pick<Rows, "documents" | "source">> {
  const { from } = form.shots;
  if (typeof from !== "string") return { documents: from, source: "the task's own" };
  return await loadSplit(task, from, data, false);
}

function decodingOf(form: GenerateForm, context: number, { beams = 1, maxNewTokens }: EvaluateOptions): Decoding {
  const most = maxNewTokens ?? form.maxNewTokens;
  checkRoom(most, context);
  return { beams, maxNewTokens: most, temperature: 0, stop: form.stop };
}

function choiceAsk(
  tokenizer: Tokenizer,
  form: ChoiceForm,
  document: Document,
  context: string,
  positions: number,
): Ask {
  const pairs = choicesOf(form, document).map((choice) => encodePair(tokenizer, context, ` ${choice}`, positions));
  return { kind: "choice", pairs };
}

/** Index of the largest; the first of equals, and none but numbers. */
function largest(values: readonly number[]): number {
  return values.reduce((best, value, i) => (value > values[best]! ? i : best), 0);
}

type Marks = Pick<Sample, "answers" | "scores">;

function markChoice(form: ChoiceForm, document: Document, output: RowOutput): Marks {
  if (output.kind !== "choice") throw new Error("a choice was measured as text");
  const choices = choicesOf(form, document);
  const sums = output.logLikelihoods;
  const normed = sums.map((sum, i) => sum / Math.max(1, [...choices[i]!].length)); // characters, not UTF-16 units
  const picked = { acc: largest(sums), acc_norm: largest(normed) };
  const scores = Object.fromEntries(form.metrics.map((name) => [name, picked[name] === document.gold ? 1 : 0]));
  return { answers: { none: choices[picked.acc]! }, scores: { none: scores } };
}

function markText(form: GenerateForm, document: Document, output: RowOutput): Marks {
  if (output.kind !== "generate") throw new Error("a text was measured as choices");
  const marks = form.readings.map((reading) => {
    const answer = reading.read(output.text, document);
    const right = answer !== undefined && reading.isCorrect(answer, document);
    return { name: reading.name, answer: answer ?? null, score: { [form.metric]: right ? 1 : 0 } };
  });
  return {
    answers: Object.fromEntries(marks.map(({ name, answer }) => [name, answer])),
    scores: Object.fromEntries(marks.map(({ name, score }) => [name, score])),
  };
}

function metricsOf(samples: readonly Sample[], seed: number): Metric[] {
  return Object.entries(samples[0]!.scores).flatMap(([filter, scores]) =>
    Object.keys(scores).map((metric): Metric => {
      const values = samples.map((sample) => sample.scores[filter]![metric]!);
      const { interval } = accuracyOf(sum(values), values.length);
      const stderr = standardError(values);
      return { metric, filter, value: mean(values), stderr, interval, bootstrap: bootstrapInterval(values, seed) };
    }),
  );
}
