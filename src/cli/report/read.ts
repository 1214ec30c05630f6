/** @file What a run's directory holds for its report, read as untrusted input. */
import { existsSync, readFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { z } from "zod";
import { InputError, parseWith, readJson, reasonOf } from "../../base/index.ts";
import { Adapter } from "../../methods/index.ts";
import { activations, CURVE_RANGE } from "../inspect/facts.ts";
import { inferBackbone } from "../inspect/infer.ts";
import { gelu } from "../plot.ts";
import type { Point } from "./svg.ts";

/** Numbers that were not finite are null in JSON. */
const figure = z
  .number()
  .nullable()
  .transform((value) => value ?? Number.NaN);
const shares = z.array(z.array(figure));
const losses = {
  loss: figure,
  lm_loss: figure,
  auxiliary: z.record(z.string(), figure),
  lr: figure,
  grad_norm: figure,
};

const stepSchema = z.object({
  type: z.literal("step"),
  step: z.number(),
  epoch: z.number(),
  ...losses,
  activation: z.object(losses).optional(),
  expert_shares: shares.optional(),
  tokens: z.number(),
  seconds: z.number(),
  tokens_per_second: figure,
});

const evaluationSchema = z.object({
  type: z.literal("evaluation"),
  step: z.number(),
  dev_loss: figure,
  dev_perplexity: figure,
  best: z.boolean(),
  routing: z
    .object({
      rows: z.number(),
      experts: z.array(z.string()),
      expert_shares: shares,
      entropy: z.array(figure),
      routes: z.number(),
      layer_routes: z.array(z.number()),
      label_entropy: figure,
      mutual_information: z.array(figure),
      mutual_information_by_chance: z.array(figure),
      route_mutual_information: figure,
      route_mutual_information_by_chance: figure,
    })
    .optional(),
});

const lineSchema = z.discriminatedUnion("type", [stepSchema, evaluationSchema]);
const objectSchema = z.record(z.string(), z.unknown());

export type Step = z.infer<typeof stepSchema>;
export type Evaluation = z.infer<typeof evaluationSchema>;

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
  readonly steps: readonly Step[];
  readonly evaluations: readonly Evaluation[];
  readonly curves: readonly Curve[];
}

/** Throws `InputError` where there is no run, or its files are not a run's. */
export function readRun(directory: string): RunFacts {
  const config = readJson(join(directory, "config.json"), objectSchema);
  const environment = join(directory, "environment.json");
  const lines = readLines(join(directory, "metrics.jsonl"));
  return {
    name: basename(resolve(directory)),
    config,
    environment: existsSync(environment) ? readJson(environment, objectSchema) : undefined,
    steps: lines.filter((line) => line.type === "step"),
    evaluations: lines.filter((line) => line.type === "evaluation"),
    curves: readCurves(join(directory, "best")),
  };
}

/** A last line without its end is what a process that was killed has left, or one that is writing. */
function readLines(path: string): (Step | Evaluation)[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new InputError("FILE_UNREADABLE", path, reasonOf(error), { cause: error });
  }
  return text
    .split("\n")
    .slice(0, -1)
    .map((line, i) => {
      let value: unknown;
      try {
        value = JSON.parse(line);
      } catch (error) {
        throw new InputError("JSON_INVALID", `${path} line ${i + 1}`, reasonOf(error), { cause: error });
      }
      return parseWith(lineSchema, value, `${path} line ${i + 1}`);
    });
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
