/** @file metrics.jsonl: appended, cut on resumption, refused when it became shorter. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { type EvaluationMetrics, MetricsLog } from "./metrics.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-metrics-"));
afterAll(() => rmSync(directory, { recursive: true }));

const line = (step: number): EvaluationMetrics => ({
  type: "evaluation",
  step,
  epoch: 0,
  dev_loss: 1,
  dev_perplexity: Math.E,
  best: true,
  seconds: 0.5,
});

describe("MetricsLog", () => {
  it("is cut to the length that a checkpoint remembers, and goes on from there", () => {
    const path = join(directory, "metrics.jsonl");
    const steps = () =>
      readFileSync(path, "utf8")
        .split("\n")
        .filter((text) => text !== "")
        .map((text) => JSON.parse(text).step);
    let bytes = 0;
    {
      using log = MetricsLog.open(path, 0);
      log.append(line(1));
      bytes = log.bytes;
      for (const step of [2, 3, 4]) log.append(line(step));
    }
    expect(steps()).toEqual([1, 2, 3, 4]);
    {
      using log = MetricsLog.open(path, bytes);
      expect(steps()).toEqual([1]);
      log.append(line(20));
    }
    expect(steps()).toEqual([1, 20]);
    expect(() => MetricsLog.open(path, 1e6)).toThrow(expect.objectContaining({ code: "CHECKPOINT_INVALID" }));
    using anew = MetricsLog.open(path, 0);
    expect(steps()).toEqual([]);
    anew[Symbol.dispose]();
    expect(() => anew.append(line(1))).toThrow(expect.objectContaining({ code: "TRAINER_CLOSED" }));
  });
});
