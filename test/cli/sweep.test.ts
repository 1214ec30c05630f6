/** @file Grids as jobs: workers that are killed at any point, machines that cannot do a job, failures, and what the commands say. */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { NO_OWN_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { childrenOf, fewRows, madeIn, type Running, start } from "./grids.ts";
import { milora, temporary } from "./milora.ts";

/** Generous: what trains may have to share its cores with other tests. */
const SLOW = { timeout: 600_000 };

/** MILORA_KILLS=100 for a night of it. */
const KILLS = Number(process.env.MILORA_KILLS ?? 3);
/** Kills come at any point of this time after a job was begun. */
const SPREAD_MS = 2000;

/** The same delays each time, spread evenly but in no order. */
const delay = (i: number): number => ((i * 0.618034) % 1) * SPREAD_MS;

const grid = (output: string, data: string, ...more: string[]): string[] => {
  const flags = ["--preset", "smoke", "--seeds", "1", "--data-dir", data, "--output", output];
  return ["reproduce", "fig4", "table6", ...flags, ...more];
};

/** All that a reproduction has made, but for clocks and machines. */
function made(output: string): Record<string, unknown> {
  const tables = ["fig4.csv", "table6.csv", "fig4-subjects.svg"].map((name) => [
    name,
    readFileSync(join(output, name), "utf8"),
  ]);
  const { studies } = JSON.parse(readFileSync(join(output, "results.json"), "utf8"));
  return Object.fromEntries([...madeIn(output), ...tables, ["studies", studies]]);
}

describe.skipIf(NO_OWN_POSTGRES)(`PostgreSQL ${NO_OWN_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use(true);

  test(
    `workers and their processes are killed ${KILLS} times, then the database; what comes of the grid is what one process makes`,
    SLOW,
    async () => {
      const env = { DATABASE_URL: await servers.database() };
      const [alone, shared, data] = [temporary(), temporary(), fewRows()];
      const waiting = start([...grid(shared, data), "--queue", "--retries", "1000", "--retry-delay", "1"], env);
      const single = milora(grid(alone, data));
      await waiting.said("no worker is there");
      const work = ["worker", "--concurrency", "2", "--threads", "1", "--lease", "2", "--drain"];
      let worker = start(work, env);
      for (let i = 0; i < KILLS && waiting.child.exitCode === null; i++) {
        await Promise.race([worker.said("begun "), waiting.ended]);
        await sleep(delay(i));
        const [process_] = childrenOf(worker.child.pid!);
        if (i % 2 && process_) {
          process.kill(process_, "SIGKILL"); // the worker gives its job to another process
          continue;
        }
        worker.child.kill("SIGKILL");
        await worker.ended;
        worker = start(work, env);
      }
      if (waiting.child.exitCode === null) {
        await worker.said("waiting for jobs"); // one that starts without a database ends
        await servers.cluster.stop();
        await sleep(2500); // longer than the lease
        await servers.cluster.resume();
      }
      expect(await worker.ended).toBe(0);
      expect([await waiting.ended, waiting.stderr()]).toEqual([0, expect.stringContaining("[6/6]")]);
      expect((await single).code).toBe(0);
      expect(made(shared)).toEqual(made(alone));

      const { sweeps, workers } = JSON.parse((await milora(["sweep", "status", "--json"], { env })).stdout);
      expect(sweeps).toMatchObject([
        {
          directory: shared,
          trainings: { total: 2, done: 2 },
          cells: { total: 4, done: 4 },
          waiting: 0,
          running: [],
          dead: [],
        },
      ]);
      expect(workers).toEqual([]);
      expect((await milora(["sweep", "status"], { env })).stdout).toContain("trainings 2 of 2, cells 4 of 4, finished");
      const counts = "SELECT count(DISTINCT job)::int AS jobs, count(*)::int AS attempts FROM milora_sweeps.attempts";
      const [counted] = await servers.cluster.query(counts, env.DATABASE_URL);
      expect(counted!.jobs).toBe(4);
      expect(counted!.attempts).toBeGreaterThan(4); // or nothing was killed
    },
  );

  test(
    "a machine without the directory leaves the jobs to others; who waited may leave; a removed grid is gone",
    SLOW,
    async () => {
      const env = { DATABASE_URL: await servers.database() };
      const [place, data] = [temporary(), fewRows()];
      const [output, away] = [join(place, "grid"), join(place, "away")];
      const left = await milora([...grid(output, data), "--queue"], { env, interruptAt: "no worker is there" });
      expect([left.code, left.stderr]).toEqual([130, expect.stringContaining("the jobs stay in the queue")]);
      renameSync(output, away);
      const stranger = await milora(["worker"], { env, interruptAt: "is left to other workers" });
      expect(stranger).toMatchObject({
        code: 0,
        stderr: expect.stringContaining("mount the sweep's directory at this path"),
      });
      renameSync(away, output);
      expect(await milora(["worker", "--drain"], { env })).toMatchObject({ code: 0 });
      const again = await milora([...grid(output, data), "--queue"], { env });
      expect(again).toMatchObject({ code: 0, stderr: "" }); // nothing is left to do
      expect(again.stdout).toContain("Figure 4: load balance: Accuracy");
      expect(await milora(["sweep", "remove", "grid"], { env })).toMatchObject({ code: 0 });
      expect((await milora(["sweep", "status"], { env })).stdout).toContain("no sweeps");
      const missing = await milora(["sweep", "retry", "grid"], { env });
      expect(missing).toMatchObject({ code: 2, stderr: expect.stringContaining('no sweep "grid"') });
    },
  );
});

test(
  "without a database processes of the command do the jobs; what failed is tried again by the same command",
  SLOW,
  async () => {
    const [output, data] = [temporary(), fewRows()];
    const plan = JSON.parse((await milora([...grid(output, data), "--plan", "--json"])).stdout);
    const blocked = join(output, "runs", plan.runs[0].id);
    mkdirSync(join(output, "runs"));
    writeFileSync(blocked, "");
    const args = [...grid(output, data), "--queue", "--concurrency", "2", "--retries", "0"];
    const first = await milora(args, { env: { DATABASE_URL: "" } });
    expect(first).toMatchObject({ code: 1, stderr: expect.stringMatching(/failed .*cannot be written/) });
    expect(first.stdout).toContain("Table 6");
    rmSync(blocked);
    const second = await milora(args, { env: { DATABASE_URL: "" } });
    expect(second).toMatchObject({ code: 0, stderr: expect.stringContaining("[2/2]") });
    expect(existsSync(join(output, "queue", "lock"))).toBe(false);
  },
);

/** All processes of a command that `start` began. */
const everyone = ({ child }: Running): number[] => [child.pid!, ...childrenOf(child.pid!)];

test("a machine that sleeps for longer than any lease loses no job, though none may be tried twice", SLOW, async () => {
  const [output, data] = [temporary(), fewRows()];
  const running = start([...grid(output, data), "--queue", "--retries", "0"], { DATABASE_URL: "" });
  await running.said("[2/6]");
  const asleep = everyone(running);
  for (const pid of asleep) process.kill(pid, "SIGSTOP");
  await sleep(32_000);
  for (const pid of asleep) process.kill(pid, "SIGCONT");
  expect([await running.ended, running.stderr()]).toEqual([0, expect.stringContaining("[6/6]")]);
});

test(
  "a command that is killed goes on at once with what its processes had, which counts as no attempt",
  SLOW,
  async () => {
    const [output, data] = [temporary(), fewRows()];
    const args = [...grid(output, data), "--queue", "--retries", "0"];
    const running = start(args, { DATABASE_URL: "" });
    await running.said("[2/6]"); // the next job is a training
    const runs = join(output, "runs");
    while (!existsSync(runs) || readdirSync(runs).length === 0) await sleep(20);
    running.child.kill("SIGKILL");
    await running.ended;
    const again = await milora(args, { env: { DATABASE_URL: "" } });
    expect(again).toMatchObject({ code: 0, stderr: expect.stringContaining("[4/4]") });
  },
);

test("workers and grids need a database, and say so", SLOW, async () => {
  for (const args of [["worker"], ["sweep", "status"]]) {
    const { code, stderr } = await milora(args, { env: { DATABASE_URL: "" } });
    expect([code, stderr]).toEqual([2, expect.stringContaining("needs --database or DATABASE_URL")]);
  }
});
