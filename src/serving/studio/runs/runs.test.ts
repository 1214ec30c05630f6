/** @file Runs as the studio's pages get them: real ones, broken ones, many, and what is none. */
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type StepMetrics, train } from "../../../training/index.ts";
import { scratch } from "../../http/testing.ts";
import type { RunActivations, RunDetail, RunExperts, RunSeries } from "../types.ts";
import { type Ask, listed, longRun, RunApps, shortTraining, whole, writeLongRun } from "./testing.ts";

const { directory, remove } = scratch();
const runs = join(directory, "runs");
const apps = new RunApps();

let ask: Ask;

beforeAll(async () => {
  await train(shortTraining(join(runs, "deep/er/milora")));
  const interrupted = new AbortController();
  await train(shortTraining(join(runs, "stopped"), { method: "lora" }), {
    signal: interrupted.signal,
    onProgress: ({ type }) => type === "step" && interrupted.abort(),
  });
  ask = await apps.serve(runs);
});

afterAll(async () => {
  await apps[Symbol.asyncDispose]();
  remove();
});

describe("real runs", () => {
  test("are listed with what they came to", async () => {
    const list = await listed(ask);
    const [milora, stopped] = list;
    expect(list).toHaveLength(2);
    expect(milora).toMatchObject({
      ...{ id: "deep/er/milora", name: "milora", method: "milora", model: "tiny-llama", rank: 4, routed: true },
      ...{ state: "finished", step: 4, plannedSteps: 4, indexed: 1, damagedLines: 0, problem: null },
    });
    expect(stopped).toMatchObject({ id: "stopped", state: "stopped", step: 1, plannedSteps: 4, routed: false });
    expect(stopped!.bestPerplexity).toBeNull();
    const lines = metricsOf(join(runs, "deep/er/milora"));
    const steps = lines.filter(({ type }) => type === "step") as unknown as StepMetrics[];
    const best = lines.findLast((line) => line.best === true)!;
    expect(milora).toMatchObject({
      ...{ loss: steps.at(-1)!.lm_loss, bestPerplexity: best.dev_perplexity, bestStep: best.step },
      tokens: steps.reduce((sum, { tokens }) => sum + tokens, 0),
      startedAt: JSON.parse(readFileSync(join(runs, "deep/er/milora/environment.json"), "utf8")).started,
    });
    expect(milora!.tokensPerSecond).toBeCloseTo(milora!.tokens / milora!.seconds, 9);
  });

  test("in detail: config, machine, evaluations with what the routers did", async () => {
    const { body } = await ask(`/runs/${encodeURIComponent("deep/er/milora")}`);
    const { config, environment, evaluations } = body as RunDetail;
    expect(config).toMatchObject({ method: "milora", batch_size: 4, adapter: { r: 4, top_k: 3 } });
    expect(environment).toMatchObject({ node: process.version });
    expect(evaluations.map(({ step }) => step)).toEqual([2, 4]);
    expect(evaluations[1]!.entropy).toHaveLength(6);
    expect(evaluations[1]!.routes).toBeGreaterThan(0);
  });

  test("series have every step where there are few", async () => {
    const { body } = await ask(`/runs/${encodeURIComponent("deep/er/milora")}/series`);
    const { step, series, steps, from, to } = body as RunSeries;
    expect([steps, from, to, step]).toEqual([4, 1, 4, [1, 2, 3, 4]]);
    const lines = metricsOf(join(runs, "deep/er/milora")).filter(({ type }) => type === "step");
    const part = (name: string) => series.find((one) => one.name === name)!;
    expect(part("loss").mean).toEqual(lines.map(({ loss }) => loss));
    expect(part("grad_norm").max).toEqual(lines.map(({ grad_norm }) => grad_norm));
    expect(series.map(({ name }) => name).sort()).toEqual([
      ...["activation.lm_loss", "activation.lr", "auxiliary.information", "grad_norm", "lm_loss", "loss", "lr"],
      "tokens_per_second",
    ]);
  });

  test("shares of the experts, and what the activations have become", async () => {
    const id = encodeURIComponent("deep/er/milora");
    const { experts, layers, shares, step } = (await ask(`/runs/${id}/experts`)).body as RunExperts;
    expect([layers, step]).toEqual([6, [1, 2, 3, 4]]);
    expect(experts).toEqual(["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    const first = metricsOf(join(runs, "deep/er/milora"))[0]!;
    expect(shares[0]).toEqual(first.expert_shares);
    const { x, gelu, curves } = (await ask(`/runs/${id}/activations`)).body as RunActivations;
    expect(curves.map(({ layer }) => layer)).toEqual([0, 1, 2, 3, 4, 5]);
    expect([x[0], x.at(-1), gelu.length]).toEqual([-3, 3, x.length]);
    expect(curves[0]!.y).toHaveLength(x.length);

    expect((await ask("/runs/stopped/experts")).body.error).toMatchObject({ code: "RUN_NOT_ROUTED" });
    expect((await ask("/runs/stopped/activations")).body.curves).toEqual([]);
  });

  test("a process that trains is seen, and one that died is not taken for it", async () => {
    const { folder, run } = longRun(directory, "held", 3);
    const get = await apps.serve(folder);
    const stateNow = async () => (await listed(get))[0]!.state;
    expect(await stateNow()).toBe("stopped");
    writeFileSync(join(run, "training.lock"), `${process.ppid}\n`);
    expect(await stateNow()).toBe("running");
    writeFileSync(join(run, "training.lock"), `${spawnSync(process.execPath, ["-e", ""]).pid}\n`);
    expect(await stateNow()).toBe("stopped");
    // Of another machine only heartbeats are seen.
    writeFileSync(join(run, "training.lock"), `${process.ppid} elsewhere\n`);
    expect(await stateNow()).toBe("running");
    const silent = new Date(Date.now() - 120_000);
    utimesSync(join(run, "training.lock"), silent, silent);
    expect(await stateNow()).toBe("stopped");
  });

  test("early stopping is an end", async () => {
    const output = join(directory, "early/run");
    const { stoppedBecause } = await train(
      shortTraining(output, { method: "lora", lr: 1e-12, patience: 1, max_steps: 50, eval_every: 1 }),
    );
    expect(stoppedBecause).toBe("early_stopping");
    const get = await apps.serve(join(directory, "early"));
    const [run] = await listed(get);
    expect(run!.state).toBe("finished");
    expect(run!.step).toBeLessThan(run!.plannedSteps!);
    rmSync(join(output, "checkpoints"), { recursive: true }); // as grids do with what is finished
    expect((await listed(get))[0]!.state).toBe("finished");
    rmSync(join(output, "best"), { recursive: true });
    expect((await listed(get))[0]!.state).toBe("stopped");
  });
});

test("an answer that is known already is not sent again", async () => {
  for (const path of ["/runs", "/runs/stopped", "/runs/stopped/series", "/reproductions"]) {
    const { etag, status } = await ask(path);
    expect(status).toBe(200);
    expect(await ask(path, { "if-none-match": etag })).toMatchObject({ status: 304, body: undefined });
    expect(await ask(path, { "if-none-match": `"other", W/${etag}` })).toMatchObject({ status: 304 });
    expect(await ask(path, { "if-none-match": '"other"' })).toMatchObject({ status: 200 });
  }
});

test.each(["..", "../secret", "deep/er/milora/../../../stopped", "/etc", "deep", "stopped/", ".", "%2e%2e"])(
  "%o is neither a run nor a reproduction",
  async (id) => {
    for (const path of ["/runs/ID", "/runs/ID/series", "/runs/ID/activations", "/reproductions/ID"]) {
      expect(await ask(path.replace("ID", encodeURIComponent(id)))).toMatchObject({ status: 404 });
    }
  },
);

test.each(["points=1", "points=2001", "points=x", "from=-1", "from=5&to=4", "from=1.5", "form=1", "to=Infinity"])(
  "series?%s is refused",
  async (query) => {
    const { status, body } = await ask(`/runs/stopped/series?${query}`);
    expect([status, body.error.code]).toEqual([400, "REQUEST_INVALID"]);
  },
);

describe("folders", () => {
  test("links are not followed, hidden ones passed over, several folders told apart", async () => {
    const [a, b] = [join(directory, "several/one/runs"), join(directory, "several/two/runs")];
    writeLongRun(join(a, "x"), 2);
    writeLongRun(join(b, "x/y"), 2);
    writeLongRun(join(b, ".x.tmp"), 2);
    writeLongRun(join(directory, "outside/secret"), 2);
    symlinkSync(join(directory, "outside"), join(a, "link"));
    mkdirSync(join(a, "linked"));
    cpSync(join(a, "x/config.json"), join(a, "linked/config.json"));
    symlinkSync(join(directory, "outside/secret/metrics.jsonl"), join(a, "linked/metrics.jsonl"));
    const get = await apps.serve(a, b, join(directory, "not-there"));
    const ids = (await listed(get)).map(({ id }) => id);
    expect(ids).toEqual(["runs-2/x/y", "runs/x"]);
    expect((await get(`/runs/${encodeURIComponent("runs-2/x/y")}`)).status).toBe(200);
  });

  test("a folder may be a run itself", async () => {
    const { run } = longRun(directory, "itself", 2);
    const get = await apps.serve(run);
    expect((await listed(get)).map(({ id }) => id)).toEqual(["run"]);
  });

  test("a broken run says why, and is no reason not to show the others", async () => {
    const { folder, run } = longRun(directory, "broken", 2);
    for (const [name, config] of Object.entries({ text: "no JSON", fields: '{"method":1}' })) {
      mkdirSync(join(folder, name));
      writeFileSync(join(folder, name, "config.json"), config);
      cpSync(join(run, "metrics.jsonl"), join(folder, name, "metrics.jsonl"));
    }
    const get = await apps.serve(folder);
    const list = await listed(get);
    expect(list.map(({ id, problem }) => [id, problem?.replace(/^.*config\.json: /, "") ?? null])).toEqual([
      ["fields", expect.stringMatching(/2 problems: method: .*model: /)],
      ["run", null],
      ["text", expect.stringMatching(/not valid JSON/)],
    ]);
    expect((await get("/runs/text")).body).toMatchObject({ config: {}, evaluations: [] });
  });
});

test("more runs than are kept in memory", async () => {
  const names = Array.from({ length: 20 }, (_, i) => `run-${i}`);
  for (const [i, name] of names.entries()) writeLongRun(join(directory, "many", name), 3 + i);
  const get = await apps.serve(join(directory, "many"));
  for (const _ of [1, 2]) {
    for (const [i, name] of names.entries()) {
      const { step } = await whole<RunSeries>(get, `/runs/${name}/series`);
      expect(step).toHaveLength(3 + i);
    }
    expect((await listed(get)).find(({ id }) => id === "run-7")!.step).toBe(10);
  }
});

function metricsOf(run: string): Record<string, unknown>[] {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line));
}
