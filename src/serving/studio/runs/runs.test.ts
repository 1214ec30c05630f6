/** @file Runs as the studio's pages get them: real ones, growing ones, damaged ones, and ones that no page could hold. */
import { spawnSync } from "node:child_process";
import {
  appendFileSync,
  cpSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { FastifyInstance } from "fastify";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { reproduce } from "../../../evaluation/index.ts";
import { type StepMetrics, train } from "../../../training/index.ts";
import { httpLimitsSchema } from "../../http/config.ts";
import { newApp, prepareError } from "../../http/fastify.ts";
import { scratch } from "../../http/testing.ts";
import type { RunActivations, RunDetail, RunExperts, RunSeries, RunSummary } from "../types.ts";
import { RunLibrary, runRoutes } from "./index.ts";
import { evaluationLine, shortTraining, stepLine, writeLongRun } from "./testing.ts";

const { directory, remove } = scratch();
const runs = join(directory, "runs");
const apps: FastifyInstance[] = [];

/** The routes over folders, without anything else of a server. */
async function serve(
  ...folders: string[]
): Promise<(path: string, headers?: Record<string, string>) => Promise<Reply>> {
  const app = await newApp(httpLimitsSchema.parse({}));
  app.addHook("onRequest", async (request) => {
    request.facts = {};
  });
  app.setErrorHandler((error, request, reply) => reply.send(prepareError(error, request, reply).body));
  await app.register(async (scope) => runRoutes(scope, new RunLibrary(folders)));
  apps.push(app);
  return async (path, headers = {}) => {
    const { statusCode, body, headers: sent } = await app.inject({ url: `/studio/v1${path}`, headers });
    return { status: statusCode, body: body === "" ? undefined : JSON.parse(body), etag: String(sent.etag) };
  };
}

interface Reply {
  readonly status: number;
  // biome-ignore lint/suspicious/noExplicitAny: each test says what it expects
  readonly body: any;
  readonly etag: string;
}

let ask: Awaited<ReturnType<typeof serve>>;

/** Asks until all of the run has been read. */
async function whole<T extends { readonly indexed: number }>(path: string, from = ask): Promise<T> {
  for (;;) {
    const { status, body } = await from(path);
    expect(status).toBe(200);
    if (body.indexed === 1) return body as T;
  }
}

const lineOf = (value: object): string => `${JSON.stringify(value)}\n`;

/** A run of so many steps in a folder of its own. */
function made(name: string, steps: number, options: Parameters<typeof writeLongRun>[2] = {}) {
  const folder = join(directory, name);
  const run = writeLongRun(join(folder, "run"), steps, options);
  return { folder, run, metrics: join(run, "metrics.jsonl") };
}

beforeAll(async () => {
  await train(shortTraining(join(runs, "deep/er/milora")));
  const interrupted = new AbortController();
  await train(shortTraining(join(runs, "stopped"), { method: "lora" }), {
    signal: interrupted.signal,
    onProgress: ({ type }) => type === "step" && interrupted.abort(),
  });
  ask = await serve(runs);
});

afterAll(async () => {
  for (const app of apps) await app.close();
  remove();
});

describe("real runs", () => {
  test("are listed with what they came to", async () => {
    const { body } = await ask("/runs");
    const [milora, stopped] = body.runs as RunSummary[];
    expect(body.runs).toHaveLength(2);
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
    const { folder, run } = made("held", 3);
    const get = await serve(folder);
    const stateNow = async () => ((await get("/runs")).body.runs as RunSummary[])[0]!.state;
    expect(await stateNow()).toBe("stopped");
    writeFileSync(join(run, "training.lock"), `${process.ppid}\n`);
    expect(await stateNow()).toBe("running");
    writeFileSync(join(run, "training.lock"), `${spawnSync(process.execPath, ["-e", ""]).pid}\n`);
    expect(await stateNow()).toBe("stopped");
  });

  test("early stopping is an end", async () => {
    const output = join(directory, "early/run");
    const { stoppedBecause } = await train(
      shortTraining(output, { method: "lora", lr: 1e-12, patience: 1, max_steps: 50, eval_every: 1 }),
    );
    expect(stoppedBecause).toBe("early_stopping");
    const get = await serve(join(directory, "early"));
    const [run] = (await get("/runs")).body.runs as RunSummary[];
    expect(run!.state).toBe("finished");
    expect(run!.step).toBeLessThan(run!.plannedSteps!);
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

test.each([
  "..",
  "../secret",
  "deep/er/milora/../../../stopped",
  "/etc",
  "deep",
  "stopped/",
  ".",
  "stopped\0",
  "%2e%2e",
])("%o is neither a run nor a reproduction", async (id) => {
  for (const path of ["/runs/ID", "/runs/ID/series", "/runs/ID/activations", "/reproductions/ID"]) {
    expect(await ask(path.replace("ID", encodeURIComponent(id)))).toMatchObject({ status: 404 });
  }
});

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
    const get = await serve(a, b, join(directory, "not-there"));
    const ids = ((await get("/runs")).body.runs as RunSummary[]).map(({ id }) => id);
    expect(ids).toEqual(["runs-2/x/y", "runs/x"]);
    expect((await get(`/runs/${encodeURIComponent("runs-2/x/y")}`)).status).toBe(200);
  });

  test("a folder may be a run itself", async () => {
    const { run } = made("itself", 2);
    const get = await serve(run);
    expect(((await get("/runs")).body.runs as RunSummary[]).map(({ id }) => id)).toEqual(["run"]);
  });

  test("a broken run says why, and is no reason not to show the others", async () => {
    const { folder, run } = made("broken", 2);
    for (const [name, config] of Object.entries({ text: "no JSON", fields: '{"method":1}' })) {
      mkdirSync(join(folder, name));
      writeFileSync(join(folder, name, "config.json"), config);
      cpSync(join(run, "metrics.jsonl"), join(folder, name, "metrics.jsonl"));
    }
    const get = await serve(folder);
    const list = (await get("/runs")).body.runs as RunSummary[];
    expect(list.map(({ id, problem }) => [id, problem?.replace(/^.*config\.json: /, "") ?? null])).toEqual([
      ["fields", expect.stringMatching(/2 problems: method: .*model: /)],
      ["run", null],
      ["text", expect.stringMatching(/not valid JSON/)],
    ]);
    expect((await get("/runs/text")).body).toMatchObject({ config: {}, evaluations: [] });
  });
});

describe("metrics that change", () => {
  test("what is appended is read, a line without its end when it has one", async () => {
    const { folder, metrics } = made("growing", 10);
    const get = await serve(folder);
    const stepsNow = async () => (await whole<RunSeries>("/runs/run/series", get)).steps;
    expect(await stepsNow()).toBe(10);
    const line = lineOf(stepLine(11));
    appendFileSync(metrics, line.slice(0, 40));
    expect(await stepsNow()).toBe(10);
    appendFileSync(metrics, line.slice(40));
    expect(await stepsNow()).toBe(11);
    appendFileSync(metrics, lineOf(stepLine(12)) + lineOf(evaluationLine(12, true)));
    const detail = await whole<RunDetail>("/runs/run", get);
    expect(detail).toMatchObject({ step: 12, bestStep: 12, damagedLines: 0 });
    expect(detail.evaluations).toHaveLength(1);
  });

  test("a resumed run cuts its file: what is gone is forgotten, even if the file is longer again", async () => {
    const { folder, metrics } = made("cut", 40);
    const get = await serve(folder);
    const stepsNow = async () => (await whole<RunSeries>("/runs/run/series", get)).steps;
    expect(await stepsNow()).toBe(40);
    const kept = readFileSync(metrics, "utf8").split("\n").slice(0, 20).join("\n").length + 1;
    truncateSync(metrics, kept);
    expect(await stepsNow()).toBe(20);
    truncateSync(metrics, kept / 2);
    const again = Array.from({ length: 200 }, (_, i) => lineOf(stepLine(i + 1, { lm_loss: 5, seconds: 2 }))).join("");
    writeFileSync(metrics, again);
    const { series, steps } = await whole<RunSeries>("/runs/run/series", get);
    expect(steps).toBe(200);
    expect(series.find(({ name }) => name === "lm_loss")!.max[0]).toBe(5);
  });

  test("damaged lines are counted and left out; so is one that has no end in sight", async () => {
    const { folder, metrics } = made("damaged", 3);
    const wrong = ["{", "[".repeat(50_000), '{"type":"step","step":"4"}', "null", lineOf(stepLine(2)).trim()];
    appendFileSync(
      metrics,
      `${wrong.join("\n")}\n\n${"x".repeat(9_000_000)}\n${lineOf(stepLine(4))}${"y".repeat(6_000_000)}`,
    );
    const get = await serve(folder);
    expect(await whole<RunDetail>("/runs/run", get)).toMatchObject({ step: 4, damagedLines: 7 });
    appendFileSync(metrics, `yyy\n${lineOf(stepLine(5))}`);
    expect(await whole<RunDetail>("/runs/run", get)).toMatchObject({ step: 5, damagedLines: 7 });
  });

  test("numbers that ran away are gaps", async () => {
    const { folder, metrics } = made("gaps", 0);
    const losses = [1, Number.NaN, 3];
    writeFileSync(metrics, losses.map((lm_loss, i) => lineOf(stepLine(i + 1, { lm_loss }))).join(""));
    const get = await serve(folder);
    const { series } = await whole<RunSeries>("/runs/run/series", get);
    expect(series.find(({ name }) => name === "lm_loss")).toMatchObject({ mean: [1, null, 3], max: [1, null, 3] });
  });

  test("a run that is removed is gone, and one that comes is found", async () => {
    const { folder, run } = made("removed", 2);
    const get = await serve(folder);
    expect((await get("/runs")).body.runs).toHaveLength(1);
    rmSync(run, { recursive: true });
    writeLongRun(join(folder, "other"), 2);
    for (;;) {
      const { runs } = (await get("/runs")).body as { runs: RunSummary[] };
      if (runs[0]!.id === "other") break;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect((await get("/runs/run")).status).toBe(404);
  });
});

describe("200,000 steps", () => {
  const steps = 200_000;
  let long: ReturnType<typeof made>;
  let get: typeof ask;
  beforeAll(async () => {
    long = made("long", steps, { layers: 2 });
    get = await serve(long.folder);
  });
  const loss = ({ series }: RunSeries) => series.find(({ name }) => name === "lm_loss")!;

  test("as a whole: bounded points, exact extremes and means", async () => {
    const whole_ = await whole<RunSeries>("/runs/run/series?points=500", get);
    expect(whole_).toMatchObject({ steps, from: 1, to: steps });
    expect(whole_.step.length).toBeLessThanOrEqual(500);
    expect(whole_.step.length).toBeGreaterThan(250);
    expect(Math.max(...(loss(whole_).max as number[]))).toBe(9);
    // Every point stands for as many steps, but the last.
    const width = whole_.step[1]! - whole_.step[0]!;
    const lrs = whole_.series.find(({ name }) => name === "tokens_per_second")!;
    expect(lrs.mean[3]).toBeCloseTo(1024 + 0.001 * (whole_.step[3]! + (width - 1) / 2), 6);
    const detail = await whole<RunDetail>("/runs/run", get);
    expect(detail).toMatchObject({ step: steps, tokens: 512 * steps, bestStep: 1000 });
    expect(detail.evaluations.length).toBe(200);
  });

  test("a few of them: each by itself, read from where they lie", async () => {
    const part = await whole<RunSeries>("/runs/run/series?from=123400&to=123600&points=600", get);
    expect(part).toMatchObject({ from: 123_400, to: 123_600 });
    expect(part.step).toEqual(Array.from({ length: 201 }, (_, i) => 123_400 + i));
    expect(loss(part).mean[100]).toBe(9);
    expect(loss(part).mean[99]).toBe(1 + 1 / 123_499);
    const fewer = await whole<RunSeries>("/runs/run/series?from=123400&to=123600&points=10", get);
    expect(fewer.step.length).toBeLessThanOrEqual(10);
    expect(Math.max(...(loss(fewer).max as number[]))).toBe(9);
    const last = await whole<RunSeries>("/runs/run/series?from=199999&to=900000", get);
    expect(last.step).toEqual([199_999, 200_000]);
  });

  test("shares in few points", async () => {
    const { shares, step } = (await get("/runs/run/experts?points=50")).body as RunExperts;
    expect(step.length).toBeLessThanOrEqual(50);
    expect(step[0]).toBe(1);
    expect(shares[7]![1]![6]).toBeCloseTo(1 / 7, 3);
  });

  test("nothing is read again as long as nothing has changed", async () => {
    const time = new Date(1.7e12);
    utimesSync(long.metrics, time, time);
    expect((await whole<RunSeries>("/runs/run/series", get)).steps).toBe(steps);
    // Whoever read it would see that there is nothing in it.
    writeFileSync(long.metrics, Buffer.alloc(statSync(long.metrics).size, "x"));
    utimesSync(long.metrics, time, time);
    expect((await whole<RunSeries>("/runs/run/series", get)).steps).toBe(steps);
    utimesSync(long.metrics, time, new Date());
    expect((await whole<RunSeries>("/runs/run/series", get)).steps).toBe(0);
  });
});

test("more runs than are kept in memory", async () => {
  const names = Array.from({ length: 20 }, (_, i) => `run-${i}`);
  for (const [i, name] of names.entries()) writeLongRun(join(directory, "many", name), 3 + i);
  const library = new RunLibrary([join(directory, "many")]);
  for (const _ of [1, 2]) {
    for (const [i, name] of names.entries()) {
      const { step } = await library.series(name);
      expect(step).toHaveLength(3 + i);
    }
    const list = await library.list();
    expect(list.find(({ id }) => id === "run-7")!.step).toBe(10);
  }
});

describe("reproductions", () => {
  const results = "docs/results/results.json";

  test("are listed and told as they were written; the results of other commands are not", async () => {
    const folder = join(directory, "reproductions");
    for (const name of ["small", "demo", "damaged"]) mkdirSync(join(folder, name), { recursive: true });
    cpSync(results, join(folder, "small/results.json"));
    writeFileSync(join(folder, "demo/results.json"), '{"seconds":3}');
    writeFileSync(join(folder, "damaged/results.json"), readFileSync(results, "utf8").slice(0, -100));
    const get = await serve(folder);
    const { reproductions } = (await get("/reproductions")).body;
    const written = JSON.parse(readFileSync(results, "utf8"));
    expect(reproductions).toMatchObject([{ id: "small", preset: "small", model: "tiny-llama", made: written.made }]);
    expect(reproductions[0].studies[0]).toEqual({
      ...{ name: "table1", title: written.studies[0].title },
      ...{ cells: written.studies[0].cells, done: written.studies[0].done },
    });
    const { body } = await get("/reproductions/small");
    expect(body.studies.map(({ tables }: { tables: unknown }) => tables)).toEqual(
      written.studies.map(({ tables }: { tables: unknown }) => tables),
    );
    expect(body.differences).toEqual(written.differences);
    expect((await get("/reproductions/demo")).status).toBe(404);
  });

  test("one that was made just now", async () => {
    const output = join(directory, "fresh/out");
    const report = await reproduce(["table6", "fig2"], {
      output,
      preset: "smoke",
      changes: { counted: ["authors"], routed: [] },
    });
    writeFileSync(join(output, "results.json"), JSON.stringify(report));
    const get = await serve(join(directory, "fresh"));
    expect((await get("/reproductions/out")).body).toMatchObject(JSON.parse(JSON.stringify({ id: "out", ...report })));
  });
});

function metricsOf(run: string): Record<string, unknown>[] {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trimEnd().split("\n");
  return lines.map((line) => JSON.parse(line));
}
