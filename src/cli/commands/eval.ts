/** @file `milora eval`: accuracy of generated answers with its interval, or perplexity, on rows of a file. */
import { type Command, Option } from "commander";
import { writeFileAtomic } from "../../base/index.ts";
import { exactMatch, type LabelledRow, loadLabelledRows, perplexity } from "../../evaluation/index.ts";
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

interface Flags {
  readonly model: string;
  readonly adapter?: string;
  readonly weights?: "float32" | "int8" | "int4";
  readonly threads?: number;
  readonly data: string;
  readonly metric: "accuracy" | "perplexity";
  readonly template: string;
  readonly beams: number;
  readonly maxNewTokens: number;
  readonly limit?: number;
  readonly output?: string;
  readonly json?: boolean;
}

export function configure(command: Command): void {
  examples(
    command
      .addOption(modelFlag())
      .addOption(adapterFlag())
      .addOption(needed(new Option("--data <file>", "rows with instruction, output and answer, as for training")))
      .addOption(
        new Option("--metric <name>", "accuracy of generated answers, or perplexity of the outputs")
          .choices(["accuracy", "perplexity"])
          .default("accuracy"),
      )
      .addOption(templateFlag())
      .option("--beams <n>", "beams of the search; 1 is greedy, the paper uses 3", integer(1), 1)
      .option("--max-new-tokens <n>", "longest answer", integer(1), 32)
      .option("--limit <n>", "only the first n rows", integer(1))
      .option("--output <file>", "also write the whole result, with every row's output, to this file")
      .addOption(weightsFlag())
      .addOption(threadsFlag())
      .addOption(jsonFlag())
      .action(evaluate),
    [
      "milora eval --model assets/tiny-llama --adapter runs/demo/subjects-milora/best --data assets/data/subjects/test.jsonl",
      "milora eval --model DIR --data rows.jsonl --beams 3 --limit 100 --json",
    ],
  );
}

async function evaluate(flags: Flags): Promise<void> {
  const { data, limit, metric } = flags;
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
  using opened = await open(flags);
  const result = await measure(opened, rows, template, flags);
  const { accuracy, decoding } = result;
  finish({ ...settings, backbone: opened.backbone.digest, ...result }, flags, () => {
    const [low, high] = accuracy.interval;
    print(`accuracy ${paint("bold", percent(accuracy.value))}  95 % interval ${percent(low)} to ${percent(high)}`);
    print(
      `${accuracy.correct} of ${accuracy.total} rows, ${decoding.beams === 1 ? "greedy" : `${decoding.beams} beams`}`,
    );
  });
}

async function measure(
  { engine, backbone, adapter }: Opened,
  rows: readonly LabelledRow[],
  template: Template,
  flags: Flags,
) {
  using interrupt = onInterrupt();
  using progress = startProgress("answering", rows.length);
  return await exactMatch(engine, backbone.tokenizer, rows, {
    template,
    beams: flags.beams,
    maxNewTokens: flags.maxNewTokens,
    signal: interrupt.signal,
    onProgress: (done) => progress.update(done, [`${done} of ${rows.length} rows`]),
    ...(adapter ? { adapter } : {}),
  });
}

function finish(result: object, flags: Flags, show: () => void): void {
  if (flags.output !== undefined) {
    writeFileAtomic(flags.output, `${JSON.stringify(result, null, 2)}\n`);
    note(`written to ${flags.output}`);
  }
  if (flags.json) printJson(result);
  else show();
}
