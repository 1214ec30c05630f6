/** @file Small models, rows, settings and configs, and what is left of a run, for the tests of this room. */
import { cpSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Random } from "../base/index.ts";
import { readSafetensors, writeSafetensors } from "../models/index.ts";
import type { TrainingConfigInput } from "./config.ts";
import type { Example } from "./data.ts";
import { TIME_FIELDS } from "./metrics.ts";

/** The bundled backbone cut to its first two layers, in `directory`, so that many runs take little time. */
export function cutModel(directory: string): string {
  const path = join(directory, "model");
  cpSync(join(import.meta.dirname, "../../assets/tiny-llama"), path, { recursive: true });
  const settings = JSON.parse(readFileSync(join(path, "config.json"), "utf8"));
  writeFileSync(join(path, "config.json"), JSON.stringify({ ...settings, num_hidden_layers: 2 }));
  const { tensors } = readSafetensors(join(path, "model.safetensors"));
  const kept = [...tensors].filter(([name]) => !/layers\.[2-9]\./.test(name));
  writeSafetensors(join(path, "model.safetensors"), new Map(kept));
  return path;
}

/** A file of rows. */
export function writeRows(path: string, rows: readonly object[]): string {
  writeFileSync(path, rows.map((row) => JSON.stringify(row)).join("\n"));
  return path;
}

/** Random tokens of the small vocabularies of test/fixtures/backbones, of which a random part is the prompt. */
export function exampleOf(random: Random, length: number): Example {
  const tokens = Int32Array.from({ length }, () => 3 + random.integer(90));
  return { tokens, promptLength: 1 + random.integer(length - 1) };
}

/** Settings of methods that make their adapters small, where `r` alone does not. */
export const SMALL: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  adalora: { init_r: 4 },
  bitfit: { projection_dim: 8 },
  full: {},
  ia3: { projection_dim: 8 },
  iapt: { num_virtual_tokens: 2, bottleneck: 8 },
  "learned-adapter": { bottleneck: 8 },
  moelora: { r: 8, num_experts: 4, top_k: 2 },
  "p-tuning-v2": { num_virtual_tokens: 3, encoder_hidden_size: 8 },
  "parallel-adapter": { bottleneck: 8 },
};

/** Makes configs of runs of eight steps, with evaluations and checkpoints on the way. */
export const shortRuns =
  (directory: string, common: Pick<TrainingConfigInput, "model" | "method" | "data" | "seed">) =>
  (name: string, changes: Partial<TrainingConfigInput> = {}): TrainingConfigInput => ({
    adapter: { r: 4 },
    batch_size: 4,
    micro_batch_size: 3,
    max_steps: 8,
    lr: 5e-3,
    activation_lr: 1e-4,
    eval_every: 3,
    checkpoint_every: 2,
    output_dir: join(directory, name),
    ...common,
    ...changes,
  });

/** metrics.jsonl without what a clock decides. */
export function metricsOf(output: string): Record<string, unknown>[] {
  return readFileSync(join(output, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => Object.fromEntries(Object.entries(JSON.parse(line)).filter(([key]) => !TIME_FIELDS.includes(key))));
}

/** Every byte of a run that should not depend on when it was interrupted. */
export function outcomeOf(output: string): unknown {
  const read = (path: string) => readFileSync(join(output, path)).toString("base64");
  const metrics = metricsOf(output);
  const last = `checkpoints/step-${metrics.findLast(({ type }) => type === "step")!.step}`;
  const {
    seconds: _,
    metrics_bytes: __,
    ...state
  } = JSON.parse(readFileSync(join(output, last, "state.json"), "utf8"));
  return {
    metrics,
    state,
    parameters: read(`${last}/adapter_model.safetensors`),
    moments: read(`${last}/optimizer.safetensors`),
    best: read("best/adapter_model.safetensors"),
  };
}
