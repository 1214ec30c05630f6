/** @file Jobs of sweeps on both databases: each once, held by heartbeats, tried again, given up with the reason, recorded once. */
import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, onTestFinished, test } from "vitest";
import { NO_POSTGRES, Servers } from "../store/testing.ts";
import { type Attempt, LeaseLost, type WorkerFacts } from "./attempts.ts";
import { type NewPart, openSweeps, type SweepLocation, type Sweeps } from "./sweeps.ts";

const SWEEP = { id: "s1", directory: "/shared/runs" };
const POLICY = { retries: 1, delaySeconds: 1 };
const SPEC = { names: ["fig4"], preset: "smoke", changes: {} } as const;
const NONE: ReadonlySet<string> = new Set();

const worker = (leaseSeconds = 3600): WorkerFacts => ({
  ...{ id: randomUUID(), host: "there", pid: 1, slots: 1, version: "1", leaseSeconds },
});
const cell = (id: string, kind = "accuracy") => ({ id, kind, label: `label of ${id}` });
const part = (...ids: string[]): NewPart => ({ label: `part ${ids[0]}`, cells: ids.map((id) => cell(id)) });
const record = (id: string, value: unknown = { z: 1, a: 0.1 }) => ({
  ...{ id, kind: "accuracy", label: id, value, seconds: 1, amount: 2, machine: "m", made: "now" },
});
const submit = (sweeps: Sweeps, parts: readonly NewPart[], policy = POLICY) =>
  sweeps.submit(SWEEP, { key: "k", spec: { ...SPEC, names: ["fig4"] }, parts }, policy);

/** The next job, as soon as its back-off is over. */
async function next(sweeps: Sweeps, by = worker()): Promise<Attempt> {
  for (;;) {
    const attempt = await sweeps.attempts.take(by, NONE);
    if (attempt) return attempt;
    await sleep(50);
  }
}

async function opened(location: SweepLocation): Promise<Sweeps> {
  const sweeps = await openSweeps(location);
  onTestFinished(() => sweeps[Symbol.asyncDispose]());
  return sweeps;
}

/** @param open on an empty database @param again on the same */
function core(open: () => Promise<Sweeps>, again: () => Promise<Sweeps>): void {
  test("a job is one worker's, and its cells are recorded once", async () => {
    const sweeps = await open();
    await submit(sweeps, [part("a", "b"), part("c")]);
    const other = await again();
    const [first, second] = await Promise.all([
      sweeps.attempts.take(worker(), NONE),
      other.attempts.take(worker(), NONE),
    ]);
    expect([first!.data.cells, second!.data.cells].sort()).toEqual([["a", "b"], ["c"]]);
    expect(first).toMatchObject({ number: 1, directory: "/shared/runs", retriesLeft: 1 });
    expect(await sweeps.attempts.take(worker(), NONE)).toBeUndefined();
    const job = first!.data.cells[0] === "a" ? first! : second!;
    await expect(sweeps.attempts.finish({ ...job, worker: randomUUID() })).rejects.toThrow(LeaseLost);
    expect(await sweeps.attempts.record(job, record("a"))).toEqual(record("a"));
    expect(await other.attempts.record(job, record("a", "another"))).toEqual(record("a"));
    await sweeps.attempts.record(job, record("b"));
    await sweeps.attempts.finish(job);
    await expect(sweeps.attempts.record(job, record("a"))).rejects.toThrow(LeaseLost);
    const kept = await other.records("s1");
    expect(kept.map(({ record: { id } }) => id)).toEqual(["a", "b"]);
    expect(JSON.stringify(kept[0]!.record.value)).toBe('{"z":1,"a":0.1}'); // in its order
    expect(kept[0]!.host).toBe("there");
  });

  test("failures are tried again with back-off, then given up with the reason, then tried again when asked", async () => {
    const sweeps = await open();
    await submit(sweeps, [part("a")], { retries: 1, delaySeconds: 3600 });
    const reason = { code: "NO_LUCK", message: "it did\0 not\ud800 work" };
    const first = await next(sweeps);
    await sweeps.attempts.fail(first, reason);
    expect(await sweeps.attempts.take(worker(), NONE)).toBeUndefined(); // not at once
    await sweeps.database.query("UPDATE milora_jobs.job SET start_after = now() - interval '1 second'");
    const second = await next(sweeps);
    expect(second).toMatchObject({ job: first.job, number: 2, retriesLeft: 0, before: "there" });
    expect(await sweeps.dead("s1")).toEqual([]);
    await sweeps.attempts.fail(second, reason);
    const given = { job: first.job, label: "part a", cells: ["a"], code: "NO_LUCK", reason: "it did not work" };
    expect(await sweeps.dead("s1")).toEqual([{ ...given, attempts: 2 }]);
    const letters = "SELECT output->>'message' AS reason FROM milora_jobs.job WHERE name = 'sweep-s1-dead'";
    expect(await sweeps.database.query(letters)).toEqual([{ reason: "it did not work" }]);
    expect(await sweeps.attempts.take(worker(), NONE)).toBeUndefined();
    expect(await sweeps.retry("s1", 3)).toBe(1);
    expect([await sweeps.dead("s1"), await sweeps.database.query(letters)]).toEqual([[], []]);
    expect(await next(sweeps)).toMatchObject({ job: first.job, number: 3, retriesLeft: 3 });
  });
}

/** Generous: a database that starts may have to share its cores with other tests. */
const SLOW = { timeout: 600_000 };

describe("PGlite", SLOW, () => {
  let last: Sweeps;
  core(
    async () => {
      last = await opened({ memory: true });
      return last;
    },
    async () => last,
  );
});

describe.skipIf(NO_POSTGRES)(`PostgreSQL ${NO_POSTGRES ?? ""}`, SLOW, () => {
  const servers = new Servers();
  servers.use();
  let url: string;
  const open = async () => {
    url = await servers.database();
    return opened({ url });
  };
  core(open, () => opened({ url }));

  test("what is asked for twice is one job; what others train is waited for", async () => {
    const sweeps = await open();
    const training = { label: "t", cells: [cell("run", "training"), cell("a")] };
    await submit(sweeps, [training]);
    await submit(sweeps, [{ label: "t", cells: [cell("run", "training"), cell("a"), cell("b")] }]);
    const first = await next(sweeps);
    expect(first.data).toMatchObject({ cells: ["run", "a"], after: [] });
    expect(await sweeps.attempts.take(worker(), NONE)).toBeUndefined(); // b waits for the training
    await sweeps.attempts.record(first, record("run"));
    await sweeps.attempts.record(first, record("a"));
    await sweeps.attempts.finish(first);
    expect((await next(sweeps)).data).toMatchObject({ cells: ["b"], after: ["run"] });
  });

  test("the same request tries again what it needs of what was given up", async () => {
    const sweeps = await open();
    await submit(sweeps, [part("a"), part("b")], { ...POLICY, retries: 0 });
    for (let i = 0; i < 2; i++) await sweeps.attempts.fail(await next(sweeps), { code: "X", message: "x" });
    await submit(sweeps, [part("b")]);
    expect((await sweeps.dead("s1")).map(({ cells }) => cells)).toEqual([["a"]]);
    expect((await next(sweeps)).data.cells).toEqual(["b"]);
  });

  test("a worker that is silent loses its job, one that beats does not; what brought a job further is no failure", async () => {
    const sweeps = await open();
    await submit(sweeps, [part("a", "b")], { retries: 0, delaySeconds: 1 });
    const silent = await next(sweeps, worker(0.2));
    await sweeps.attempts.record(silent, record("a"));
    expect(await sweeps.attempts.heartbeat(silent, { text: "b", done: 1, total: 2 })).toBe(true);
    while ((await sweeps.attempts.reap()) === 0) await sleep(50);
    expect(await sweeps.attempts.heartbeat(silent, undefined)).toBe(false);
    await expect(sweeps.attempts.record(silent, record("b"))).rejects.toThrow(LeaseLost);
    await expect(sweeps.attempts.finish(silent)).rejects.toThrow(LeaseLost);
    const held = await next(sweeps, worker(3600)); // though no retry was allowed
    await sleep(300);
    expect(await sweeps.attempts.reap()).toBe(0);
    expect(await sweeps.attempts.heartbeat(held, undefined)).toBe(true);
    await sweeps.attempts.giveBack(held, "the machine is needed");
    const back = await next(sweeps, worker(0.2)); // at once, and it counts for nothing
    expect(back.retriesLeft).toBe(held.retriesLeft);
    while ((await sweeps.attempts.reap()) === 0) await sleep(50);
    const [dead] = await sweeps.dead("s1");
    expect(dead).toMatchObject({ code: "WORKER_LOST", attempts: 3 });
    expect(dead!.reason).toMatch(/^its worker on there was not heard of for \d+ seconds$/);
  });

  test("a database whose clock was set back by a year keeps nobody waiting for a year", async () => {
    const sweeps = await open();
    await submit(sweeps, [part("a"), part("b"), part("c")]);
    const [silent, failed] = [await next(sweeps, worker(0.2)), await next(sweeps)];
    await sweeps.attempts.sign(worker(0.01), {});
    await sweeps.attempts.fail(failed, { code: "NO_LUCK", message: "it did not work" });
    const year = "+ interval '1 year'";
    await sweeps.database.query(`UPDATE milora_sweeps.attempts SET heard = heard ${year}`);
    await sweeps.database.query(`UPDATE milora_sweeps.workers SET heard = heard ${year}`);
    await sweeps.database.query(`UPDATE milora_jobs.job SET created_on = created_on ${year}, started_on = started_on ${year}, start_after = start_after ${year}`); // biome-ignore format: one line
    expect(await sweeps.attempts.take(worker(), NONE)).toBeUndefined();
    while ((await sweeps.attempts.reap()) === 0) await sleep(50); // whoever lives could have said so
    const jobs = [await next(sweeps), await next(sweeps), await next(sweeps)];
    expect(jobs.map(({ job }) => job)).toEqual(expect.arrayContaining([silent.job, failed.job]));
    expect(jobs.map(({ retriesLeft }) => retriesLeft).sort()).toEqual([0, 0, 1]);
    await sleep(200);
    await sweeps.attempts.reap();
    expect(await sweeps.database.query("SELECT id FROM milora_sweeps.workers")).toEqual([]);
  });

  test("a job whose cells have no result is not finished; a removed sweep is nobody's", async () => {
    const sweeps = await open();
    await submit(sweeps, [part("a"), part("b")], { ...POLICY, retries: 0 });
    await sweeps.attempts.finish(await next(sweeps));
    expect(await sweeps.dead("s1")).toMatchObject([{ reason: "label of a has no result" }]);
    const held = await next(sweeps);
    await sweeps.remove("s1");
    expect(await sweeps.attempts.heartbeat(held, undefined)).toBe(false);
    await expect(sweeps.attempts.record(held, record("b"))).rejects.toThrow(LeaseLost);
    expect([await sweeps.list(), await sweeps.attempts.take(worker(), NONE)]).toEqual([[], undefined]);
    await submit(sweeps, [part("a")]);
    expect((await next(sweeps)).number).toBe(1);
  });

  test("many that start at once make one schema, and many that submit one job", async () => {
    const url = await servers.database();
    const all = await Promise.all(Array.from({ length: 6 }, () => openSweeps({ url })));
    await Promise.all(all.map((sweeps) => submit(sweeps, [part("a")])));
    const taken = await Promise.all(all.map((sweeps) => sweeps.attempts.take(worker(), NONE)));
    expect(taken.filter((attempt) => attempt)).toHaveLength(1);
    for (const sweeps of all) await sweeps[Symbol.asyncDispose]();
  });
});
