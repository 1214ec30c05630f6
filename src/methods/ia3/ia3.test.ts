/** @file (IA)³'s numbers of parameters, which modules are scaled where, and the limits of its config. */

import { describe, expect, test } from "vitest";
import { sum } from "../../base/index.ts";
import { Backbone } from "../../models/index.ts";
import { Adapter } from "../index.ts";
import { scaledSites } from "./config.ts";
import { ia3 } from "./index.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;
const small = Backbone.shapes["smollm2-135m"]!;
const total = (counts: Readonly<Record<string, number>>) => sum(Object.values(counts));
const sizes = (specs: readonly { readonly shape: readonly number[] }[]) =>
  specs.reduce((all, { shape }) => all + shape.reduce((a, b) => a * b), 0);

describe("parameter counts of LLaMA-2 7B", () => {
  test("the paper's 78.6 M: vectors of size 128 for Q, K and Up, projected", () => {
    const config = ia3.newConfig({}, llama7b);
    const { tunable } = ia3.countParameters(config, llama7b);
    expect(tunable).toEqual({ vectors: 12_288, projections: 78_643_200 });
    expect(Math.abs(total(tunable) / 78.6e6 - 1)).toBeLessThan(0.01);
    expect(sizes(ia3.parameters(config, llama7b))).toBe(total(tunable));
  });

  test("without a projection the scales alone, as in the files of PEFT", () => {
    const config = ia3.newConfig({ projection_dim: null }, llama7b);
    expect(ia3.countParameters(config, llama7b).tunable).toEqual({ scales: 614_400 });
    expect(sizes(ia3.parameters(config, llama7b))).toBe(614_400);
  });
});

test.each([{}, { projection_dim: null }])("a new adapter leaves the backbone as it is (%j)", (options) => {
  using adapter = Adapter.create(ia3, options, small, 1);
  const values = (key: string) => adapter.values(key);
  expect(ia3.isIdentity(adapter.config as never, small, values)).toBe(true);
  const last = adapter.specs.at(-1)!.key;
  adapter.values(last)[0]! += 0.5;
  expect(ia3.isIdentity(adapter.config as never, small, values)).toBe(false);
});

describe("config", () => {
  const parse = (config: object) => ia3.configSchema.parse({ peft_type: "IA3", ...config });
  const forward = (config: object) => [
    ...new Set(
      scaledSites(parse(config), small)
        .filter(({ feedforward }) => feedforward)
        .map(({ site }) => site.module),
    ),
  ];

  test("a file without targets has PEFT's for LLaMA", () => {
    const modules = scaledSites(parse({}), small).map(({ site }) => site.module);
    expect([...new Set(modules)]).toEqual(["k_proj", "v_proj", "down_proj"]);
    expect(forward({})).toEqual(["down_proj"]);
  });

  test("feedforward_modules: a list of endings, or a regular expression on the whole path", () => {
    const target_modules = ["q_proj", "up_proj", "down_proj"];
    expect(forward({ target_modules, feedforward_modules: [] })).toEqual([]);
    expect(forward({ target_modules, feedforward_modules: ["up_proj"] })).toEqual(["up_proj"]);
    expect(forward({ target_modules, feedforward_modules: ".*(up|down)_proj" })).toEqual(["up_proj", "down_proj"]);
    expect(forward({ target_modules, feedforward_modules: "up_proj" })).toEqual([]);
  });

  test.each([
    [{ feedforward_modules: ["gate_proj"] }, /feedforward_modules: must be among target_modules/],
    [{ projection_dim: 0 }, /projection_dim/],
    [{ inference_mode: true }, /inference_mode: is set by training/],
    [{ modules_to_save: ["lm_head"] }, /modules_to_save: not supported/],
    [{ target_modules: ["c_attn"] }, /name no linear module/],
  ])("refuses %j", (options, message) => {
    expect(() => ia3.newConfig(options, small)).toThrow(message);
  });
});
