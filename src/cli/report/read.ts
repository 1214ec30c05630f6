/** @file What a run's directory holds for its report, read as untrusted input. */
import { existsSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { readJson } from "../../base/index.ts";
import { Adapter } from "../../methods/index.ts";
import { type EvaluationMetrics, readMetrics, type StepMetrics } from "../../training/index.ts";
import { activations, CURVE_RANGE } from "../inspect/facts.ts";
import { inferBackbone } from "../inspect/infer.ts";
import { gelu } from "../plot.ts";
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

/** The learned activation functions of the best adapter; none where there is no such adapter yet. */
function readCurves(directory: string): Curve[] {
  if (!existsSync(join(directory, "adapter_model.safetensors"))) return [];
  let adapter: Adapter;
  try {
    adapter = Adapter.load(directory, inferBackbone(directory), { allowIdentity: true });
  } catch {
    return []; // of a method whose tensors do not tell the backbone's sizes
  }
  using loaded = adapter;
  const [from, to] = CURVE_RANGE;
  const xs = Array.from({ length: 61 }, (_, i) => from + ((to - from) * i) / 60);
  return activations(loaded).map(({ layer, f, deviation }) => ({
    layer,
    learned: xs.map((x) => [x, f(x)] as const),
    gelu: xs.map((x) => [x, gelu(x)] as const),
    deviation,
  }));
}
