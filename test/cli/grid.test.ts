/** @file `milora sweep` on grids of somebody's own: in one process, in several, by workers that are killed, without trainings. */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { NO_OWN_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { childrenOf, fewRows, madeIn, start } from "./grids.ts";
import { milora, temporary, tiny } from "./milora.ts";

/** Generous: what trains may have to share its cores with other tests. */
const SLOW = { timeout: 600_000 };

/** Two methods, two seeds, two evaluations: 4 trainings and 8 cells, of a few seconds together. */
function gridFile(data: string, changes: Record<string, unknown> = {}): string {
  const path = join(temporary(), "grid.json");
  const train = {
    ...{ model: tiny, method: "lora", adapter: { r: 2 }, max_steps: 2, batch_size: 2, micro_batch_size: 2 },
    ...{ data: { train: join(data, "subjects/train.jsonl"), dev: 0.2 }, checkpoint_every: 1, lr: 1e-3 },
  };
  const evaluate = [
    { name: "answers", data: join(data, "subjects/test.jsonl"), limit: 4, max_new_tokens: 4 },
    { name: "authors", data: join(data, "authors/test.jsonl"), limit: 4, metric: "perplexity" },
  ];
  const axes = { method: ["lora", "milora"], seed: [0, 1] };
  writeFileSync(path, JSON.stringify({ train, axes, evaluate, ...changes }));
  return path;
}

const run = (file: string, output: string, ...more: string[]): string[] => [
  "sweep",
  "run",
  file,
  "--output",
  output,
  ...more,
];

/** All that a grid has come to. */
const all = (output: string): Record<string, unknown> =>
  Object.fromEntries([
    ...madeIn(output),
    ...["results.csv", "results.json", "results.md"].map((name) => [name, readFileSync(join(output, name), "utf8")]),
  ]);

test(
  "a grid is run in this process, shown as one table, gone on with, and run by processes to the same",
  SLOW,
  async () => {
    const [alone, shared, data] = [temporary(), temporary(), fewRows()];
    const file = gridFile(data);
    const plan = JSON.parse((await milora(run(file, alone, "--plan", "--json"))).stdout);
    expect(plan.missing).toEqual({ trainings: 4, cells: 8 });
    expect(existsSync(join(alone, "grid.json"))).toBe(false); // nothing was begun
    const stopped = await milora(run(file, alone), { interruptAt: "[3/12]" });
    expect(stopped.code).toBe(130);
    const finished = await milora(run(file, alone));
    expect(finished).toMatchObject({ code: 0, stderr: expect.stringMatching(/trainings? and \d cells to do/) });
    expect(finished.stdout).toMatch(
      /^method +seed +answers, accuracy % +authors, perplexity\nlora +0 +\d+\.\d +\d+\.\d{3}\n/,
    );
    expect(finished.stdout).toContain("8 of 8 cells");
    const again = await milora(run(file, alone, "--json"));
    expect([again.code, again.stderr]).toEqual([0, "0 trainings and 0 cells to do\n"]);
    const results = JSON.parse(again.stdout);
    expect(results).toMatchObject({
      axes: ["method", "seed"],
      evaluations: ["answers", "authors"],
      done: 8,
      failures: [],
    });
    expect(results.points).toHaveLength(4);
    expect(results.points[3]).toMatchObject({
      ...{ settings: { method: "milora", seed: 1 }, trained: true, devPerplexity: expect.any(Number) },
      scores: [
        { metric: "accuracy", rows: 4, interval: [expect.any(Number), expect.any(Number)] },
        { metric: "perplexity", rows: 4, interval: null },
      ],
    });
    expect((await milora(["sweep", "results", alone])).stdout).toBe(finished.stdout);
    // As `milora eval` measures it.
    const adapter = join(alone, results.points[3].run, "best");
    const flags = ["--data", join(data, "subjects/test.jsonl"), "--limit", "4", "--max-new-tokens", "4", "--json"];
    const evaluated = await milora(["eval", "--model", tiny, "--adapter", adapter, ...flags]);
    expect(results.points[3].scores[0].value).toBe(JSON.parse(evaluated.stdout).accuracy.value);

    const env = { DATABASE_URL: "postgres://nobody@127.0.0.1:1/none" }; // is not asked
    expect(await milora(run(file, shared, "--concurrency", "2"), { env })).toMatchObject({ code: 0 });
    expect(all(shared)).toEqual(all(alone));
  },
);

test("adapters that are there are measured beside the bare backbone, without any training", SLOW, async () => {
  const [output, data] = [temporary(), fewRows()];
  const trained = join(temporary(), "run");
  const train = [
    "train",
    "--model",
    tiny,
    "--train",
    join(data, "subjects/train.jsonl"),
    "--dev",
    "0",
    "--method",
    "lora",
  ];
  expect(
    (await milora([...train, "--set", "max_steps=3", "--set", "lr=0.01", "--set", "adapter.r=2", "--output", trained]))
      .code,
  ).toBe(0);
  const adapters = [null, join(trained, "best")];
  const evaluate = [
    { name: "answers", data: join(data, "subjects/test.jsonl"), limit: 2, max_new_tokens: 2 },
    { task: "authors", data_dir: data, limit: 2, max_new_tokens: 2 },
  ];
  const grid = { train: undefined, axes: undefined, model: tiny, weights: "int8", adapters, evaluate };
  const { code, stdout } = await milora(run(gridFile(data, grid), output, "--json"));
  expect(code).toBe(0);
  expect(JSON.parse(stdout)).toMatchObject({
    ...{ axes: ["adapter"], cells: 2 * adapters.length, done: 2 * adapters.length },
    points: adapters.map((path) => ({ settings: { adapter: path ?? "none" }, run: null, trained: false })),
  });
});

test(
  "what is wrong with a grid is told before anything is begun; what fails on the way leaves the others",
  SLOW,
  async () => {
    const [output, data] = [join(temporary(), "out"), fewRows()];
    const axes = { method: ["lora", "milora"], "adapter.top_k": [1] };
    const wrong = await milora(run(gridFile(data, { axes }), output));
    expect(wrong).toMatchObject({ code: 2, stderr: expect.stringMatching(/unknown key "top_k" of lora/) });
    const unknown = await milora(run(gridFile(data, { axis: {} }), output));
    expect(unknown).toMatchObject({ code: 2, stderr: expect.stringMatching(/grid\.json.*axis/) });
    expect(existsSync(output)).toBe(false);
    const nowhere = await milora(["sweep", "start", gridFile(data), "--output", output], { env: { DATABASE_URL: "" } });
    expect(nowhere).toMatchObject({ code: 2, stderr: expect.stringContaining("milora sweep run needs none") });

    const file = gridFile(data);
    const plan = JSON.parse((await milora(run(file, output, "--plan", "--json"))).stdout);
    const blocked = join(output, "runs", plan.runs[0].id);
    expect((await milora(run(gridFile(data, { axes: { method: ["milora"], seed: [1] } }), output))).code).toBe(0);
    writeFileSync(blocked, "");
    const failed = await milora(run(file, output));
    expect(failed).toMatchObject({ code: 1, stderr: expect.stringMatching(/failed: .*cannot be written/) });
    expect(failed.stdout).toContain("6 of 8 cells"); // two of them from the smaller grid before
    rmSync(blocked);
    expect(await milora(run(file, output))).toMatchObject({ code: 0, stdout: expect.stringContaining("8 of 8 cells") });
  },
);

describe.skipIf(NO_OWN_POSTGRES)(`PostgreSQL ${NO_OWN_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use(true);

  test("workers are killed; each cell has one result, and all are what one process makes", SLOW, async () => {
    const env = { DATABASE_URL: await servers.database() };
    const [alone, shared, data] = [temporary(), temporary(), fewRows()];
    const file = gridFile(data);
    const flags = ["--output", shared, "--retries", "1000", "--retry-delay", "1"];
    const begun = await milora(["sweep", "start", file, ...flags, "--json"], { env });
    expect(JSON.parse(begun.stdout)).toMatchObject({ trainings: 4, cells: 8, output: shared });
    const waiting = start(["sweep", "start", file, ...flags, "--wait"], env);
    const single = milora(run(file, alone));
    await waiting.said("no worker is there");
    const work = ["worker", "--concurrency", "2", "--threads", "1", "--lease", "2", "--drain"];
    let worker = start(work, env);
    const running = JSON.parse((await milora(["sweep", "status", shared, "--json"], { env })).stdout);
    expect(running.cells).toHaveLength(12);
    for (let i = 0; i < 4; i++) {
      await Promise.race([worker.said("begun "), waiting.ended]);
      await sleep(300 + 500 * i);
      const [process_] = childrenOf(worker.child.pid!);
      if (i % 2 && process_) {
        process.kill(process_, "SIGKILL");
        continue;
      }
      worker.child.kill("SIGKILL");
      await worker.ended;
      worker = start(work, env);
    }
    expect([await waiting.ended, waiting.stderr()]).toEqual([0, expect.stringContaining("[12/12]")]);
    expect(await worker.ended).toBe(0);
    expect((await single).code).toBe(0);
    expect(all(shared)).toEqual(all(alone));
    const counts = "SELECT count(*)::int AS attempts, count(DISTINCT job)::int AS jobs FROM milora_sweeps.attempts";
    const [{ attempts, jobs }] = (await servers.cluster.query(counts, env.DATABASE_URL)) as [Record<string, number>];
    expect(jobs).toBe(4);
    expect(attempts).toBeGreaterThan(4); // or nothing was killed

    const { sweeps, cells } = JSON.parse((await milora(["sweep", "status", shared, "--json"], { env })).stdout);
    expect(sweeps).toMatchObject([
      { trainings: { total: 4, done: 4 }, cells: { total: 8, done: 8 }, pace: { secondsLeft: 0 } },
    ]);
    const ids = readdirSync(join(alone, "runs"));
    for (const cell of cells) {
      expect(cell).toMatchObject({
        state: "done",
        score: expect.any(Number),
        seconds: expect.any(Number),
        reason: null,
      });
      expect(ids).toContain(cell.run);
    }
    expect(cells[0]).toMatchObject({ kind: "training", label: "method lora · seed 0", metric: "dev perplexity" });
    const shown = await milora(["sweep", "status", sweeps[0].id], { env });
    expect(shown.stdout).toMatch(/done +method lora · seed 0 → answers +[\d.]+ accuracy/);
    const table = await milora(["sweep", "results", sweeps[0].id], { env });
    expect(table.stdout.replace(shared, "")).toBe(
      (await milora(["sweep", "results", alone])).stdout.replace(alone, ""),
    );
  });
});
