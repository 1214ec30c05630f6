/** @file Training configs: defaults, refusals that name what was meant, and what a resumption may change. */
import { describe, expect, it } from "vitest";
import { InputError } from "../base/index.ts";
import {
  configDifferences,
  decisiveFields,
  defaultFields,
  resolveTrainingConfig,
  trainingConfigSchema,
} from "./config.ts";

const minimal = { model: "m", method: "milora", data: { train: "t.jsonl" }, output_dir: "runs/a" };

function problemsOf(input: unknown): readonly string[] {
  try {
    resolveTrainingConfig(input);
  } catch (error) {
    if (error instanceof InputError) return error.problems;
    throw error;
  }
  return [];
}

describe("resolveTrainingConfig", () => {
  it("fills the paper's defaults", () => {
    expect(resolveTrainingConfig(minimal)).toMatchObject({
      data: { train: "t.jsonl", template: "alpaca" },
      max_length: 768,
      epochs: 10,
      lr: 1e-4,
      bilevel: true,
      warmup_ratio: 0.06,
      eval_every: 200,
      patience: 10,
    });
  });

  it("is unchanged by being resolved again", () => {
    const once = resolveTrainingConfig(minimal);
    expect(resolveTrainingConfig(JSON.parse(JSON.stringify(once)))).toEqual(once);
  });

  it("lists every problem, and for unknown keys the nearest known one", () => {
    const problems = problemsOf({
      ...minimal,
      bach_size: 4,
      lr: -1,
      data: { train: "t.jsonl", templat: "none" },
      betas: [0.9, 1],
    });
    expect(problems).toHaveLength(4);
    expect(problems).toContainEqual(expect.stringContaining('unknown key "bach_size", did you mean "batch_size"?'));
    expect(problems).toContainEqual(expect.stringContaining('data: unknown key "templat", did you mean "template"?'));
    expect(problems).toContainEqual(expect.stringMatching(/^lr: /));
    expect(problems).toContainEqual(expect.stringMatching(/^betas\.1: /));
  });

  it("suggests nothing where nothing is near", () => {
    expect(problemsOf({ ...minimal, zzz: 1 })).toEqual(['unknown key "zzz"']);
  });

  it("describes every field", () => {
    const visit = (shape: Record<string, { description?: string | undefined }>): string[] =>
      Object.entries(shape)
        .filter(([, field]) => !field.description)
        .map(([key]) => key);
    expect(visit(trainingConfigSchema.shape)).toEqual([]);
    expect(visit(trainingConfigSchema.shape.data.shape)).toEqual([]);
  });
});

describe("decisiveFields", () => {
  const fields = (changes: object) => decisiveFields(resolveTrainingConfig({ ...minimal, ...changes }));

  it("names what differs", () => {
    const differences = configDifferences(fields({}), fields({ lr: 2e-4, adapter: { r: 8 } }));
    expect(differences).toEqual(["lr was 0.0001, is 0.0002", "adapter.r was not set, is 8"]);
  });

  it("leaves out where files lie, when checkpoints are made and what is kept in memory, but not the share of dev rows", () => {
    expect(configDifferences(fields({}), fields({ output_dir: "b", model: "n", checkpoint_every: 7 }))).toEqual([]);
    expect(configDifferences(fields({}), fields({ activation_checkpointing: true }))).toEqual([]); // the same numbers
    expect(configDifferences(fields({}), fields({ data: { train: "t.jsonl", dev: 0.1 } }))).toEqual([
      "data.dev was 0.05, is 0.1",
    ]);
  });

  it("takes what an earlier version did not know for its default", () => {
    const config = resolveTrainingConfig({ ...minimal, packing: true, lr: 1, adapter: { r: 8, use_dora: true } });
    const then = decisiveFields(config);
    for (const field of ["packing", "lr", "adapter.r", "adapter.use_dora"]) then.delete(field);
    const defaults = defaultFields(config, { r: 8, use_dora: false });
    expect(configDifferences(then, decisiveFields(config), defaults)).toEqual([
      "adapter.use_dora was false, is true",
      "lr was 0.0001, is 1",
      "packing was false, is true",
    ]);
  });
});
