/** @file BitFit's number of parameters, the two forms of its files, and the limits of its config. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Backbone } from "../../models/index.ts";
import { Adapter, bitfit } from "../index.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;
const small = Backbone.shapes["smollm2-135m"]!;

test("a vector and a projection for each module make the paper's 87.0 M on LLaMA-2 7B", () => {
  const { tunable } = bitfit.countParameters(bitfit.newConfig({}, llama7b), llama7b);
  // Widths of a layer: 4 · 4096 + 2 · 11008 + 4096 = 42,496.
  expect(tunable).toEqual({ vectors: 32 * 7 * 64, projections: 32 * 42_496 * 64 });
  expect(Object.values(tunable).reduce((a, b) => a + b)).toBe(87_046_144);
});

test("what is saved for use are the biases: the vectors through their projections", async () => {
  const options = { projection_dim: 3, target_modules: ["k_proj", "down_proj"], layers_to_transform: [1] };
  using trained = Adapter.create(bitfit, options, small, 1);
  const of = (module: string, rest: string) => trained.values(`base_model.model.model.layers.1.${module}.bias${rest}`);
  of("mlp.down_proj", "_projection").set([0.5, -2, 4]); // row 0
  const directory = mkdtempSync(join(tmpdir(), "bitfit-"));
  try {
    await trained.save(directory);
    using loaded = Adapter.load(directory, small);
    expect(loaded.config).toMatchObject({ inference_mode: true, target_modules: ["k_proj", "down_proj"] });
    expect(loaded.config).not.toHaveProperty("projection_dim");
    expect([...loaded.tensors].map(([key, { shape }]) => [key.split("layers.")[1], shape])).toEqual([
      ["1.self_attn.k_proj.bias", [192]],
      ["1.mlp.down_proj.bias", [576]],
    ]);
    const [a, b, c] = of("mlp.down_proj", "_vector") as unknown as [number, number, number];
    const bias = loaded.values("base_model.model.model.layers.1.mlp.down_proj.bias");
    expect(bias[0]).toBeCloseTo(0.5 * a - 2 * b + 4 * c, 5);
    expect(bias.subarray(1).every((v) => v === 0)).toBe(true);
  } finally {
    rmSync(directory, { recursive: true });
  }
});

test("projection_dim null trains the biases themselves", () => {
  const config = bitfit.newConfig({ projection_dim: null }, small);
  expect(bitfit.parameters(config, small)).toHaveLength(7 * 30);
  expect(bitfit.countParameters(config, small).tunable).toEqual({
    biases: 30 * (576 + 2 * 192 + 576 + 2 * 1536 + 576),
  });
});

test.each([
  [{ inference_mode: true }, /inference_mode: is set by training/],
  [{ projection_dim: 0 }, /projection_dim/],
  [{ target_modules: ["c_attn"] }, /name no linear module/],
])("refuses %j", (options, message) => {
  expect(() => bitfit.newConfig(options, llama7b)).toThrow(message);
});
