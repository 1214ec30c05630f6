/** @file Grids: which points and cells there are, by what they are known, and what is refused before anything is begun. */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InputError } from "../../base/index.ts";
import { problemsOf } from "../paper/work.ts";
import { openWorld } from "../paper/world.ts";
import { planGrid } from "./plan.ts";
import { gridResults, gridTable, indexOf, readIndex, writeIndex } from "./results.ts";
import { type Grid, gridSchema, pointsOf, portableGrid, readGrid } from "./schema.ts";

const model = "assets/tiny-llama";
let directory: string;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "milora-grid-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const rows = (name: string, answers: readonly string[]): string => {
  const path = join(directory, name);
  const line = (answer: string, i: number) =>
    JSON.stringify({
      instruction: `Which of a or b, ${i}?\n\nAnswer format: a/b`,
      input: "",
      output: `It is ${answer}`,
      answer,
    });
  writeFileSync(path, `${answers.map(line).join("\n")}\n`);
  return path;
};

const grid = (changes: Record<string, unknown> = {}): Grid =>
  gridSchema.parse({
    train: { model, method: "lora", adapter: { r: 2 }, data: { train: rows("train.jsonl", ["a", "b", "a"]), dev: 0 } },
    axes: { lr: [1e-3, 1e-4], seed: [0, 1] },
    evaluate: [{ data: rows("test.jsonl", ["a", "b"]) }],
    ...changes,
  });

async function planned(of: Grid) {
  using world = openWorld({ dataDirectory: undefined }, join(directory, "out"));
  return await planGrid(of, world);
}

const problems = (input: unknown): readonly string[] => {
  const path = join(directory, "grid.json");
  writeFileSync(path, JSON.stringify(input));
  try {
    readGrid(path);
  } catch (error) {
    if (error instanceof InputError) return error.problems;
    throw error;
  }
  return [];
};

describe("a grid", () => {
  test("is each value with each, the last axis first; each point a training and a cell for each evaluation", async () => {
    expect(pointsOf(grid())).toEqual([
      { lr: 1e-3, seed: 0 },
      { lr: 1e-3, seed: 1 },
      { lr: 1e-4, seed: 0 },
      { lr: 1e-4, seed: 1 },
    ]);
    const plan = await planned(grid());
    expect([plan.runs.length, plan.cells.length, problemsOf(plan)]).toEqual([4, 4, []]);
    expect(plan.runs[1]!.label).toBe("lr 0.001 · seed 1");
    expect(plan.cells[1]!.label).toBe("lr 0.001 · seed 1 → test.jsonl");
    expect(plan.runs[1]!.config).toMatchObject({ lr: 1e-3, seed: 1, adapter: { r: 2 }, weights: "float32" });
  });

  test("knows trainings and cells by what decides them: rows, not their place; settings, not how they are said", async () => {
    const ids = async (of: Grid) => (await planned(of)).points.map(({ run, cells }) => [run!.id, cells[0]!.id]);
    const first = await ids(grid());
    const moved = rows("elsewhere.jsonl", ["a", "b"]);
    expect(await ids(grid({ evaluate: [{ data: moved, beams: 1 }] }))).toEqual(first);
    const written = { ...grid().train, weight_decay: 0, weights: "float32" };
    expect(await ids(grid({ train: written }))).toEqual(first);
    const [[run, cell]] = (await ids(grid({ evaluate: [{ data: rows("other.jsonl", ["b", "b"]) }] }))) as [
      [string, string],
    ];
    expect([run === first[0]![0], cell === first[0]![1]]).toEqual([true, false]);
    const trained = { ...grid().train, data: { train: rows("more.jsonl", ["a", "b", "b"]), dev: 0 } };
    const [[other]] = (await ids(grid({ train: trained }))) as [[string, string]];
    expect(other).not.toBe(first[0]![0]);
  });

  test("without trainings has adapters, or none, for points; what is the same is measured once", async () => {
    const fixture = "test/fixtures/milora/default";
    const plan = await planned(
      gridSchema.parse({
        model: "test/fixtures/backbones/llama-gqa",
        adapters: [null, fixture],
        evaluate: grid().evaluate,
      }),
    );
    expect(plan.runs).toEqual([]);
    expect(plan.points.map(({ settings }) => settings)).toEqual([{ adapter: "none" }, { adapter: fixture }]);
    const twice = await planned(
      gridSchema.parse({
        model,
        adapters: [null],
        evaluate: [{ data: grid().evaluate[0]!.data }, { name: "again", data: grid().evaluate[0]!.data }],
      }),
    );
    expect([twice.points[0]!.cells.length, twice.cells.length]).toEqual([2, 1]);
  });

  test("says of each point what is wrong with it, and plans the others", async () => {
    const plan = await planned(grid({ axes: { method: ["lora", "milora", "lorra"], "adapter.top_k": [2] } }));
    expect(plan.runs.map(({ config }) => config?.method)).toEqual(["milora"]);
    expect(problemsOf(plan)).toEqual([
      expect.stringMatching(/adapter: unknown key "top_k" of lora/),
      expect.stringMatching(/lorra/),
    ]);
    const missing = await planned(grid({ evaluate: [{ data: "nowhere.jsonl" }] }));
    expect(problemsOf(missing)).toEqual([expect.stringContaining("nowhere.jsonl")]);
  });

  test("begins with a preset, over which its own settings and the point's stand", async () => {
    const plan = await planned(grid({ preset: "small", axes: { method: ["lora", "milora"] } }));
    expect(plan.runs.map(({ config }) => config)).toMatchObject([
      { method: "lora", epochs: 1, lr: 3e-3, adapter: { r: 2 } },
      { method: "milora", epochs: 1, lr: 3e-3, adapter: { r: 2 } },
    ]);
  });

  test("travels with whole paths, and is the same grid then", async () => {
    const { train, evaluate } = grid();
    const relative = { train: { ...train, data: { train: "assets/data/subjects/dev.jsonl", dev: 0 } }, evaluate };
    const axes = { "data.template": ["alpaca"], "data.train": ["assets/data/authors/*.jsonl", "hf:org/name"] };
    const sent = portableGrid(gridSchema.parse({ ...relative, axes }));
    expect(sent.train).toMatchObject({
      model: resolve(model),
      data: { train: resolve("assets/data/subjects/dev.jsonl") },
    });
    expect(sent.axes).toEqual({
      "data.template": ["alpaca"],
      "data.train": [resolve("assets/data/authors/*.jsonl"), "hf:org/name"],
    });
    expect(gridSchema.parse(JSON.parse(JSON.stringify(sent)))).toEqual(sent);
    const [here, there] = [await planned(grid()), await planned(portableGrid(grid()))];
    expect(there.cells.map(({ id }) => id)).toEqual(here.cells.map(({ id }) => id));
  });

  test("makes one table of what is there, with dashes for what is not", async () => {
    const index = indexOf(
      await planned(
        grid({
          evaluate: [{ data: rows("test.jsonl", ["a"]) }, { data: rows("p.jsonl", ["a"]), metric: "perplexity" }],
        }),
      ),
    );
    const done = index.points[1]!.cells;
    const value = (id: string) => ({
      metric: id === done[0] ? "accuracy" : "perplexity",
      value: id === done[0] ? 0.25 : 7.5,
      interval: null,
      rows: 1,
    });
    const record = (id: string) => ({
      id,
      kind: "score",
      label: id,
      value: value(id),
      seconds: 1,
      amount: 1,
      machine: "m",
      made: "now",
    });
    const results = gridResults(index, (id) => (done.includes(id) ? record(id) : undefined));
    expect(results).toMatchObject({ axes: ["lr", "seed"], cells: 8, done: 2 });
    const { columns, rows: lines } = gridTable(results);
    expect(columns.map(({ title }) => title)).toEqual(["lr", "seed", "test.jsonl, accuracy %", "p.jsonl perplexity"]);
    expect(lines[1]).toEqual({ lr: 1e-3, seed: 1, "test.jsonl": 25, "p.jsonl perplexity": 7.5 });
    expect(lines[0]!["test.jsonl"]).toBeUndefined();
  });
});

test.each<[string, Record<string, unknown>, RegExp]>([
  ["neither trainings nor adapters", { train: undefined }, /needs either train or adapters/],
  ["both", { adapters: ["a"], model }, /needs either train or adapters/],
  ["adapters without a model", { train: undefined, axes: {}, adapters: ["a"] }, /the model that they are of/],
  ["a value twice", { axes: { seed: [1, 1] } }, /seed has a value twice/],
  ["a directory for all runs", { axes: { output_dir: ["a"] } }, /directory of its own/],
  ["no path", { axes: { "__proto__.x": [1], "a..b": [1] } }, /no path of a setting/],
  ["no values", { axes: { seed: [] } }, /axes\.seed/],
  ["an unknown key", { axis: {} }, /axis/],
  [
    "two evaluations of one name",
    { evaluate: [{ data: "a/x.jsonl" }, { data: "b/x.jsonl" }] },
    /"x.jsonl" is there twice/,
  ],
  ["an evaluation of nothing", { evaluate: [{}] }, /either data or task/],
  ["perplexity of a task", { evaluate: [{ task: "boolq", metric: "perplexity" }] }, /perplexity is of data/],
  ["shots of a file", { evaluate: [{ data: "a", num_fewshot: 2 }] }, /num_fewshot is of a task/],
  ["nothing to measure", { evaluate: [] }, /evaluate/],
])("refuses %s", (_, changes, message) => {
  const { train, axes, evaluate } = grid();
  expect(problems({ train, axes, evaluate, ...changes })).toContainEqual(expect.stringMatching(message));
});

test("the index of a directory with more cells than there are evaluations is none", () => {
  const point = { settings: { lr: 1e-3, seed: 0 }, run: "r", cells: ["a"] };
  writeIndex(directory, { grid: grid(), points: [point] });
  expect(readIndex(directory).points).toEqual([point]);
  writeIndex(directory, { grid: grid(), points: [{ ...point, cells: ["a", "b"] }] });
  expect(() => readIndex(directory)).toThrow(/more cells than there are evaluations/);
});
