/** @file `milora eval --tasks mt_bench`: answers first, which are kept; then a judge, when one is named. */
import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { InputError, sum, version, writeFileAtomic } from "../../base/index.ts";
import {
  type AnsweredQuestion,
  type AnsweredRow,
  answersText,
  answersTo,
  answerTask,
  type ConversationResult,
  conversationForm,
  findOverlap,
  type Graded,
  gradePairs,
  gradeSingle,
  type Judge,
  judgedQuestions,
  judgingCost,
  judgmentsText,
  loadSplit,
  moneyOf,
  type PairScore,
  RowStore,
  readAnswers,
  requestsOf,
  runConfigOf,
  type Score,
  type Task,
  textOfDocument,
} from "../../evaluation/index.ts";
import { type Template, templateOf } from "../../training/index.ts";
import { onInterrupt } from "../interrupt.ts";
import { confirmCost, costText } from "../judge/confirm.ts";
import { judgeOf } from "../judge/flags.ts";
import { open } from "../open.ts";
import { grouped, note, print, printJson, warn } from "../terminal.ts";
import { type EvalFlags, flagNames } from "./flags.ts";
import { trainingFor, warnOfOverlap } from "./overlap.ts";
import { rowProgress } from "./progress.ts";
import { pairTable, ratingTable } from "./scores.ts";

/** Answers of one model to a task, and what is known of how they were made. */
interface Answered {
  readonly model: string;
  readonly samples: readonly AnsweredRow[];
  readonly facts: object;
  /** Where they are. */
  readonly path: string;
}

export async function evaluateConversations(flags: EvalFlags, tasks: readonly Task[]): Promise<void> {
  const [task, ...more] = tasks as [Task, ...Task[]];
  if (more.length) throw new InputError("FLAG_INVALID", "--tasks", "conversations are measured one task at a time");
  const surplus = flagNames(flags, ["numFewshot"]);
  if (surplus.length) throw new InputError("FLAG_INVALID", surplus.join(", "), `${task.name} is asked without shots`);
  const judge = judgeOf(flags);
  if (!judge && flagNames(flags, ["answers", "judgeBaseline", "judgeReferences"]).length) {
    throw new InputError("FLAG_INVALID", "judge", "needs --judge-url and --judge-model");
  }
  const { documents } = await loadSplit(task, conversationForm(task).form.split, dataOf(flags));
  const wanted = documents.slice(0, flags.limit);
  // Before anything is answered or paid for: what will be compared with must be whole.
  const baseline = flags.judgeBaseline === undefined ? undefined : await answersAt(task, flags.judgeBaseline);
  const theirs = baseline && answersTo(wanted, baseline, flags.judgeBaseline!);
  const empty = wanted.map((document, row) => ({ row, document, answers: [] }));
  if (judge) await judgedQuestions(task, conversationForm(task).form, empty, flags.judgeReferences);
  using interrupt = onInterrupt("stopping; the same command goes on from here …");
  const answered = await answersOf(flags, task, wanted, interrupt.signal);
  if (!judge) return showAnswers(flags, task, answered);
  const items = (await judgedQuestions(task, conversationForm(task).form, answered.samples, flags.judgeReferences)).map(
    (item, i) => (theirs ? { ...item, baseline: theirs[i]!.answers } : item),
  );
  const cost = judgingCost(judge, requestsOf(items), flags.judgePrices);
  const { model: name, url } = judge.endpoint;
  const kept = `the answers are kept in ${answered.path}`;
  if (
    !(await confirmCost(
      `${name} at ${url}`,
      costText(cost, flags.judgePrices),
      cost.calls,
      flags,
      kept,
      interrupt.signal,
    ))
  ) {
    return showAnswers(flags, task, answered);
  }
  const options = { signal: interrupt.signal, seed: flags.seed };
  const graded = await rowProgress(
    "judging",
    (onProgress): Promise<Graded<Score> | Graded<PairScore>> =>
      theirs
        ? gradePairs(judge, items as (AnsweredQuestion & { baseline: readonly string[] })[], { ...options, onProgress })
        : gradeSingle(judge, items, { ...options, onProgress }),
    "judgements",
  );
  report(flags, task, answered, judge, graded, baseline?.model);
}

const dataOf = (flags: EvalFlags) => ({ directory: flags.dataDir, rows: flags.data });

const answersPath = (task: Task, directory: string): string => join(directory, `${task.name}_answers.jsonl`);

/** Answers in a file, or in the directory of an earlier measurement. */
async function answersAt(task: Task, path: string) {
  const isDirectory = existsSync(path) && statSync(path).isDirectory();
  return await readAnswers(isDirectory ? answersPath(task, path) : path, path);
}

async function answersOf(
  flags: EvalFlags,
  task: Task,
  documents: Parameters<typeof answersTo>[0],
  signal: AbortSignal,
): Promise<Answered> {
  if (flags.answers !== undefined) {
    const answers = await answersAt(task, flags.answers);
    const facts = { task: task.name, title: task.title, rows: documents.length };
    return { model: answers.model, samples: answersTo(documents, answers, flags.answers), facts, path: flags.answers };
  }
  const training = await trainingFor(flags);
  const output = outputOf(flags, task)!;
  using opened = await open(flags, flags.batchSize === undefined ? {} : { maxBatch: flags.batchSize });
  const result = await rowProgress(
    task.name,
    (onProgress) =>
      answerTask(opened.engine, task, {
        data: dataOf(flags),
        limit: flags.limit,
        template: templateFor(flags),
        greedy: flags.greedy,
        beams: flags.beams,
        maxNewTokens: flags.maxNewTokens,
        seed: flags.seed,
        adapter: opened.adapter,
        store: new RowStore(join(output, "rows.jsonl")),
        signal,
        onProgress,
      }),
    "answers",
  );
  const overlap = "skipped" in training ? training : findOverlap(documents.map(textOfDocument), training);
  warnOfOverlap(task.name, overlap, documents.length);
  warnOfLengths(result);
  const model = flags.adapter ?? flags.model;
  const path = answersPath(task, output);
  writeFileAtomic(path, answersText(model, result.samples));
  const { samples, ...facts } = result;
  return { model, samples, facts: { ...facts, overlap }, path };
}

/** Named, else what the adapter was trained with, else what the model's own tokenizer has. */
function templateFor({ template, adapter }: EvalFlags): Template | undefined {
  const named = template ?? (adapter === undefined ? undefined : runConfigOf(adapter)?.data.template);
  return named === undefined ? undefined : templateOf(named);
}

/** Answers cost hours: they are always kept. Nothing is written beside answers that somebody else has made. */
function outputOf({ output, answers }: EvalFlags, task: Task): string | undefined {
  return output ?? (answers === undefined ? join("runs", task.name) : undefined);
}

function warnOfLengths({ task, cut, unfinished, samples }: ConversationResult): void {
  const total = sum(samples.map(({ answers }) => answers.length));
  if (cut > 0) warn(`${task}: ${cut} of ${total} prompts are longer than the context and lost their beginning`);
  if (unfinished > 0) note(`${task}: ${unfinished} of ${total} answers are as long as they may be (--max-new-tokens)`);
}

/** Without a judge: where the answers are, and how one is asked. */
function showAnswers(flags: EvalFlags, task: Task, { model, samples, facts, path }: Answered): void {
  const conversations = samples.map(({ document, answers }) => ({ question: document.id, answers }));
  if (flags.json) printJson({ model, ...facts, answers: path, judge: null, conversations });
  else print(path);
  note(`These answers have no score yet: a judge gives it, behind any OpenAI-compatible endpoint, e.g.
  milora eval --tasks ${task.name} --answers ${path} --judge-url https://api.openai.com/v1 --judge-model NAME`);
}

function report(
  flags: EvalFlags,
  task: Task,
  { model, samples, facts, path }: Answered,
  judge: Judge,
  { scores, judgments }: Graded<Score> | Graded<PairScore>,
  baseline: string | undefined,
): void {
  const { url, model: name, temperature = null, maxTokens } = judge.endpoint;
  const { spent } = judge;
  const mode = baseline === undefined ? "single" : "pair";
  const outside = judgments.filter(({ rating }) => typeof rating === "number" && (rating < 1 || rating > 10)).length;
  const prices = flags.judgePrices;
  const result = {
    model,
    adapterDirectory: flags.adapter ?? null,
    milora: version,
    ...facts,
    answers: path,
    judge: { url, model: name, temperature, maxTokens, mode, baseline: baseline ?? null },
    spent: { ...spent, money: prices ? moneyOf(prices, spent.promptTokens, spent.completionTokens) : null },
    outside,
    scores,
  };
  const output = outputOf(flags, task);
  if (output !== undefined) {
    const names = { judge: name, model, baseline };
    writeFileAtomic(join(output, `${task.name}_${mode}_judgments.jsonl`), judgmentsText(judgments, names));
    writeFileAtomic(join(output, `${task.name}_${mode}_results.json`), `${JSON.stringify(result, null, 2)}\n`);
    note(`written to ${output}: ${task.name}_${mode}_results.json, ${task.name}_${mode}_judgments.jsonl`);
  }
  if (spent.calls > 0) {
    const money = result.spent.money === null ? "" : `, ${result.spent.money.toFixed(2)}`;
    const tokens = `${grouped(spent.promptTokens)} prompt tokens, ${grouped(spent.completionTokens)} completion tokens`;
    const told = spent.promptTokens > 0 ? `${tokens}${money}` : "the endpoint does not tell their tokens";
    note(`judged with ${grouped(spent.calls)} calls: ${told}`);
  }
  const { unjudged, judged } = scores.overall;
  if (unjudged > 0)
    warn(`${unjudged} of ${judged + unjudged} judgements have no verdict and are left out of all means`);
  if (outside > 0) warn(`${outside} ratings are not from 1 to 10; they count as the judge gave them`);
  if (flags.json) {
    printJson({ ...result, judgments: judgments.map(({ asked: _, ...judgment }) => judgment) });
    return;
  }
  const how = baseline === undefined ? "rated" : `against ${baseline}, compared in both orders`;
  print(`${task.title.replace(/:.*/, "")}: ${samples.length} questions, ${how} by ${name}`);
  print(baseline === undefined ? ratingTable(scores) : pairTable(scores as Graded<PairScore>["scores"]));
}
