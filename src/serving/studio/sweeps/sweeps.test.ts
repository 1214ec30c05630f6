/** @file What the pages of sweeps ask for: pages of cells, their states, who may look, and a database that is left as it was. */
import { randomUUID } from "node:crypto";
import { describe, expect, onTestFinished, test } from "vitest";
import { scratch, startServer } from "../../http/testing.ts";
import { NO_POSTGRES, Servers } from "../../store/testing.ts";
import type { Attempt } from "../../sweeps/attempts.ts";
import { openSweeps } from "../../sweeps/index.ts";
import { secondsLeft } from "../../sweeps/pace.ts";
import type { SweepDetail, SweepList } from "../types.ts";

const GRID = {
  train: { method: "lora" },
  axes: {},
  evaluate: [{ metric: "accuracy", protocol: "hu2023", beams: 1, seed: 1, data: "d" }],
} as const;
const LEASE = { leaseSeconds: 3600, slots: 3, version: "1", pid: 77, host: "there" };

async function started(database: string) {
  const { directory, remove } = scratch();
  const server = await startServer(directory, { database, auth: "required" });
  onTestFinished(async () => {
    await server[Symbol.asyncDispose]();
    remove();
  });
  const { store } = server.server.services;
  const admin = (await store.keys.create({ admin: true })).secret;
  const ask = async (path: string, { key = admin, body }: { key?: string; body?: unknown } = {}) => {
    const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
    const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const response = await fetch(`${server.url}/studio/v1/sweeps${path}`, { headers, ...sent });
    // biome-ignore lint/suspicious/noExplicitAny: each test says what it expects
    return { status: response.status, body: (await response.json()) as any };
  };
  return { ask, store };
}

describe.skipIf(NO_POSTGRES)(`PostgreSQL ${NO_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use();

  test("looking makes no tables; a tenant may not; what is not there is said", async () => {
    const url = await servers.database();
    const { ask, store } = await started(url);
    expect(await ask("")).toEqual({ status: 200, body: { sweeps: [], workers: [] } });
    const [found] = await servers.cluster.query("SELECT to_regnamespace('milora_sweeps') IS NULL AS missing", url);
    expect(found).toEqual({ missing: true });
    await store.tenants.create({ id: "acme" });
    const { secret } = await store.keys.create({ tenant: "acme" });
    expect(await ask("", { key: secret })).toMatchObject({ status: 403, body: { error: { code: "FORBIDDEN" } } });
    expect(await ask("/0000", { body: undefined })).toMatchObject({
      status: 404,
      body: { error: { code: "SWEEP_NOT_FOUND" } },
    });
    expect(await ask("/0000/retry", { key: secret, body: {} })).toMatchObject({ status: 403 });
  });

  test("each cell has its state, its worker, its score or its reason; one job is tried again, or all", async () => {
    const url = await servers.database();
    await using sweeps = await openSweeps({ url });
    const { ask } = await started(url);
    const parts = ["a", "b", "c", "d"].map((name) => ({
      label: `part ${name}`,
      cells: [
        { id: `run-${name}`, kind: "training", label: `lr ${name}`, run: `run-${name}` },
        { id: `cell-${name}`, kind: "score", label: `lr ${name} → 100%_rows`, run: `run-${name}` },
      ],
    }));
    const sweep = { id: "5ee9", directory: "/shared/grid" };
    await sweeps.submit(
      sweep,
      { key: "k", spec: { grid: structuredClone(GRID) as never }, parts },
      { retries: 0, delaySeconds: 1 },
    );
    const worker = { id: randomUUID(), ...LEASE };
    await sweeps.attempts.sign(worker, {});
    const take = async (): Promise<Attempt> => (await sweeps.attempts.take(worker, new Set()))!;
    const record = (id: string, value: unknown) => ({
      ...{ id, kind: "x", label: id, value, seconds: 20, amount: 2, machine: "m", made: "now" },
    });
    const a = await take();
    await sweeps.attempts.record(a, record("run-a", { steps: 2, devPerplexity: 7.25 }));
    await sweeps.attempts.record(a, record("cell-a", { metric: "accuracy", value: 0.75, scores: [1, 0] }));
    await sweeps.attempts.finish(a);
    const b = await take();
    await sweeps.attempts.heartbeat(b, { text: "lr b", done: 1, total: 4 });
    const c = await take();
    await sweeps.attempts.fail(c, { code: "NO_LUCK", message: "it rained" });

    const { body: list } = (await ask("")) as { body: SweepList };
    expect(list).toMatchObject({
      sweeps: [{ id: "5ee9", name: "grid", trainings: { total: 4, done: 1 }, cells: { total: 4, done: 1 } }],
      workers: [{ host: "there", pid: 77, slots: 3, shunned: [] }],
    });
    expect(list.sweeps[0]!.jobs).toEqual({ waiting: 1, retrying: 0, running: 1, failed: 1 });
    const { body: whole } = (await ask("/5ee9")) as { body: SweepDetail };
    expect(whole.list.map(({ label, state }) => [label, state])).toEqual([
      ["lr a", "done"],
      ["lr a → 100%_rows", "done"],
      ["lr b", "running"],
      ["lr b → 100%_rows", "waiting"],
      ["lr c", "failed"],
      ["lr c → 100%_rows", "failed"],
      ["lr d", "waiting"],
      ["lr d → 100%_rows", "waiting"],
    ]);
    expect(whole.list[0]).toMatchObject({ metric: "dev perplexity", score: 7.25, seconds: 20, run: null });
    expect(whole.list[1]).toMatchObject({ metric: "accuracy", score: 0.75, attempts: 1, reason: null });
    expect(whole.list[2]).toMatchObject({ progress: { done: 1, total: 4 }, worker: { host: "there", pid: 77 } });
    expect(whole.list[2]!.worker!.heardAt).toMatch(/^\d{4}-.*Z$/);
    expect(whole.list[4]).toMatchObject({ reason: "it rained", code: "NO_LUCK", progress: null });
    expect(whole.states).toEqual({ running: 1, waiting: 3, retrying: 0, failed: 2, done: 2 });
    // 0.75 + 1 trainings and 2 cells of 20 s, by two jobs, of which there are no more than that.
    expect(whole).toMatchObject({ slots: 3, matching: 8, from: 0, secondsLeft: (1.75 * 20 + 2 * 20) / 2 });
    expect(whole.perHour).toBeGreaterThan(0);

    const labels = async (query: string) =>
      ((await ask(`/5ee9?${query}`)).body as SweepDetail).list.map(({ label }) => label);
    expect(await labels("state=failed")).toEqual(["lr c", "lr c → 100%_rows"]);
    expect(await labels("from=2&limit=2")).toEqual(["lr b", "lr b → 100%_rows"]);
    expect(await labels(`text=${encodeURIComponent("A → 100%_")}`)).toEqual(["lr a → 100%_rows"]);
    expect(await labels("text=%25%25")).toEqual([]); // no pattern
    expect(await ask("/5ee9?state=lost")).toMatchObject({ status: 400 });
    expect(await ask("/5ee9?limit=100000")).toMatchObject({ status: 400 });

    expect((await ask("/5ee9/retry", { body: { jobs: [b.job] } })).body).toEqual({ jobs: 0 }); // it has not failed
    expect((await ask("/5ee9/retry", { body: { jobs: [c.job] } })).body).toEqual({ jobs: 1 });
    expect(await ask("/5ee9/retry", { body: { jobs: ["x"] } })).toMatchObject({ status: 400 });
    expect(await labels("state=failed")).toEqual([]);
    expect((await ask("/5ee9/retry", { body: {} })).body).toEqual({ jobs: 0 });
  });

  test("sweeps of the first version's tables are brought up to date, results and all", async () => {
    const url = await servers.database();
    {
      await using old = await openSweeps({ url });
      const cells = [{ id: "x", kind: "accuracy", label: "x" }];
      const spec = { names: ["fig4"], preset: "smoke" as const, changes: {} };
      await old.submit(
        { id: "01d", directory: "/d" },
        { key: "k", spec, parts: [{ label: "p", cells }] },
        { retries: 0, delaySeconds: 1 },
      );
      const record = {
        id: "x",
        kind: "accuracy",
        label: "x",
        value: { metric: "acc", value: 0.5 },
        seconds: 3,
        amount: 1,
        machine: "m",
        made: "now",
      };
      await old.database.query("UPDATE milora_sweeps.cells SET record = $1, recorded = now()", [
        JSON.stringify(record),
      ]);
      await old.database.query(`ALTER TABLE milora_sweeps.cells DROP COLUMN run, DROP COLUMN place, DROP COLUMN metric,
        DROP COLUMN score, DROP COLUMN seconds; UPDATE milora_sweeps.meta SET version = 1;
        ALTER TABLE milora_sweeps.requests ALTER COLUMN spec TYPE jsonb USING spec::jsonb`);
    }
    await using sweeps = await openSweeps({ url });
    expect((await sweeps.cells("01d")).cells).toMatchObject([{ state: "done", metric: "acc", score: 0.5, seconds: 3 }]);
    expect(await sweeps.spec("01d", "k")).toEqual({ names: ["fig4"], preset: "smoke", changes: {} });
  });
});

test("how long is left is what finished ones took, shared by who works, and unknown where that is", () => {
  const kinds = [
    { open: 4, seconds: 10 },
    { open: 2, seconds: 5 },
  ];
  expect(secondsLeft(kinds, 2, 6)).toBe(25);
  expect(secondsLeft(kinds, 100, 5)).toBe(10);
  expect(secondsLeft(kinds, 0, 6)).toBeNull();
  expect(secondsLeft([...kinds, { open: 1, seconds: null }], 2, 6)).toBeNull();
  expect(secondsLeft([{ open: 0, seconds: null }], 0, 0)).toBe(0);
});
