/** @file Tasks as a whole: where rows come from, measurements that go on, what long prompts lose, errors that say it all. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { Engine } from "../generation/index.ts";
import { Backbone } from "../models/index.ts";
import { checkData, evaluateTask } from "./evaluate.ts";
import { loadSplit } from "./load.ts";
import { encodePair } from "./prompts.ts";
import { findTasks, hasSameShots, loadTasks } from "./registry.ts";
import { RowStore } from "./store.ts";
import { PROTOCOLS, type Protocol } from "./task.ts";

const root = join(import.meta.dirname, "../..");
const samples = join(root, "assets/data/samples");
let backbone: Backbone;
let engine: Engine;
let directory: string;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "milora-tasks-"));
  backbone = await Backbone.load(join(root, "assets/tiny-llama"));
  engine = Engine.create(backbone);
});
afterAll(() => {
  engine.dispose();
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

async function taskOf(name: string, protocol: Protocol = "lm-eval") {
  const [task] = await findTasks([name], protocol);
  return task!;
}

test("every task names its source and licence, and reads its bundled or sample rows", async () => {
  const tasks = [...(await loadTasks()).values()];
  expect(tasks).toHaveLength(2 + 2 + 1 + 1 + 1 + 1 + 1 + 57 + 27 + 1);
  expect(new Set(tasks.map(({ name }) => name)).size).toBe(tasks.length);
  let read = 0;
  for (const task of tasks) {
    expect(task.credit.licence).not.toBe("");
    expect(task.data.hub ?? task.data.bundled).toBeDefined();
    for (const protocol of PROTOCOLS) {
      const form = task.protocols[protocol];
      if (!form || (task.groups?.[0] === "mmlu" && !["mmlu_anatomy", "mmlu_philosophy"].includes(task.name))) continue;
      const { documents } = await loadSplit(task, form.split, { directory: samples });
      for (const document of documents) expect(form.prompt(document).length).toBeGreaterThan(5);
      read += documents.length;
    }
  }
  expect(read).toBeGreaterThan(27 * 2 + 10 * 8);
});

test("groups and the harness's names stand for tasks; unknown ones are named with the nearest", async () => {
  expect(await findTasks(["mmlu"], "lm-eval")).toHaveLength(57);
  expect(await findTasks(["mmlu_stem", "mmlu", "mmlu_anatomy"], "lm-eval")).toHaveLength(57);
  expect((await findTasks(["agieval_aqua_rat"], "lm-eval")).map(({ name }) => name)).toEqual(["aqua"]);
  await expect(findTasks(["arc_esay", "xyzzy"], "lm-eval")).rejects.toMatchObject({
    code: "TASK_UNKNOWN",
    problems: ['no task "arc_esay", did you mean "arc_easy"?', 'no task "xyzzy"'],
  });
  await expect(findTasks(["bbh_snarks", "arc_easy", "mmlu_anatomy"], "hu2023")).rejects.toMatchObject({
    code: "TASK_UNSUPPORTED",
    problems: [expect.stringContaining('"bbh_snarks"'), expect.stringContaining('"mmlu_anatomy"')],
  });
});

test("rows are found by task and split, under other names, without a header, or as one file", async () => {
  const arc = await taskOf("arc_easy");
  const { source, documents } = await loadSplit(arc, "test", { directory: samples });
  expect(source).toBe(join(samples, "arc_easy/test.jsonl"));
  expect(documents).toHaveLength(8);

  mkdirSync(join(directory, "mmlu/test"), { recursive: true });
  writeFileSync(join(directory, "mmlu/test/anatomy_test.csv"), '"Which\nbone?",a,b,"c, d",e,C\nTwo?,1,2,3,4,B\n');
  const mmlu = await loadSplit(await taskOf("mmlu_anatomy"), "test", { directory });
  expect(mmlu.documents.map(({ question, target }) => [question, target])).toEqual([
    ["Which\nbone?", "c, d"],
    ["Two?", "2"],
  ]);
  mkdirSync(join(directory, "bbh"));
  const examples = [
    { input: "Q1", target: "(A)" },
    { input: "Q2", target: "(B)" },
  ];
  writeFileSync(join(directory, "bbh/snarks.json"), JSON.stringify({ canary: "x", examples }));
  const bbh = await loadSplit(await taskOf("bbh_snarks"), "test", { directory });
  expect(bbh.documents.map(({ target }) => target)).toEqual(["(A)", "(B)"]);

  const rows = join(directory, "own.json");
  writeFileSync(rows, JSON.stringify(documents.slice(0, 2).map(({ fields }) => fields)));
  expect((await loadSplit(arc, "test", { directory: samples, rows })).documents).toHaveLength(2);
  // Shots are not taken from it.
  expect((await loadSplit(arc, "train", { directory: samples, rows }, false)).documents).toHaveLength(6);
});

test("parquet files of the hub give what their rows as JSON give", async () => {
  for (const name of ["arc_easy", "mmlu_anatomy"]) {
    const task = await taskOf(name);
    const rows = join(root, `test/fixtures/lm-eval/${name}.parquet`);
    expect(await loadSplit(task, "test", { rows })).toMatchObject({
      documents: (await loadSplit(task, "test", { directory: samples })).documents,
    });
  }
});

test("without a directory the hub is asked, for config and split", async () => {
  vi.stubEnv("HF_HUB_OFFLINE", "");
  vi.stubEnv("HF_ENDPOINT", "http://127.0.0.1:9"); // nobody listens there
  vi.stubEnv("MILORA_CACHE", join(directory, "cache"));
  onTestFinished(() => void vi.unstubAllEnvs());
  const [mmlu, piqa] = [await taskOf("mmlu_anatomy"), await taskOf("piqa")];
  const code = "DATA_UNAVAILABLE";
  await expect(loadSplit(mmlu, "dev", {})).rejects.toMatchObject({
    code,
    message: expect.stringMatching(/^hf:cais\/mmlu:anatomy\/dev: /),
  });
  await expect(loadSplit(piqa, "validation", {})).rejects.toMatchObject({
    code,
    message: expect.stringMatching(/^hf:baber\/piqa\/validation: /),
  });
});

test("what is wrong with the data of all tasks is said at once", async () => {
  writeFileSync(join(directory, "bad.jsonl"), '{"question": "x"}\n{"goal": 1}\nnot json\n');
  await expect(
    loadSplit(await taskOf("arc_easy"), "test", { rows: join(directory, "bad.jsonl") }),
  ).rejects.toMatchObject({ code: "DATA_INVALID", problems: { length: 3 } });
  const tasks = await findTasks(["boolq", "arc_easy", "piqa", "mmlu_virology"], "lm-eval");
  await expect(checkData(tasks, { protocol: "lm-eval", data: { directory: samples } })).rejects.toThrow(
    /2 problems: .*boolq.* no "passage".*mmlu_virology/,
  );
});

test("a measurement goes on where it was stopped, and is asked nothing twice", async () => {
  const task = await taskOf("openbookqa");
  const path = join(directory, "rows.jsonl");
  const options = { protocol: "lm-eval", data: { directory: samples } } as const;
  using small = Engine.create(backbone, { maxBatch: 1 }); // four rows between two writes
  const whole = await evaluateTask(small, task, options);
  const controller = new AbortController();
  const stopped = evaluateTask(small, task, {
    ...options,
    store: new RowStore(path),
    signal: controller.signal,
    onProgress: (done) => {
      if (done === 4) controller.abort(new Error("enough"));
    },
  });
  await expect(stopped).rejects.toThrow("enough");
  const kept = readFileSync(path, "utf8");
  expect(kept.split("\n").filter(Boolean)).toHaveLength(4);
  writeFileSync(path, `${kept}{"key": "half a li`);

  const progress: number[] = [];
  const again = await evaluateTask(small, task, {
    ...options,
    store: new RowStore(path),
    onProgress: (done) => progress.push(done),
  });
  expect(again).toEqual(whole);
  expect(progress[0]).toBe(4);
  const lines = readFileSync(path, "utf8").split("\n").filter(Boolean);
  expect(lines.filter((line) => line.startsWith('{"task"'))).toHaveLength(8);

  // With every row kept the engine is not asked at all.
  const closed = Engine.create(backbone, { maxBatch: 1 });
  closed.dispose();
  expect(await evaluateTask(closed, task, { ...options, store: new RowStore(path) })).toEqual(whole);
  // Other prompts are other rows.
  await expect(evaluateTask(closed, task, { ...options, shots: 1, store: new RowStore(path) })).rejects.toThrow(
    "disposed",
  );
});

test("shots that all rows have in front are read once, and change no answer", async () => {
  const tasks = await findTasks(["mmlu_philosophy", "bbh_snarks", "gsm8k", "arc_easy"], "lm-eval");
  const alike = Object.fromEntries(tasks.map((task) => [task.name, hasSameShots(task, "lm-eval")]));
  expect(alike).toEqual({ mmlu_philosophy: true, bbh_snarks: true, gsm8k: false, arc_easy: false });
  const task = tasks.find(({ name }) => name === "mmlu_philosophy")!;
  expect(hasSameShots(task, "lm-eval", 0)).toBe(false);

  using small = Engine.create(backbone, { maxBatch: 1 });
  using keeping = Engine.create(backbone, { maxBatch: 1, prefixCache: { bytes: 2 ** 26 } });
  const options = { protocol: "lm-eval", data: { directory: samples } } as const;
  const [whole, shared] = [await evaluateTask(small, task, options), await evaluateTask(keeping, task, options)];
  const likelihoods = ({ samples: rows }: typeof whole) =>
    rows.flatMap(({ output }) => (output.kind === "choice" ? output.logLikelihoods : []));
  expect(likelihoods(whole)).toHaveLength(6 * 4);
  for (const [i, value] of likelihoods(whole).entries()) expect(likelihoods(shared)[i]).toBeCloseTo(value, 4);
  expect(shared.metrics).toEqual(whole.metrics);
  expect(keeping.prefixCache).toMatchObject({ hits: 5, misses: 1 });
  expect(keeping.prefixCache!.tokens % 5).toBe(0); // all shots of all rows but the first
  expect(keeping.prefixCache!.tokens / 5).toBeGreaterThan(200);
});

test("context and choice are tokenised together, blanks before the choice are its own, too long a context loses its start", () => {
  const { tokenizer } = backbone;
  const { prompt, continuation } = encodePair(tokenizer, "The sky is  ", " blue", 1000);
  expect(prompt).toEqual(tokenizer.encode("The sky is"));
  expect([...prompt, ...continuation]).toEqual(tokenizer.encode("The sky is   blue"));
  const cut = encodePair(tokenizer, "one two three four five six seven", " eight nine", 5);
  const all = tokenizer.encode("one two three four five six seven eight nine");
  expect([...cut.prompt, ...cut.continuation]).toEqual(all.slice(-6));
  expect(() => encodePair(tokenizer, "one", " two three four five six", 3)).toThrow(/more than fit/);
  expect(encodePair(tokenizer, "", " blue", 10).prompt).toEqual([tokenizer.bosTokenId]);
});

test("a result names what decides it", async () => {
  const task = await taskOf("subjects", "hu2023");
  const options = { protocol: "hu2023", limit: 3, maxNewTokens: 4 } as const;
  const result = await evaluateTask(engine, task, options);
  expect(result).toMatchObject({
    protocol: "hu2023",
    shots: { count: 0 },
    seed: 1234,
    template: "alpaca",
    decoding: { beams: 1, maxNewTokens: 4, temperature: 0 },
    extraction: { "first-match": { kind: "labels" } },
    backbone: backbone.digest,
    adapter: null,
    rows: 3,
    data: { split: "test", rows: 300 },
    overlap: { skipped: "no training rows are known" },
  });
  const beams = await evaluateTask(engine, task, { ...options, beams: 3 });
  expect(beams.decoding).toMatchObject({ beams: 3 });
  expect(beams.promptDigest).toBe(result.promptDigest);
  const bare = await evaluateTask(engine, task, { ...options, template: "none" });
  expect(bare.promptDigest).not.toBe(result.promptDigest);
  await expect(evaluateTask(engine, task, { ...options, maxNewTokens: 1024 })).rejects.toThrow(/leave no room/);
  await expect(evaluateTask(engine, task, { ...options, shots: 2 })).rejects.toThrow(/is asked without shots/);
});
