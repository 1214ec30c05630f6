/** @file Metrics of a run that grows, is cut, is damaged, and is longer than anything that shows it could hold. */
import { appendFileSync, readFileSync, rmSync, statSync, truncateSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { scratch } from "../../http/testing.ts";
import type { RunDetail, RunExperts, RunSeries, RunSummary } from "../types.ts";
import { type Ask, evaluationLine, lineOf, longRun, RunApps, stepLine, whole, writeLongRun } from "./testing.ts";

const { directory, remove } = scratch();
const apps = new RunApps();

afterAll(async () => {
  await apps[Symbol.asyncDispose]();
  remove();
});

describe("metrics that change", () => {
  test("what is appended is read, a line without its end when it has one", async () => {
    const { folder, metrics } = longRun(directory, "growing", 10);
    const get = await apps.serve(folder);
    const stepsNow = async () => (await whole<RunSeries>(get, "/runs/run/series")).steps;
    expect(await stepsNow()).toBe(10);
    const line = lineOf(stepLine(11));
    appendFileSync(metrics, line.slice(0, 40));
    expect(await stepsNow()).toBe(10);
    appendFileSync(metrics, line.slice(40));
    expect(await stepsNow()).toBe(11);
    appendFileSync(metrics, lineOf(stepLine(12)) + lineOf(evaluationLine(12, true)));
    const detail = await whole<RunDetail>(get, "/runs/run");
    expect(detail).toMatchObject({ step: 12, bestStep: 12, damagedLines: 0 });
    expect(detail.evaluations).toHaveLength(1);
  });

  test("a resumed run cuts its file: what is gone is forgotten, even if the file is longer again", async () => {
    const { folder, metrics } = longRun(directory, "cut", 40);
    const get = await apps.serve(folder);
    const stepsNow = async () => (await whole<RunSeries>(get, "/runs/run/series")).steps;
    expect(await stepsNow()).toBe(40);
    const kept = readFileSync(metrics, "utf8").split("\n").slice(0, 20).join("\n").length + 1;
    truncateSync(metrics, kept);
    expect(await stepsNow()).toBe(20);
    truncateSync(metrics, kept / 2);
    const again = Array.from({ length: 200 }, (_, i) => lineOf(stepLine(i + 1, { lm_loss: 5, seconds: 2 }))).join("");
    writeFileSync(metrics, again);
    const { series, steps } = await whole<RunSeries>(get, "/runs/run/series");
    expect(steps).toBe(200);
    expect(series.find(({ name }) => name === "lm_loss")!.max[0]).toBe(5);
  });

  test("damaged lines are counted and left out; so is one that has no end in sight", async () => {
    const { folder, metrics } = longRun(directory, "damaged", 3);
    const wrong = ["{", "[".repeat(50_000), '{"type":"step","step":"4"}', "null", lineOf(stepLine(2)).trim()];
    appendFileSync(
      metrics,
      `${wrong.join("\n")}\n\n${"x".repeat(9_000_000)}\n${lineOf(stepLine(4))}${"y".repeat(6_000_000)}`,
    );
    const get = await apps.serve(folder);
    expect(await whole<RunDetail>(get, "/runs/run")).toMatchObject({ step: 4, damagedLines: 7 });
    appendFileSync(metrics, `yyy\n${lineOf(stepLine(5))}`);
    expect(await whole<RunDetail>(get, "/runs/run")).toMatchObject({ step: 5, damagedLines: 7 });
  });

  test("numbers that ran away are gaps", async () => {
    const { folder, metrics } = longRun(directory, "gaps", 0);
    const losses = [1, Number.NaN, 3];
    writeFileSync(metrics, losses.map((lm_loss, i) => lineOf(stepLine(i + 1, { lm_loss }))).join(""));
    const get = await apps.serve(folder);
    const { series } = await whole<RunSeries>(get, "/runs/run/series");
    expect(series.find(({ name }) => name === "lm_loss")).toMatchObject({ mean: [1, null, 3], max: [1, null, 3] });
  });

  test("a run that is removed is gone, and one that comes is found", async () => {
    const { folder, run } = longRun(directory, "removed", 2);
    const get = await apps.serve(folder);
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
  let long: ReturnType<typeof longRun>;
  let get: Ask;
  beforeAll(async () => {
    long = longRun(directory, "long", steps, { layers: 2 });
    get = await apps.serve(long.folder);
  });
  const loss = ({ series }: RunSeries) => series.find(({ name }) => name === "lm_loss")!;

  test("as a whole: bounded points, exact extremes and means", async () => {
    const whole_ = await whole<RunSeries>(get, "/runs/run/series?points=500");
    expect(whole_).toMatchObject({ steps, from: 1, to: steps });
    expect(whole_.step.length).toBeLessThanOrEqual(500);
    expect(whole_.step.length).toBeGreaterThan(250);
    expect(Math.max(...(loss(whole_).max as number[]))).toBe(9);
    // Every point stands for as many steps, but the last.
    const width = whole_.step[1]! - whole_.step[0]!;
    const lrs = whole_.series.find(({ name }) => name === "tokens_per_second")!;
    expect(lrs.mean[3]).toBeCloseTo(1024 + 0.001 * (whole_.step[3]! + (width - 1) / 2), 6);
    const detail = await whole<RunDetail>(get, "/runs/run");
    expect(detail).toMatchObject({ step: steps, tokens: 512 * steps, bestStep: 1000 });
    expect(detail.evaluations.length).toBe(200);
  });

  test("a few of them: each by itself, read from where they lie", async () => {
    const part = await whole<RunSeries>(get, "/runs/run/series?from=123400&to=123600&points=600");
    expect(part).toMatchObject({ from: 123_400, to: 123_600 });
    expect(part.step).toEqual(Array.from({ length: 201 }, (_, i) => 123_400 + i));
    expect(loss(part).mean[100]).toBe(9);
    expect(loss(part).mean[99]).toBe(1 + 1 / 123_499);
    const fewer = await whole<RunSeries>(get, "/runs/run/series?from=123400&to=123600&points=10");
    expect(fewer.step.length).toBeLessThanOrEqual(10);
    expect(Math.max(...(loss(fewer).max as number[]))).toBe(9);
    const last = await whole<RunSeries>(get, "/runs/run/series?from=199999&to=900000");
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
    expect((await whole<RunSeries>(get, "/runs/run/series")).steps).toBe(steps);
    // Whoever read it would see that there is nothing in it.
    writeFileSync(long.metrics, Buffer.alloc(statSync(long.metrics).size, "x"));
    utimesSync(long.metrics, time, time);
    expect((await whole<RunSeries>(get, "/runs/run/series")).steps).toBe(steps);
    utimesSync(long.metrics, time, new Date());
    expect((await whole<RunSeries>(get, "/runs/run/series")).steps).toBe(0);
  });
});
