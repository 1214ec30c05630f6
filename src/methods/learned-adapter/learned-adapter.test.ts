/** @file The learned adapter's budget, its placement in the config, and what the end of the search keeps. */
import { expect, test } from "vitest";
import { Backbone } from "../../models/index.ts";
import { Adapter, learnedAdapter } from "../index.ts";
import type { Form, LearnedAdapterConfig } from "./config.ts";
import { keysOf } from "./keys.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;
const small = {
  ...Backbone.shapes["smollm2-135m"]!,
  numLayers: 3,
  hiddenSize: 8,
  headDim: 4,
  numHeads: 2,
  numKvHeads: 1,
};
const sizes = (config: LearnedAdapterConfig, backbone = llama7b) =>
  learnedAdapter.parameters(config, backbone).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0);

test("62 adapters are left on LLaMA-2 7B: within 1 % of the paper's 81.8 M", () => {
  const config = learnedAdapter.newConfig({}, llama7b);
  const { tunable, activated } = learnedAdapter.countParameters(config, llama7b);
  expect(tunable).toEqual({ adapters: 81_264_640, activations: 744 });
  expect(activated).toEqual(tunable);
  expect(Math.abs(81_265_384 / 81.8e6 - 1)).toBeLessThan(0.01);
  // While searching all 64 places are there, with two gates each.
  expect(sizes(config)).toBe(64 * (2 * 160 * 4096 + 12 + 2));
  const values = () => new Float32Array(2);
  const at = (step: number) => learnedAdapter.successor!(config, llama7b, { step, totalSteps: 10, values });
  expect(learnedAdapter.interim!(config, 0)).toBe(true);
  expect(at(2)).toBeUndefined(); // the first 30 % of the steps are the search
  const after = at(3)!;
  expect(sizes(after.config)).toBe(81_265_384);
  expect(learnedAdapter.interim!(after.config, 0.5)).toBe(false);
  expect(learnedAdapter.successor!(after.config, llama7b, { step: 4, totalSteps: 10, values })).toBeUndefined();
});

test("the places with the largest gates stay, in the form of that gate, and go on from what they have learned", () => {
  using adapter = Adapter.create(learnedAdapter, { bottleneck: 4, adapters: 3, temperature: 0.5 }, small, 7);
  const gates: Record<string, [number, number]> = {
    "0 self_attn": [0.1, 0.3],
    "0 mlp": [-1, -0.5],
    "1 self_attn": [0.9, 0.2],
    "1 mlp": [0, 0],
    "2 self_attn": [0.2, 0.2],
    "2 mlp": [0.2, -3],
  };
  for (const [place, values] of Object.entries(gates)) {
    const [layer, block] = place.split(" ") as [string, "self_attn" | "mlp"];
    const keys = keysOf({ layer: Number(layer), block });
    adapter.values(keys.gate).set(values);
    adapter.values(keys.up).fill(2);
  }
  const progress = { step: 1, totalSteps: 3, values: (key: string) => adapter.values(key) };
  const { config, values } = learnedAdapter.successor!(adapter.config as LearnedAdapterConfig, small, progress)!;
  expect(config.placement).toEqual({
    self_attn: ["sequential", "parallel", "parallel"],
    mlp: [null, null, null],
  });
  const kept = learnedAdapter.parameters(config, small).map(({ key }) => key);
  expect(kept).toHaveLength(3 * 4);
  expect(kept.some((key) => key.endsWith("gate"))).toBe(false);
  const first = keysOf({ layer: 0, block: "self_attn" });
  expect(values!(first.up)![0]).toBeCloseTo(2 / (1 + Math.exp(-0.3 / 0.5)), 6);
  expect(values!(first.down)).toEqual(adapter.values(first.down));
});

test.each([
  [{ adapters: 65 }, /adapters: 65 do not fit, the backbone has 64 places/],
  [{ placement: { self_attn: ["parallel"], mlp: [null] } }, /placement: self_attn has 1 entries.*mlp has 1 entries/],
  [{ placement: { self_attn: ["serial"], mlp: [] } }, /placement/],
  [{ bottleneck: 0 }, /bottleneck/],
  [{ search_ratio: 0 }, /search_ratio/],
])("refuses %j", (options, message) => {
  expect(() => learnedAdapter.newConfig(options, llama7b)).toThrow(message);
});

test("a placement that is given needs no search, and says how many adapters there are", () => {
  const forms = (form: Form | null) => new Array<Form | null>(32).fill(form);
  const config = learnedAdapter.newConfig({ placement: { self_attn: forms(null), mlp: forms("parallel") } }, llama7b);
  expect(config.adapters).toBe(32);
  expect(sizes(config)).toBe(32 * (2 * 160 * 4096 + 12));
  expect(() => learnedAdapter.parameters({ ...config, adapters: 31 }, llama7b)).toThrow(
    /has 32 adapters, adapters says 31/,
  );
});
