/** @file Reproducing the paper: exact plans, nothing done twice, failures that stop nothing else, reports of what was measured. */
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { SHAPES } from "../../models/index.ts";
import { loadRows } from "../../training/index.ts";
import { loadTasks } from "../registry.ts";
import { Data } from "./data.ts";
import { differencesOf } from "./differences.ts";
import { TABLE1 } from "./paper.ts";
import type { Plan } from "./plan.ts";
import { PRESET_OF, type Preset } from "./presets.ts";
import { findPreset, findStudies } from "./registry.ts";
import { csvTable, markdownReport, valueText } from "./render.ts";
import { reportOf, resultsOf } from "./results.ts";
import { openRuns, type RunEvent, runPlan } from "./run.ts";
import { figureOf, pairedBootstrap } from "./statistics.ts";
import { type Cell, canonical, type Scope } from "./study.ts";
import type { World } from "./work.ts";
import { openWorld, planOf } from "./world.ts";

const { paper, small, smoke } = PRESET_OF;

function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), "milora-paper-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

async function scopeOfShape(preset: Preset): Promise<Scope> {
  const tasks = [...(await loadTasks()).values()];
  const backbone = SHAPES["llama-2-7b"];
  const tasksOf = (name: string) =>
    tasks.filter((task) => task.name === name || task.groups?.includes(name)).map((task) => task.name);
  return { ...preset, backbone, tasksOf };
}

/** Distinct cells and trainings of each table and figure. */
async function sizes(preset: Preset): Promise<Record<string, [cells: number, trainings: number]>> {
  const scope = await scopeOfShape(preset);
  const studies = await findStudies(["all"]);
  return Object.fromEntries(
    studies.map(({ name, cells }) => {
      const found = cells(scope);
      const trainings = found.flatMap((cell) => ("training" in cell ? [canonical(cell.training)] : []));
      return [name, [new Set(found.map(canonical)).size, new Set(trainings).size]];
    }),
  );
}

describe("plans", () => {
  test("of the paper are its grids", async () => {
    const [mmlu, bbh] = [57, 27];
    expect(await sizes(paper)).toEqual({
      table1: [13 * 7 * 5, 13 * 7 * 5],
      table2: [4 * 5 * 2 * 5, 4 * 6 * 5],
      table3: [2 * 5 * (mmlu + bbh + 1), 2 * 5],
      table4: [4 * 2, 4],
      table5: [6 * 5 * (2 + mmlu), 6 * 5 * 3],
      table6: [11, 0],
      table7: [2 * 2 * 5 * (2 + mmlu), 2 * 2 * 5 * 3],
      fig2: [3, 3],
      fig3: [2 * 7 * 2 * 5, 2 * 7 * 2 * 5],
      fig4: [5 * 2 * 5, 5 * 2 * 5],
      fig5: [3 * 6 * 2 * 5, 3 * 6 * 2 * 5],
    });
  });

  test("of the bundled model are smaller", async () => {
    expect(await sizes(small)).toEqual({
      table1: [13 * 2 * 3, 13 * 2 * 3],
      table2: [4 * 2 * 2 * 3, 4 * 3 * 3],
      table3: [2 * 4 * 3, 2 * 3],
      table4: [8, 4],
      table5: [6 * 3, 6 * 3],
      table6: [2, 0],
      table7: [0, 0],
      fig2: [2, 2],
      fig3: [2 * 4 * 3, 2 * 4 * 3],
      fig4: [3 * 3, 3 * 3],
      fig5: [3 * 3 * 3, 3 * 3 * 3],
    });
  });

  test("unknown names are refused with the nearest known one", async () => {
    await expect(findStudies(["tabel1", "fig9"])).rejects.toThrow(
      /"tabel1", did you mean "table1".*no table or figure "fig9"/s,
    );
    expect(() => findPreset("smal")).toThrow(/did you mean "small"/);
  });

  test("name what is not the paper's, found by comparing", async () => {
    const scope = await scopeOfShape(small);
    const found = differencesOf(scope);
    const one = (setting: string) => found.find((difference) => difference.setting === setting);
    expect(one("seeds")).toMatchObject({ paper: "5", here: "3", methods: [] });
    expect(one("lr")).toMatchObject({ paper: "0.0001", here: "0.003" });
    expect(one("lr")!.methods).toHaveLength(13);
    expect(one("adapter.router_input")).toMatchObject({ paper: "raw", here: "rms", methods: ["MiLoRA", "MiDoRA"] });
    const own = differencesOf({ ...(await scopeOfShape(paper)), model: "models/llama-2-7b" });
    expect(own.map(({ setting }) => setting)).toEqual(["machine"]);
  });
});

/** The first rows of the bundled tasks: whoever reads all of them is slow. */
const fewRows = mkdtempSync(join(tmpdir(), "milora-paper-data-"));
for (const task of ["subjects", "authors"]) {
  mkdirSync(join(fewRows, task));
  for (const split of ["train", "dev", "test"]) {
    const name = join(task, `${split}.jsonl`);
    const lines = readFileSync(join(import.meta.dirname, "../../../assets/data", name), "utf8").split("\n");
    writeFileSync(join(fewRows, name), `${lines.slice(0, 12).join("\n")}\n`);
  }
}
afterAll(() => rmSync(fewRows, { recursive: true, force: true }));

/** One seed of little of everything. */
const tiny: Preset = { ...smoke, seeds: 1, dataDirectory: fewRows };

async function planned(names: readonly string[], output: string, changes: Partial<Preset> = {}) {
  const preset = { ...tiny, ...changes };
  const world = openWorld(preset, output);
  onTestFinished(() => world[Symbol.dispose]());
  return { plan: await planOf(names, preset, world), world };
}

async function run(plan: Plan, world: World, at?: (event: RunEvent) => boolean) {
  const events: RunEvent[] = [];
  const controller = new AbortController();
  const onEvent = (event: RunEvent) => {
    events.push(event);
    if (at?.(event)) controller.abort(new Error("interrupted"));
  };
  const outcome = runPlan(plan, world, { signal: controller.signal, onEvent });
  return { outcome: await outcome.catch((error: Error) => error), events };
}

const countOf = (events: readonly RunEvent[], type: RunEvent["type"]) =>
  events.filter((event) => event.type === type).length;

describe("running", () => {
  test("cells of several tables are one, also with a default written out", async () => {
    const { plan } = await planned(["table1", "fig3", "fig5"], temporary());
    const idOf = (adapter?: object) => {
      const training = { method: "milora", data: ["subjects"], seed: 0, ...(adapter && { adapter }) };
      return plan.byKey.get(canonical({ kind: "accuracy", training, task: "subjects" } as Cell))!.id;
    };
    expect(idOf({ top_k: 3 })).toBe(idOf());
    expect(idOf({ r: 16 })).toBe(idOf());
    expect(idOf({ top_k: 1 })).not.toBe(idOf());
    // Both figures share MiLoRA as it is, figure 5 also MOELoRA and LoRA, with table 1.
    expect(plan.cells).toHaveLength(26 + 3 + 3);
    expect(openRuns(plan)).toHaveLength(26 + 3 + 3);
  });

  test("cells of another device are others, trained and measured there", async () => {
    const [{ plan: cpu }, { plan: cuda }] = [
      await planned(["fig4", "table4"], temporary()),
      await planned(["fig4", "table4"], temporary(), { device: "cuda" }),
    ];
    expect(cuda.runs.map(({ config }) => config!.device)).toEqual(cuda.runs.map(() => "cuda"));
    expect([...cuda.runs, ...cuda.cells].map(({ holding }) => holding!.device)).not.toContain(undefined);
    const ids = new Set([...cpu.cells, ...cpu.runs].map(({ id }) => id));
    expect([...cuda.cells, ...cuda.runs].filter(({ id }) => ids.has(id))).toEqual([]);
  });

  test("nothing is repeated after an interruption while measuring", async () => {
    const output = temporary();
    const first = await planned(["fig4"], output);
    const begun = await run(first.plan, first.world, ({ type }) => type === "measured");
    expect((begun.outcome as Error).message).toBe("interrupted");
    expect([countOf(begun.events, "trained"), countOf(begun.events, "measured")]).toEqual([1, 1]);

    const second = await planned(["fig4"], output);
    expect(second.plan.cells.map(({ state }) => state)).toEqual(["done", "missing"]);
    const rest = await run(second.plan, second.world);
    expect(rest.outcome).toEqual({ trained: 1, measured: 1, failures: [] });

    const third = await planned(["fig4"], output);
    const nothing = await run(third.plan, third.world);
    expect(nothing.events).toEqual([]);
    expect(nothing.outcome).toEqual({ trained: 0, measured: 0, failures: [] });
  });

  test("training goes on at the step where it was interrupted, for all seeds", async () => {
    const output = temporary();
    const changes = { seeds: 2, balance: [0] };
    const first = await planned(["fig4"], output, changes);
    const begun = await run(first.plan, first.world, ({ type }) => type === "step");
    expect((begun.outcome as Error).message).toBe("interrupted");
    const second = await planned(["fig4"], output, changes);
    expect(second.plan.runs.map(({ state }) => state)).toEqual(["begun", "begun"]);
    const rest = await run(second.plan, second.world);
    expect(rest.events.flatMap((event) => (event.type === "step" ? [event.step] : []))).toEqual([2]);
    expect(rest.outcome).toEqual({ trained: 2, measured: 2, failures: [] });
  });

  test.each([["metrics.jsonl"], ["checkpoints"], ["config.json"]])("of a killed training %s was left", async (left) => {
    const output = temporary();
    const changes = { balance: [0] };
    const first = await planned(["fig4"], output, changes);
    await run(first.plan, first.world, ({ type }) => type === "step");
    const directory = first.world.store.runDirectory(first.plan.runs[0]!.id);
    expect(readdirSync(directory)).toContain(left);
    for (const name of readdirSync(directory)) if (name !== left) rmSync(join(directory, name), { recursive: true });
    const { plan, world } = await planned(["fig4"], output, changes);
    expect(plan.runs.map(({ state }) => state)).toEqual(["begun"]);
    expect((await run(plan, world)).outcome).toEqual({ trained: 1, measured: 1, failures: [] });
  });

  test("what fails is told, and all others are measured", async () => {
    const { plan, world } = await planned(["fig5"], temporary(), { ranks: [12] }); // MOELoRA has 8 experts
    const { outcome } = await run(plan, world);
    expect(outcome).toMatchObject({ trained: 2, measured: 2, failures: [{ code: "CONFIG_INVALID" }] });
    if (outcome instanceof Error) throw outcome;
    const [failure] = outcome.failures;
    expect(failure!.label).toContain("MOELoRA");
    expect(failure!.reason).toContain("does not divide r");
    const text = markdownReport(reportOf(plan, world.store, outcome.failures));
    expect(text).toContain(`## Failed\n\n- ${failure!.label}`);
  });
});

describe("reports", () => {
  const output = mkdtempSync(join(tmpdir(), "milora-paper-"));
  let plan: Plan;
  let world: World & Disposable;

  beforeAll(async () => {
    const preset = { ...tiny, seeds: 2, tasks: ["subjects"], routed: ["subjects"], methods: ["lora", "milora"] };
    world = openWorld(preset, output);
    plan = await planOf(["table1", "fig2", "table6"], preset, world);
    await runPlan(plan, world);
    return () => {
      world[Symbol.dispose]();
      rmSync(output, { recursive: true, force: true });
    };
  });

  test("hold what was measured, beside the paper's numbers", () => {
    const results = resultsOf(plan, world.store);
    const values = [0, 1].map((seed) => {
      const training = { method: "milora", data: ["subjects"], seed };
      const value = results.get({ kind: "accuracy", training, task: "subjects" })!;
      expect(value.scores).toHaveLength(4);
      expect(value.value).toBe(value.scores.reduce((a, b) => a + b, 0) / 4);
      return 100 * value.value;
    });
    const report = reportOf(plan, world.store, []);
    const table = report.studies[0]!.tables[0]!;
    const row = table.rows.find(({ method }) => method === "MiLoRA")!;
    expect(row.subjects).toEqual(figureOf(values));
    expect(row.average_paper).toBe(TABLE1.milora!.scores.at(-1));
    expect(row.tunable).toBe(0.341064); // as `milora methods` counts it on this backbone, r = 16
    expect(report.studies.map(({ name, cells, done }) => [name, cells, done])).toEqual([
      ["table1", 4, 4],
      ["table6", 2, 2],
      ["fig2", 1, 1],
    ]);
    expect(csvTable(table)).toMatch(
      /^method,tunable,activated,subjects,subjects_low,subjects_high,subjects_seeds,average,/,
    );
  });

  test("outputs of all rows are kept", () => {
    const run = plan.runs.find(({ training }) => training.method === "lora")!;
    const lines = readFileSync(world.store.rowsPath(run.id), "utf8").trim().split("\n");
    expect(lines.map((line) => (JSON.parse(line) as { row: number }).row).sort()).toEqual([0, 1, 2, 3]);
  });

  test("count the rows of the files", () => {
    const { tables } = reportOf(plan, world.store, []).studies[1]!;
    expect(tables[0]!.rows).toMatchObject([
      { source: "subjects", train: 12, dev: 12, test: 12 },
      { source: "authors", train: 12, dev: 12, test: 12 },
    ]);
  });

  test("shares of the experts add up to one in each layer", () => {
    const [chart] = reportOf(plan, world.store, []).studies[2]!.charts;
    if (chart?.kind !== "shares") throw new Error("no chart of shares");
    expect(chart.columns).toHaveLength(6);
    for (const layer of chart.columns) expect(layer.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 2);
  });
});

describe("statistics", () => {
  test("paired bootstrap: equal, clearly better, and undecided answers", () => {
    const ones = new Array<number>(100).fill(1);
    expect(pairedBootstrap([{ a: ones, b: ones }])).toEqual({ difference: 0, low: 0, high: 0, p: 1 });
    const better = pairedBootstrap([{ a: ones, b: ones.map((_, i) => (i < 20 ? 0 : 1)) }]);
    expect(better.difference).toBeCloseTo(20);
    expect(better.low).toBeGreaterThan(10);
    expect(better.high).toBeLessThan(30);
    expect(better.p).toBeLessThan(0.01);
    // Twelve rows to eight: an exact McNemar test has p = 0.50.
    const undecided = pairedBootstrap([
      { a: ones.map((_, i) => (i < 12 ? 1 : 0)), b: ones.map((_, i) => (i >= 12 && i < 20 ? 1 : 0)) },
    ]);
    expect(undecided.difference).toBeCloseTo(4);
    expect(undecided.p).toBeGreaterThan(0.25);
    expect(undecided.p).toBeLessThan(0.6);
  });

  test("figures are medians with their ends", () => {
    const figure = figureOf([3, 1, 2, 10])!;
    expect(figure).toEqual({ value: 2.5, low: 1, high: 10, seeds: 4 });
    expect(valueText(figure, { key: "x", title: "x" })).toBe("2.5 (1.0–10.0)");
  });
});

test("training rows of tasks are prompts as they are measured, with the answer that is looked for", async () => {
  const folder = temporary();
  const data = new Data(small.dataDirectory, folder);
  const { train, dev } = await data.training("openbookqa");
  expect(dev).toBeUndefined(); // the samples have none
  train.write();
  const rows = await loadRows(train.path);
  const task = (await loadTasks()).get("openbookqa")!;
  const form = task.protocols.hu2023!;
  if (form.kind !== "generate") throw new Error("not generated");
  expect(rows).toHaveLength(train.rows);
  for (const row of rows) {
    if (row.form !== "instruction") throw new Error("not an instruction");
    expect(row.output).toMatch(/^the correct answer is answer\d$/);
    expect(row.instruction).toMatch(
      /^Please choose the correct answer to the question: [\s\S]*\n\nAnswer format: answer1/,
    );
    expect(form.readings[0]!.read(row.output, {} as never)).toBe(row.answer);
  }
});

test("of training rows that are missing it is said where to put them and where they are", async () => {
  const data = new Data(small.dataDirectory, temporary());
  await expect(data.training("aqua")).rejects.toThrow(
    /samples: has no "train" rows of aqua; looked for aqua\/train\.jsonl \(or \.json, \.csv, \.parquet\)\. The data set: AQuA-RAT, github\.com\/google-deepmind\/AQuA, or hf:deepmind\/aqua_rat:raw, split train$/,
  );
  await expect(data.training("alpaca")).rejects.toThrow(/alpaca\/train\.jsonl, .*The data set: hf:tatsu-lab\/alpaca$/);
});

test("rows are counted as far as they are there", async () => {
  const data = new Data(small.dataDirectory, temporary());
  // The samples of AQuA have no training rows, those of MMLU are of four of its 57 subjects.
  expect(await data.count("aqua", ["aqua"])).toEqual({ train: null, dev: 6, test: 8, overlap: null });
  expect(await data.count("mmlu_anatomy", ["mmlu_anatomy"])).toEqual({
    train: null,
    dev: null,
    test: 6,
    overlap: null,
  });
  expect(await data.count("subjects", ["subjects"])).toMatchObject({ train: 1920, dev: 150, test: 300 });
  await expect(data.count("mmlu", ["mmlu_anatomy", "mmlu_virology"])).rejects.toThrow(/mmlu_virology/);
  await expect(data.count("alpaca", [])).rejects.toThrow(/has no rows of alpaca/);
});
