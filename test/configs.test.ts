/** @file Every committed config loads, fits its backbone, and is what the presets and the demo say. */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { FULL, METHODS, TENANTS, trainingConfig } from "../src/cli/demo/plan.ts";
import { methodOf, methods } from "../src/methods/index.ts";
import { readBackboneConfig, SHAPES } from "../src/models/index.ts";
import { presetSettings, readConfigFile, resolveTrainingConfig, unknownSettings } from "../src/training/index.ts";

const root = join(import.meta.dirname, "..");
const files = readdirSync(join(root, "configs"));
const load = (name: string) => resolveTrainingConfig(readConfigFile(join(root, "configs", name)), name);
const backboneOf = (model: string) =>
  model === "assets/tiny-llama" ? readBackboneConfig(join(root, model)) : SHAPES["llama-2-7b"];

describe.each(files)("configs/%s", (name) => {
  test("fits its backbone", () => {
    const config = load(name);
    const method = methodOf(config.method);
    expect(unknownSettings(method, config.adapter)).toEqual([]);
    expect(
      method.parameters(method.newConfig(config.adapter, backboneOf(config.model)), backboneOf(config.model)).length,
    ).toBeGreaterThan(0);
    if (name.startsWith("paper-")) expect(config.output_dir).toBe(`runs/${name.replace(".yaml", "")}`);
  });

  test.runIf(/^paper-/.test(name))("is the paper's recipe, except for what it varies", () => {
    const config = load(name);
    // Table 6: of the seven tasks only PIQA and AQuA have more than 10,000 training rows.
    const { adapter, ...recipe } = presetSettings("paper", config.method, /piqa|aqua/.test(name) ? 16_000 : 9_427);
    expect(config).toMatchObject(recipe);
    const varied = Object.keys(config.adapter).filter(
      (key) => JSON.stringify(config.adapter[key]) !== JSON.stringify(adapter[key]),
    );
    expect(Object.keys(config.adapter)).toEqual(Object.keys(adapter));
    expect(varied.length).toBe(/boolq-/.test(name) ? 1 : 0);
  });
});

test("there is one config a method of the paper, and one a tenant and method of the demo", () => {
  const paper = [...methods.keys()].filter((name) => name !== "full"); // the paper has no full fine-tuning
  for (const method of paper) expect(files).toContain(`paper-${method}-boolq.yaml`);
  for (const tenant of TENANTS) {
    for (const method of METHODS) {
      const { model: _, data, ...demo } = resolveTrainingConfig(trainingConfig(tenant, method, FULL, "runs/demo"));
      const { model, data: committed, ...config } = load(`demo-${tenant.task}-${method}.yaml`);
      expect(config).toEqual(demo);
      expect(model).toBe("assets/tiny-llama");
      expect(join(root, committed.train as string)).toBe(data.train);
      expect(join(root, committed.dev as string)).toBe(data.dev);
    }
  }
});

test.each(["milora", "midora"])("the paper's settings of %s are what a file means that says nothing else", (name) => {
  const { configSchema, newConfig } = methodOf(name);
  const paper = newConfig(presetSettings("paper", name).adapter, SHAPES["llama-2-7b"]) as Record<string, unknown>;
  const file = { peft_type: "MILORA", task_type: "CAUSAL_LM", use_dora: name === "midora" };
  expect({ ...(configSchema.parse(file) as object), lora_alpha: paper.r }).toEqual(paper);
});

const others = [...methods.keys()].filter((name) => name !== "milora" && name !== "midora");
test.each(others)("the paper's settings of %s are its defaults on LLaMA-2 7B", (name) => {
  const method = methodOf(name);
  const made = (options: Record<string, unknown>) => method.newConfig(options, SHAPES["llama-2-7b"]);
  expect(made(presetSettings("paper", name).adapter)).toEqual(made({}));
});

/** Section 4 of the paper, in the order in which routers choose among them. */
const SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const MODULES: Readonly<Record<string, readonly string[]>> = {
  ...Object.fromEntries(
    ["adalora", "bitfit", "dora", "lora", "midora", "milora", "moelora"].map((name) => [name, SEVEN]),
  ),
  ia3: ["q_proj", "k_proj", "up_proj"],
};

test.each(Object.entries(MODULES))("the paper's modules of %s are those of LLaMA", (name, modules) => {
  const { newConfig } = methodOf(name);
  const { adapter } = presetSettings("paper", name);
  expect(adapter).not.toHaveProperty("target_modules");
  for (const shape of ["llama-2-7b", "llama-2-13b"] as const) {
    expect(newConfig(adapter, SHAPES[shape])).toEqual(
      newConfig({ ...adapter, target_modules: modules }, SHAPES[shape]),
    );
  }
});

test.each([...methods.keys()])("the paper's settings of %s are taken on Phi-3, whose modules are fused", (name) => {
  const phi3 = readBackboneConfig(join(root, "test/fixtures/families/phi3"));
  const { newConfig, parameters } = methodOf(name);
  expect(parameters(newConfig(presetSettings("paper", name).adapter, phi3), phi3).length).toBeGreaterThan(0);
});

test("the paper's batches are of 128 rows from 10,000 training rows on", () => {
  expect(presetSettings("paper", "lora", 9_999).batch_size).toBe(16);
  expect(presetSettings("paper", "lora", 10_000).batch_size).toBe(128);
});
