/** @file `milora eval --data`: accuracy or perplexity on the rows of a file. */
import { writeFileAtomic } from "../../base/index.ts";
import { exactMatch, type LabelledRow, loadLabelledRows, perplexity } from "../../evaluation/index.ts";
import { loadRows, PromptTemplate, type Template, templateOf } from "../../training/index.ts";
import { onInterrupt } from "../interrupt.ts";
import { type Opened, open } from "../open.ts";
import { startProgress } from "../progress.ts";
import { grouped, note, paint, percent, print, printJson } from "../terminal.ts";
import type { EvalFlags } from "./flags.ts";
import { type Training, trainingFor, warnOfOverlap } from "./overlap.ts";

export async function evaluateRows(flags: EvalFlags, data: string): Promise<void> {
  const { limit, metric } = flags;
  const template = templateOf(flags.template ?? "alpaca");
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

function finish(result: object, flags: EvalFlags, show: () => void): void {
  if (flags.output !== undefined) {
    writeFileAtomic(flags.output, `${JSON.stringify(result, null, 2)}\n`);
    note(`written to ${flags.output}`);
  }
  if (flags.json) printJson(result);
  else show();
}
