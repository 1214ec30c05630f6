/** @file The parallel adapter's parameter count and the limits of its config. */
import { expect, test } from "vitest";
import { Backbone } from "../../models/index.ts";
import { parallelAdapter } from "../index.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;

test("83.9 M on LLaMA-2 7B, as in the paper", () => {
  const config = parallelAdapter.newConfig({}, llama7b);
  expect(config).toMatchObject({ bottleneck: 160, activation: "relu", scaling: 1 });
  const { tunable, activated } = parallelAdapter.countParameters(config, llama7b);
  expect(tunable).toEqual({ adapters: 83_886_080 });
  expect(activated).toEqual(tunable);
  const listed = parallelAdapter.parameters(config, llama7b);
  expect(listed.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0)).toBe(83_886_080);
});

test.each([
  [{ bottleneck: 0 }, /bottleneck/],
  [{ activation: "rational" }, /activation/],
  [{ scaling: 0 }, /scaling/],
])("refuses %j", (options, message) => {
  expect(() => parallelAdapter.newConfig(options, llama7b)).toThrow(message);
});
