/** @file AdaLoRA's numbers of parameters, its schedule, which rows stay, and the limits of its config. */
import { describe, expect, test } from "vitest";
import { Backbone } from "../../models/index.ts";
import { Adapter } from "../index.ts";
import { budgetAt, keepLargest } from "./allocation.ts";
import { scalingOf } from "./config.ts";
import { type AdaloraConfig, adalora } from "./index.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;
const small = Backbone.shapes["smollm2-135m"]!;

test("parameter counts of LLaMA-2 7B: the paper's 80.0 M once half of rank 64 is pruned", () => {
  const config = adalora.newConfig({}, llama7b);
  expect(config).toMatchObject({ init_r: 64, target_r: 32, lora_alpha: 64 });
  const { tunable } = adalora.countParameters(config, llama7b);
  expect(tunable).toEqual({ lora: 79_953_920, singular_values: 7_168 });
  expect(Math.abs((tunable.lora! + tunable.singular_values!) / 80e6 - 1)).toBeLessThan(0.01);
  const trained = adalora.parameters(config, llama7b).reduce((sum, { shape }) => sum + shape[0]! * shape[1]!, 0);
  expect(trained).toBe(2 * (79_953_920 + 7_168));
});

test("the matrices of a pruned file have the ranks that are left, which may be 0", () => {
  const config = adalora.configSchema.parse({
    peft_type: "ADALORA",
    init_r: 3,
    target_modules: ["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj", "layers.2.self_attn.q_proj"],
    rank_pattern: {
      "model.layers.0.self_attn.q_proj.lora_E": [true, false, true],
      "model.layers.1.self_attn.q_proj.lora_E.default": [false, false, false],
    },
  });
  const shapes = adalora.parameters(config, small).map(({ shape }) => shape);
  expect(shapes).toEqual(
    [2, 0, 3].flatMap((r) => [
      [r, 576],
      [576, r],
      [r, 1],
    ]),
  );
  expect(adalora.countParameters(config, small).tunable).toEqual({ lora: 5 * 2 * 576, singular_values: 5 });
});

test("the scaling is PEFT's, by the rank before pruning", () => {
  const config = { peft_type: "ADALORA", init_r: 5, lora_alpha: 6, target_modules: ["q_proj"] };
  expect(scalingOf(adalora.configSchema.parse(config))).toBe(6 / 5.00001);
});

test("a new adapter leaves the backbone as it is", () => {
  using adapter = Adapter.create(adalora, { init_r: 2 }, small, 1, undefined, { totalSteps: 100 });
  const values = (key: string) => adapter.values(key);
  const config = adapter.config as AdaloraConfig;
  expect(adalora.isIdentity(config, small, values)).toBe(true);
  adapter.values("base_model.model.model.layers.3.mlp.up_proj.lora_E")[1] = 0.1;
  expect(adalora.isIdentity(config, small, values)).toBe(false);
});

describe("allocation", () => {
  const config = adalora.newConfig({ tinit: 10, tfinal: 30, deltaT: 5, total_step: 100 }, small);
  const ranks = { initial: 64, target: 32 };

  test("the budget falls by the cube, from all to the target", () => {
    const at = (step: number) => budgetAt(step, config, 100, ranks);
    expect(at(0)).toEqual({ budget: 64, due: false });
    expect(at(10)).toEqual({ budget: 64, due: false });
    expect(at(11)).toEqual({ budget: 62, due: false }); // 32 + 32 · (59/60)³ = 62.4
    expect(at(40)).toEqual({ budget: 36, due: true }); // 32 + 32 / 8
    expect(at(70)).toEqual({ budget: 32, due: true });
    expect(at(71)).toEqual({ budget: 32, due: true });
  });

  test("rows with the largest scores stay; equal ones at the border fall together", () => {
    const scores = Float32Array.of(0.3, 0.1, 0.2, 0.1, 0.5, 0);
    expect(keepLargest(scores, 6)).toEqual([true, true, true, true, true, true]);
    expect(keepLargest(scores, 3)).toEqual([true, false, true, false, true, false]);
    expect(keepLargest(scores, 4)).toEqual([true, false, true, false, true, false]);
    expect(keepLargest(scores, 0)).toEqual([false, false, false, false, false, false]);
  });
});

describe("config", () => {
  test("the schedule is in proportion to the run, unless it is given", () => {
    const run = { totalSteps: 1400 };
    expect(adalora.newConfig({}, small, run)).toMatchObject({ total_step: 1400, tinit: 200, tfinal: 700, deltaT: 2 });
    expect(adalora.newConfig({ total_step: 70, tfinal: 1 }, small, run)).toMatchObject({
      total_step: 70,
      tinit: 10,
      tfinal: 1,
      deltaT: 1,
    });
    expect(adalora.newConfig({}, small, { totalSteps: 1 })).toMatchObject({ tinit: 0, tfinal: 0 });
    expect(adalora.newConfig({}, small).total_step).toBeUndefined();
  });

  test.each([
    [{ target_r: 65 }, /target_r: is more than init_r/],
    [{ total_step: 10, tinit: 5, tfinal: 5 }, /total_step: leaves no step/],
    [{ rank_pattern: {} }, /rank_pattern: is set by training/],
    [{ use_dora: true }, /use_dora: not supported/],
    [{ lora_dropout: 0.1 }, /dropout is not supported in training/],
    [{ beta1: 1 }, /beta1/],
  ])("refuses %j", (options, message) => {
    expect(() => adalora.newConfig(options, small)).toThrow(message);
  });

  test("a rank_pattern must fit: all that is wrong is listed", () => {
    const pattern = { "model.layers.0.self_attn.q_proj.lora_E": [true], "model.layers.0.mlp.up_proj.lora_E": [true] };
    const config = { peft_type: "ADALORA", init_r: 2, target_modules: ["q_proj"], rank_pattern: pattern };
    expect(() => adalora.parameters(adalora.configSchema.parse(config), small)).toThrow(
      /q_proj" has 1 entries, expected init_r = 2; rank_pattern: "model.layers.0.mlp.up_proj" is none/,
    );
  });
});
