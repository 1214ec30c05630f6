/** @file Numbers of lm-evaluation-harness 0.4.13 on the same model and rows: prompts, likelihoods, answers, scores, errors. */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Engine } from "../generation/index.ts";
import { Backbone } from "../models/index.ts";
import { evaluateTask, type TaskResult } from "./evaluate.ts";
import { PythonRandom } from "./python-random.ts";
import { findTasks, formOf, loadTasks } from "./registry.ts";
import { groupResults, harnessResults, harnessSamples, harnessTable } from "./report.ts";

const root = join(import.meta.dirname, "../..");
const fixtures = join(root, "test/fixtures/lm-eval");

interface Expected {
  readonly measured: readonly {
    readonly task: string;
    readonly harnessName: string;
    readonly version: number;
    readonly shots: number;
    readonly maxNewTokens: number | null;
    readonly results: Readonly<Record<string, number | string>>;
    readonly rows: readonly {
      readonly context: string;
      readonly target: string;
      readonly scores: Readonly<Record<string, Readonly<Record<string, number>>>>;
      readonly logLikelihoods?: readonly number[];
      readonly greedy?: readonly boolean[];
      readonly text?: string;
      readonly answers?: Readonly<Record<string, string>>;
    }[];
  }[];
  readonly mmlu: { readonly acc: number; readonly stderr: number };
  readonly extraction: {
    readonly texts: readonly string[];
    readonly targets: readonly string[];
    readonly found: Readonly<Record<string, Readonly<Record<string, { answers: string[]; right: number[][] }>>>>;
  };
  readonly samples: readonly { seed: number; n: number; k: number; draws: number[][] }[];
  readonly files: Readonly<
    Record<string, { sample: Record<string, unknown> } & Record<string, Record<string, unknown>>>
  >;
}

const expected = JSON.parse(readFileSync(join(fixtures, "expected.json"), "utf8")) as Expected;

let backbone: Backbone;
let engine: Engine;
beforeAll(async () => {
  backbone = await Backbone.load(join(root, "assets/tiny-llama"));
  engine = Engine.create(backbone);
});
afterAll(() => {
  engine.dispose();
  backbone.dispose();
});

async function measured({ task: name, shots, maxNewTokens }: Expected["measured"][number]): Promise<TaskResult> {
  const [task] = await findTasks([name], "lm-eval");
  const rows = name === "boolq" ? { rows: join(fixtures, "boolq.jsonl") } : {};
  return await evaluateTask(engine, task!, {
    protocol: "lm-eval",
    data: { directory: join(root, "assets/data/samples"), ...rows },
    shots,
    ...(maxNewTokens !== null && { maxNewTokens }),
  });
}

const results = new Map<string, TaskResult>();
const keyOf = ({ task, shots }: { task: string; shots: number }) => `${task}, ${shots} shots`;

describe("as the harness gives it", () => {
  test.each(expected.measured.map((run) => [keyOf(run), run] as const))("%s", async (key, run) => {
    const result = await measured(run);
    results.set(key, result);
    expect(result).toMatchObject({ harnessName: run.harnessName, version: run.version, shots: { count: run.shots } });
    expect(result.samples.map(({ context }) => createHash("sha256").update(context).digest("hex"))).toEqual(
      run.rows.map(({ context }) => context),
    );
    for (const [i, row] of run.rows.entries()) {
      const { output, scores, answers } = result.samples[i]!;
      expect(scores).toEqual(row.scores);
      if (output.kind === "choice") {
        expect(output.greedy).toEqual(row.greedy);
        expect(output.logLikelihoods).toHaveLength(row.logLikelihoods!.length);
        for (const [c, value] of output.logLikelihoods.entries()) {
          expect(Math.abs(value - row.logLikelihoods![c]!)).toBeLessThan(1e-3);
        }
      } else {
        expect(output.text).toBe(row.text);
        expect(answers).toEqual(row.answers);
      }
    }
    for (const { metric, filter, value, stderr } of result.metrics) {
      expect(value).toBe(run.results[`${metric},${filter}`]);
      expect(stderr).toBeCloseTo(run.results[`${metric}_stderr,${filter}`] as number, 12);
    }
    expect(result.metrics).toHaveLength(Object.keys(run.results).filter((name) => /_stderr,/.test(name)).length);
  });

  test("a group's mean and error", () => {
    const members = [...results.values()].filter(({ groups }) => groups.includes("mmlu"));
    expect(members).toHaveLength(4);
    const [mmlu] = groupResults(members);
    expect(mmlu).toMatchObject({ name: "mmlu", rows: 24 });
    expect(mmlu!.metrics[0]!.value).toBeCloseTo(expected.mmlu.acc, 12);
    expect(mmlu!.metrics[0]!.stderr).toBeCloseTo(expected.mmlu.stderr, 12);
  });

  test("results and samples in its files", () => {
    const facts = { model: "m", adapter: null, limit: null, batchSize: 8, milora: "0", started: new Date() };
    for (const [task, shots] of [
      ["arc_easy", 0],
      ["gsm8k", 5],
    ] as const) {
      const { sample, ...file } = expected.files[task]!;
      const result = results.get(keyOf({ task, shots }))!;
      const own = harnessResults([result], facts) as Record<string, Record<string, unknown>>;
      for (const key of ["results", "versions", "n-shot", "higher_is_better", "n-samples", "group_subtasks"]) {
        expect(Object.keys(own[key]!), key).toEqual(Object.keys(file[key]!));
      }
      for (const key of ["versions", "n-shot", "higher_is_better", "n-samples"]) expect(own[key]).toEqual(file[key]);
      const theirs = Object.keys(file.results![task] as object).filter((key) => key !== "name");
      expect(Object.keys(own.results![task] as object).sort()).toEqual(theirs.sort());
      const [first] = harnessSamples(result) as Record<string, unknown>[];
      expect(Object.keys(first!).sort()).toEqual(Object.keys(sample).sort());
      for (const key of ["doc_id", "doc", "filter", "metrics", "doc_hash", "prompt_hash", "target_hash"]) {
        expect(first![key], key).toEqual(sample[key]);
      }
      expect(first!.target).toBe(String(sample.target));
    }
    const table = harnessTable([results.get("arc_easy, 0 shots")!]).split("\n");
    expect(table.slice(0, 2)).toEqual([
      "| Tasks  |Version|Filter|n-shot| Metric |   |Value |   |Stderr|",
      "|--------|------:|------|-----:|--------|---|-----:|---|-----:|",
    ]);
    expect(table).toHaveLength(4);
    expect(new Set(table.map((line) => line.length)).size).toBe(1);
  });
});

test("answers are read out of texts, and compared, as by its filters", async () => {
  const { texts, targets, found } = expected.extraction;
  const tasks = await loadTasks();
  for (const [name, filters] of Object.entries(found)) {
    const form = formOf(tasks.get(name)!, "lm-eval");
    if (form.kind !== "generate") throw new Error(`${name} does not generate`);
    expect(form.readings.map((reading) => reading.name)).toEqual(Object.keys(filters));
    for (const reading of form.readings) {
      const { answers, right } = filters[reading.name]!;
      const document = (target: string) => ({ question: "", choices: [], gold: -1, target, fields: {} });
      const own = texts.map((text) => reading.read(text, document(""))!);
      expect(own).toEqual(answers);
      const correct = own.map((answer) =>
        [...targets.keys()].filter((i) => reading.isCorrect(answer, document(targets[i]!))),
      );
      expect(correct).toEqual(right);
      expect(correct.flat().length).toBeGreaterThan(0);
    }
  }
});

test.each(expected.samples)("Python's random.sample: seed $seed, $k of $n", ({ seed, n, k, draws }) => {
  const random = new PythonRandom(seed);
  const items = Array.from({ length: n }, (_, i) => i);
  expect(draws.map(() => random.sample(items, k))).toEqual(draws);
});
