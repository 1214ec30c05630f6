/** @file What a run's directory holds for its report, read as untrusted input. */
import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { readJson } from "../../base/index.ts";
import { CURVE_RANGE, gelu, type LearnedActivation, readLearnedActivations } from "../../methods/index.ts";
import { type EvaluationMetrics, readMetrics, type StepMetrics } from "../../training/index.ts";
import type { Point } from "./svg.ts";

const objectSchema = z.record(z.string(), z.unknown());

export interface Curve {
  readonly layer: number;
  readonly learned: readonly Point[];
  readonly gelu: readonly Point[];
  readonly deviation: number;
}

export interface RunFacts {
  readonly name: string;
  readonly config: Readonly<Record<string, unknown>>;
  readonly environment: Readonly<Record<string, unknown>> | undefined;
  readonly steps: readonly StepMetrics[];
  readonly evaluations: readonly EvaluationMetrics[];
  readonly curves: readonly Curve[];
}

/** Throws `InputError` where there is no run, or its files are not a run's. */
export function readRun(directory: string): RunFacts {
  const config = readJson(join(directory, "config.json"), objectSchema);
  const environment = join(directory, "environment.json");
  const lines = readMetrics(join(directory, "metrics.jsonl"));
  return {
    name: basename(resolve(directory)),
    config,
    environment: existsSync(environment) ? readJson(environment, objectSchema) : undefined,
    steps: lines.filter((line) => line.type === "step"),
    evaluations: lines.filter((line) => line.type === "evaluation"),
    curves: readCurves(join(directory, "best")),
  };
}

/** The learned activation functions of the best adapter; none where there is no readable one yet. */
function readCurves(directory: string): Curve[] {
  const [from, to] = CURVE_RANGE;
  const xs = Array.from({ length: 61 }, (_, i) => from + ((to - from) * i) / 60);
  let learned: LearnedActivation[];
  try {
    learned = readLearnedActivations(directory);
  } catch {
    return []; // damaged: `milora inspect` says how
  }
  return learned.map(({ layer, f, deviation }) => ({
    layer,
    learned: xs.map((x) => [x, f(x)] as const),
    gelu: xs.map((x) => [x, gelu(x)] as const),
    deviation,
  }));
}
