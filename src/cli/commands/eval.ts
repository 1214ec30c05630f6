/** @file `milora eval`: a model's score on tasks, on labelled rows of a file, or perplexity. */
import { type Command, Option } from "commander";
import { InputError, writeFileAtomic } from "../../base/index.ts";
import {
  exactMatch,
  type LabelledRow,
  loadLabelledRows,
  type Overlap,
  PROTOCOLS,
  type Protocol,
  perplexity,
  type TrainingTexts,
  trainingSourcesOf,
  trainingTexts,
} from "../../evaluation/index.ts";
import { loadRows, PromptTemplate, type Template, templateOf } from "../../training/index.ts";
import {
  adapterFlag,
  examples,
  integer,
  jsonFlag,
  modelFlag,
  needed,
  templateFlag,
  threadsFlag,
  weightsFlag,
} from "../flags.ts";
import { onInterrupt } from "../interrupt.ts";
import { type Opened, open } from "../open.ts";
import { startProgress } from "../progress.ts";
import { grouped, note, paint, percent, print, printJson } from "../terminal.ts";

export interface EvalFlags {
  readonly model: string;
  readonly adapter?: string;
  readonly weights?: "float32" | "int8" | "int4";
  readonly threads?: number;
  readonly data?: string;
  readonly tasks?: string;
  readonly protocol?: Protocol;
  readonly dataDir?: string;
  readonly numFewshot?: number;
  readonly batchSize?: number;
  readonly seed: number;
  readonly train?: string[];
  readonly overlap: boolean;
  readonly metric: "accuracy" | "perplexity";
  readonly template: string;
  readonly beams: number;
  readonly maxNewTokens?: number;
  readonly limit?: number;
  readonly output?: string;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  const tasksOf = (command: Command) => command.getOptionValue("tasks") as string | undefined;
  const data = new Option(
    "--data <file>",
    "rows with instruction, output and answer; or with --tasks, the rows of that task",
  );
  examples(
    command
      .addOption(modelFlag((command) => tasksOf(command) !== "list"))
      .addOption(adapterFlag())
      .option("--tasks <names>", "tasks or groups, separated by commas; list shows them all")
      .addOption(new Option("--protocol <name>", "how tasks are asked and marked; default hu2023").choices(PROTOCOLS))
      .addOption(needed(data, (command) => tasksOf(command) === undefined))
      .option("--data-dir <dir>", "directory with the tasks' data; default what is bundled, else the Hugging Face hub")
      .option("--num-fewshot <n>", "solved questions in front (default: the task's own number)", integer(0))
      .option("--limit <n>", "only the first n rows of each task", integer(1))
      .option("--beams <n>", "beams of the search; 1 is greedy, the paper uses 3", integer(1), 1)
      .option("--max-new-tokens <n>", "longest answer (default: the task's own; 32 for --data)", integer(1))
      .option("--batch-size <n>", "sequences that are answered together (default: 8)", integer(1))
      .option("--seed <n>", "of drawing shots, and of the bootstrap", integer(0), 1234)
      .addOption(
        new Option("--metric <name>", "of --data: accuracy of generated answers, or perplexity of the outputs")
          .choices(["accuracy", "perplexity"])
          .default("accuracy"),
      )
      .addOption(templateFlag())
      .option("--train <files...>", "training rows to look for the questions in (default: those of the adapter's run)")
      .option("--no-overlap", "do not look for the questions in training rows")
      .option("--output <path>", "tasks: a directory for results and rows, which goes on where it was; --data: a file")
      .addOption(weightsFlag())
      .addOption(threadsFlag())
      .addOption(jsonFlag())
      .action(evaluate),
    [
      "milora eval --tasks list",
      "milora eval --model assets/tiny-llama --tasks arc_easy,piqa --protocol lm-eval --data-dir assets/data/samples",
      "milora eval --model DIR --adapter runs/boolq/best --tasks boolq --beams 3 --output runs/boolq/eval",
      "milora eval --model assets/tiny-llama --adapter runs/demo/subjects-milora/best --data assets/data/subjects/test.jsonl",
      "milora eval --model DIR --data rows.jsonl --beams 3 --limit 100 --json",
    ],
  );
}

async function evaluate(flags: EvalFlags): Promise<void> {
  if (flags.tasks !== undefined) {
    const { evaluateTasks } = await import("./eval-tasks.ts");
    await evaluateTasks(flags, flags.tasks);
    return;
  }
  const forTasks = (["protocol", "dataDir", "numFewshot"] as const).filter((name) => flags[name] !== undefined);
  if (forTasks.length) {
    const names = forTasks.map((name) => `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`);
    throw new InputError("FLAG_INVALID", names.join(", "), "needs --tasks");
  }
  const { limit, metric } = flags;
  const data = flags.data!;
  const template = templateOf(flags.template);
  const free = template instanceof PromptTemplate;
  const settings = { model: flags.model, adapterDirectory: flags.adapter ?? null, data };
  if (metric === "perplexity") {
    const rows = (await loadRows(data, { free })).slice(0, limit);
    using opened = await open(flags);
    const { engine, backbone, adapter } = opened;
    const options = { template, ...(adapter ? { adapter } : {}) };
    const result = await perplexity(engine, backbone.tokenizer, rows, options);
    finish({ ...settings, backbone: backbone.digest, rows: rows.length, ...result }, flags, () => {
      print(
        `perplexity ${paint("bold", result.perplexity.toFixed(3))} on ${grouped(result.tokens)} tokens of ${rows.length} rows`,
      );
    });
    return;
  }
  const rows = (await loadLabelledRows(data, { free })).slice(0, limit);
  const training = await trainingFor(flags);
  using opened = await open(flags, flags.batchSize === undefined ? {} : { maxBatch: flags.batchSize });
  const result = await measure(opened, rows, template, training, flags);
  const { accuracy, decoding } = result;
  finish({ ...settings, backbone: opened.backbone.digest, ...result }, flags, () => {
    const [low, high] = accuracy.interval;
    print(`accuracy ${paint("bold", percent(accuracy.value))}  95 % interval ${percent(low)} to ${percent(high)}`);
    print(
      `${accuracy.correct} of ${accuracy.total} rows, ${decoding.beams === 1 ? "greedy" : `${decoding.beams} beams`}`,
    );
    warnOfOverlap(data, result.overlap, rows.length);
  });
}

async function measure(
  { engine, backbone, adapter }: Opened,
  rows: readonly LabelledRow[],
  template: Template,
  training: Training,
  flags: EvalFlags,
) {
  using interrupt = onInterrupt();
  using progress = startProgress("answering", rows.length);
  return await exactMatch(engine, backbone.tokenizer, rows, {
    template,
    training,
    beams: flags.beams,
    maxNewTokens: flags.maxNewTokens ?? 32,
    signal: interrupt.signal,
    onProgress: (done) => progress.update(done, [`${done} of ${rows.length} rows`]),
    ...(adapter ? { adapter } : {}),
  });
}

type Training = TrainingTexts | { readonly skipped: string };

/** Training rows that are known: named ones, else those of the adapter's run; or why there are none. */
export async function trainingFor({ overlap, train, adapter }: EvalFlags): Promise<Training> {
  if (!overlap) return { skipped: "turned off" };
  if (train) return await trainingTexts(train.map((path) => ({ path })));
  const sources = adapter === undefined ? undefined : trainingSourcesOf(adapter);
  if (!sources) return { skipped: "no training rows are known; --train names them" };
  try {
    return await trainingTexts(sources);
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    return { skipped: `the training rows cannot be read: ${error.message}` };
  }
}

/** Says so where test rows were seen in training. */
export function warnOfOverlap(name: string, overlap: Overlap | { readonly skipped: string }, rows: number): void {
  if ("skipped" in overlap || overlap.rows.length === 0) return;
  const text = `${overlap.rows.length} of ${rows} rows share ${overlap.words} words in a row with the training rows`;
  note(`${paint("yellow", "warning:", process.stderr)} ${name}: ${text}`);
}

function finish(result: object, flags: EvalFlags, show: () => void): void {
  if (flags.output !== undefined) {
    writeFileAtomic(flags.output, `${JSON.stringify(result, null, 2)}\n`);
    note(`written to ${flags.output}`);
  }
  if (flags.json) printJson(result);
  else show();
}
