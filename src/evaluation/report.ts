/** @file Results as lm-evaluation-harness prints and writes them: its table, results_*.json and samples_*.jsonl. */
import { createHash } from "node:crypto";
import { join } from "node:path";
import { sum, writeFileAtomic } from "../base/index.ts";
import type { Metric, Sample, TaskResult } from "./evaluate.ts";
import { pooledError } from "./interval.ts";

/** A group's mean over all rows of its tasks. */
export interface GroupResult {
  readonly name: string;
  readonly tasks: readonly string[];
  readonly metrics: readonly {
    readonly metric: string;
    readonly filter: string;
    readonly value: number;
    readonly stderr: number | null;
  }[];
  readonly rows: number;
}

/** The groups that results belong to, outermost first, weighted by rows as the harness does. */
export function groupResults(results: readonly TaskResult[]): GroupResult[] {
  const names = [...new Set(results.flatMap(({ groups }) => groups))];
  return names.map((name) => {
    const members = results.filter(({ groups }) => groups.includes(name));
    const sizes = members.map(({ rows }) => rows);
    const metrics = members[0]!.metrics.map(({ metric, filter }, i) => ({
      metric,
      filter,
      value: sum(members.map(({ metrics }, m) => metrics[i]!.value * sizes[m]!)) / sum(sizes),
      stderr: pooledError(
        members.map(({ metrics }) => metrics[i]!.stderr),
        sizes,
      ),
    }));
    return { name, tasks: members.map(({ task }) => task), metrics, rows: sum(sizes) };
  });
}

const HEADER = ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"];
/** Columns of numbers, set to the right. */
const RIGHT = new Set([1, 3, 6, 8]);

/** The table in Markdown: groups with their tasks below them, one line for each metric. */
export function harnessTable(results: readonly TaskResult[]): string {
  const lines: string[][] = [];
  const add = (
    name: string,
    version: string,
    shots: string,
    metrics: readonly Pick<Metric, "metric" | "filter" | "value" | "stderr">[],
  ) => {
    for (const [i, { metric, filter, value, stderr }] of metrics.entries()) {
      const error = stderr === null ? "N/A" : stderr.toFixed(4);
      const [shown, shownVersion] = i === 0 ? [name, version] : ["", ""];
      lines.push([shown, shownVersion, filter, shots, metric, "↑", value.toFixed(4), "±", error]);
    }
  };
  const groups = groupResults(results);
  const below = (name: string) => (task: TaskResult) => task.groups.at(-1) === name;
  for (const group of groups) {
    const members = results.filter((task) => task.groups.includes(group.name));
    const depth = members[0]!.groups.indexOf(group.name);
    const indent = depth === 0 ? "" : `${" ".repeat(depth)}- `;
    add(`${indent}${group.name}`, "", "", group.metrics);
    for (const task of results.filter(below(group.name))) {
      add(`${" ".repeat(depth + 1)}- ${task.task}`, String(task.version), String(task.shots.count), task.metrics);
    }
  }
  for (const task of results.filter(({ groups }) => groups.length === 0)) {
    add(task.task, String(task.version), String(task.shots.count), task.metrics);
  }
  const widths = HEADER.map((title, i) => Math.max(title.length, 3, ...lines.map((cells) => cells[i]!.length)));
  const pad = (cells: readonly string[]) =>
    `|${cells.map((cell, i) => (RIGHT.has(i) ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join("|")}|`;
  const rule = `|${widths.map((width, i) => (RIGHT.has(i) ? `${"-".repeat(width - 1)}:` : "-".repeat(width))).join("|")}|`;
  const centred = HEADER.map((title, i) => title.padStart(title.length + Math.floor((widths[i]! - title.length) / 2)));
  const titles = `|${centred.map((title, i) => title.padEnd(widths[i]!)).join("|")}|`;
  return [titles, rule, ...lines.map(pad)].join("\n");
}

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

/** Metrics of a result under the harness's keys, `acc,none` and `acc_stderr,none`. */
function keyed(name: string, metrics: readonly Pick<Metric, "metric" | "filter" | "value" | "stderr">[]): object {
  const entries = metrics.flatMap(({ metric, filter, value, stderr }) => [
    [`${metric},${filter}`, value],
    [`${metric}_stderr,${filter}`, stderr ?? "N/A"],
  ]);
  return { alias: name, ...Object.fromEntries(entries) };
}

export interface RunFacts {
  readonly model: string;
  readonly adapter: string | null;
  readonly limit: number | null;
  readonly batchSize: number;
  readonly milora: string;
  readonly started: Date;
}

/** What the harness writes into results_*.json, as far as it has a meaning here. */
export function harnessResults(results: readonly TaskResult[], facts: RunFacts): object {
  const groups = groupResults(results);
  const by = <T>(of: (result: TaskResult) => T) =>
    Object.fromEntries(results.map((result) => [result.harnessName, of(result)]));
  const names = new Map(results.map(({ task, harnessName }) => [task, harnessName]));
  const own = by((result) => ({ ...keyed(result.task, result.metrics), sample_len: result.rows }));
  const grouped = Object.fromEntries(groups.map((group) => [group.name, keyed(group.name, group.metrics)]));
  const hashes = by((result) =>
    sha256(result.samples.map((sample) => Object.values(hashesOf(result, sample)).join("")).join("")),
  );
  return {
    results: { ...own, ...grouped },
    ...(groups.length > 0 && { groups: grouped }),
    group_subtasks: Object.fromEntries(groups.map(({ name, tasks }) => [name, tasks.map((task) => names.get(task)!)])),
    configs: by(configOf),
    versions: by(({ version }) => version),
    "n-shot": by(({ shots }) => shots.count),
    higher_is_better: by(({ metrics }) => Object.fromEntries(metrics.map(({ metric }) => [metric, true]))),
    "n-samples": by(({ data, rows }) => ({ original: data.rows, effective: rows })),
    config: {
      model: "milora",
      model_args: {
        pretrained: facts.model,
        ...(facts.adapter !== null && { peft: facts.adapter }),
        weights: results[0]?.weights.kind,
      },
      batch_size: facts.batchSize,
      device: "cpu",
      limit: facts.limit,
      bootstrap_iters: 1000,
      random_seed: results[0]?.seed,
      fewshot_seed: results[0]?.seed,
    },
    git_hash: null,
    date: facts.started.getTime() / 1000,
    milora_version: facts.milora,
    task_hashes: hashes,
    model_source: "milora",
    model_name: facts.model,
    total_evaluation_time_seconds: String((Date.now() - facts.started.getTime()) / 1000),
  };
}

function configOf({
  harnessName,
  data,
  shots,
  protocol,
  extraction,
  decoding,
  samples: _,
  ...rest
}: TaskResult): object {
  return {
    task: harnessName,
    dataset_path: data.source,
    test_split: data.split,
    num_fewshot: shots.count,
    ...(decoding && {
      generation_kwargs: { until: decoding.stop, max_gen_toks: decoding.maxNewTokens, num_beams: decoding.beams },
    }),
    metadata: {
      version: rest.version,
      protocol,
      extraction,
      data_digest: data.digest,
      prompt_digest: rest.promptDigest,
      backbone: rest.backbone,
      adapter: rest.adapter,
    },
  };
}

/** As `json.dumps(…, indent=2, ensure_ascii=False)` writes a row. */
const dumped = (fields: object): string => JSON.stringify(fields, null, 2);

function targetOf({ document }: Sample): string {
  return document.gold >= 0 ? String(document.gold) : document.target;
}

function hashesOf(_: TaskResult, sample: Sample) {
  return {
    doc_hash: sha256(dumped(sample.document.fields)),
    prompt_hash: sha256(sample.context),
    target_hash: sha256(targetOf(sample)),
  };
}

/** A row of samples_*.jsonl for each filter. */
export function harnessSamples(result: TaskResult): object[] {
  const filters = Object.keys(result.samples[0]?.scores ?? {});
  return filters.flatMap((filter) =>
    result.samples.map((sample) => {
      const { output, context, choices } = sample;
      const [args, resps, filtered] =
        output.kind === "choice"
          ? [
              choices.map((choice) => [context, ` ${choice}`]),
              output.logLikelihoods.map((value, i) => [[String(value), String(output.greedy[i] ? "True" : "False")]]),
              output.logLikelihoods.map((value, i) => [String(value), String(output.greedy[i] ? "True" : "False")]),
            ]
          : [[[context]], [[output.text]], [sample.answers[filter] ?? "[invalid]"]];
      const scores = sample.scores[filter]!;
      return {
        doc_id: sample.row,
        doc: sample.document.fields,
        target: targetOf(sample),
        arguments: Object.fromEntries(
          args.map((values, i) => [`gen_args_${i}`, Object.fromEntries(values.map((value, j) => [`arg_${j}`, value]))]),
        ),
        resps,
        filtered_resps: filtered,
        filter,
        metrics: Object.keys(scores),
        ...hashesOf(result, sample),
        ...scores,
      };
    }),
  );
}

/**
 * Writes results.json (ours: everything that decides the numbers) and the harness's files into `directory`.
 * @returns the paths written
 */
export function writeResults(directory: string, results: readonly TaskResult[], facts: RunFacts): string[] {
  const date = facts.started.toISOString().replace("Z", "").replaceAll(":", "-");
  const written: string[] = [];
  const write = (name: string, text: string) => {
    const path = join(directory, name);
    writeFileAtomic(path, text);
    written.push(path);
  };
  const own = {
    model: facts.model,
    adapterDirectory: facts.adapter,
    milora: facts.milora,
    groups: groupResults(results),
  };
  write("results.json", `${JSON.stringify({ ...own, tasks: results.map(summaryOf) }, null, 2)}\n`);
  write(`results_${date}.json`, `${JSON.stringify(harnessResults(results, facts), null, 2)}\n`);
  for (const result of results) {
    const lines = harnessSamples(result).map((sample) => `${JSON.stringify(sample)}\n`);
    write(`samples_${result.harnessName}_${date}.jsonl`, lines.join(""));
  }
  return written;
}

/** A result without its rows, which stand in files of their own. */
export function summaryOf({ samples: _, ...rest }: TaskResult): Omit<TaskResult, "samples"> {
  return rest;
}
