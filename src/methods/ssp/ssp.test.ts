/** @file SSP's budget, its gates as functions of it, the structure they choose, and the limits of its config. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { sum } from "../../base/index.ts";
import { Graph } from "../../graph/index.ts";
import { Backbone, readBackboneConfig } from "../../models/index.ts";
import { Tensor } from "../../runtime/index.ts";
import { runOnce } from "../compute.ts";
import { Adapter, ssp } from "../index.ts";
import { candidatesOf, type SspConfig, type Structure } from "./config.ts";
import { gateLogits, gatesOf } from "./gates.ts";

const fixtures = new URL("../../../test/fixtures/", import.meta.url).pathname;
const llama7b = Backbone.shapes["llama-2-7b"]!;
const gqa = readBackboneConfig(`${fixtures}backbones/llama-gqa`);
const end = { step: 30, totalSteps: 100 };
const alphas = (length: number, seed = 1) => Float32Array.from({ length }, (_, i) => 3 * Math.sin(12.9 * (i + seed)));

/** Gates of these α, and of noise where it is given. */
function gates(config: SspConfig, alpha: Float32Array, noise?: Float32Array): Float32Array {
  const graph = new Graph();
  const shape = [alpha.length];
  const logits = gateLogits(config, candidatesOf(config, gqa), graph.input("alpha", "float32", shape));
  graph.output("gates", gatesOf(logits, noise && graph.input("noise", "float32", shape)));
  const given = new Map([["alpha", Tensor.from("float32", shape, alpha)]]);
  if (noise) given.set("noise", Tensor.from("float32", shape, noise));
  using result = runOnce(graph, given).get("gates")!;
  for (const tensor of given.values()) tensor.dispose();
  return (result.data as Float32Array).slice();
}

test("half of LoRA of rank 64 and biases everywhere is the paper's 80.6 M on LLaMA-2 7B", () => {
  const config = ssp.newConfig({}, llama7b);
  expect(ssp.countParameters(config, llama7b).tunable).toEqual({ budget: 80_633_856 });
  const next = ssp.successor!(config, llama7b, { ...end, values: () => alphas(2 * 7 * 32) })!;
  const found = sum(Object.values(ssp.countParameters(next.config, llama7b).tunable));
  expect(found).toBeLessThanOrEqual(80_633_856);
  expect(found / 80.6e6).toBeGreaterThan(0.999);
  const listed = ssp.parameters(next.config, llama7b);
  expect(sum(listed.map(({ shape }) => shape.reduce((a, b) => a * b)))).toBe(found);
});

test.each([{}, { temperature: 0.2 }, { budget: 500 }, { budget: 23_000, r: 64 }])(
  "the gates of %j cost the budget, whatever their α",
  (options) => {
    const config = ssp.newConfig(options, gqa);
    const candidates = candidatesOf(config, gqa);
    const total = sum(candidates.map(({ size }) => size));
    for (const alpha of [
      new Float32Array(candidates.length),
      alphas(candidates.length),
      alphas(candidates.length, 5),
    ]) {
      const p = gates(config, alpha);
      expect(sum(p.map((value, i) => value * candidates[i]!.size)) / (config.budget ?? total / 2)).toBeCloseTo(1, 4);
      for (let i = 1; i < p.length; i++) expect(Math.sign(p[i]! - p[0]!)).toBe(Math.sign(alpha[i]! - alpha[0]!));
    }
  },
);

test("noise makes a sample: u = 1/2 is the gate itself, u near 1 opens, u near 0 closes", () => {
  const config = ssp.newConfig({}, gqa);
  const alpha = alphas(candidatesOf(config, gqa).length);
  const of = (u: number) =>
    gates(
      config,
      alpha,
      alpha.map(() => u),
    );
  const p = gates(config, alpha);
  expect(of(0.5)).toEqual(p);
  for (const [i, value] of of(0.9).entries()) expect(value).toBeCloseTo((9 * p[i]!) / (1 + 8 * p[i]!), 5);
  for (const [i, value] of of(0.1).entries()) expect(value).toBeCloseTo(p[i]! / (9 - 8 * p[i]!), 5);
});

test.each(["search", "search-budget"])("%s: the structure found is the reference's", (name) => {
  using adapter = Adapter.load(`${fixtures}ssp/${name}`, gqa);
  const { config } = adapter;
  const next = ssp.successor!(config as SspConfig, gqa, { ...end, values: (key) => adapter.values(key) })!;
  const { structure } = JSON.parse(readFileSync(`${fixtures}ssp/${name}/expected.json`, "utf8"));
  expect(next.config.structure).toEqual(structure);
  const { lora, bitfit } = structure as Structure;
  const shown = ssp.structure!(next.config, gqa)!;
  const both = lora.q_proj!.filter((layer) => bitfit.q_proj?.includes(layer));
  for (const layer of both) expect(shown.get(`model.layers.${layer}.self_attn.q_proj`)).toBe("LoRA + bias");
  expect([...shown.values()].filter((word) => word.includes("bias"))).toHaveLength(Object.values(bitfit).flat().length);
  using succeeding = adapter.succeededBy(next, 3);
  expect(succeeding.specs.some(({ key }) => key.endsWith("ssp_gates"))).toBe(false);
  expect(ssp.isIdentity(next.config, gqa, (key) => succeeding.values(key))).toBe(true); // drawn anew
  expect(ssp.interim!(config as SspConfig, 0)).toBe(true);
  expect(ssp.interim!(next.config, 0.5)).toBe(false);
});

test("the search lasts for its share of the steps, and ends once", () => {
  const config = ssp.newConfig({ search_ratio: 0.25 }, gqa);
  const values = () => alphas(candidatesOf(config, gqa).length);
  const at = (step: number, of: SspConfig = config) => ssp.successor!(of, gqa, { step, totalSteps: 10, values });
  expect(at(2)).toBeUndefined();
  const { config: found } = at(3)!;
  expect(at(4, found)).toBeUndefined();
});

test.each([
  [{ density: 1 }, /density/],
  [{ budget: 3 }, /budget: 3 parameters are less than the smallest candidate's 4096/],
  [{ budget: 1e9 }, /there is nothing to search/],
  [
    { structure: { lora: { q_proj: [0, 32], c_attn: [] }, bitfit: { up_proj: [40] } } },
    /3 problems: structure\.lora\.q_proj: no target in layers 32; structure\.lora\.c_attn: is not among target_modules; structure\.bitfit/,
  ],
])("refuses %j", (options, message) => {
  expect(() => ssp.newConfig(options, llama7b)).toThrow(message);
});
