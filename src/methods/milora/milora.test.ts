/** @file MiLoRA's numbers of parameters and the limits of its config. */
import { describe, expect, test } from "vitest";
import { Backbone } from "../../models/index.ts";
import { lora, milora } from "../index.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;

describe("parameter counts of LLaMA-2 7B", () => {
  test("LoRA r 32 on all seven modules", () => {
    expect(lora.countParameters(lora.newConfig({}, llama7b), llama7b)).toEqual({
      tunable: { lora: 79_953_920 },
      activated: { lora: 79_953_920 },
    });
  });

  test("MiLoRA adds routers, poolers and activations", () => {
    const { tunable } = milora.countParameters(milora.newConfig({}, llama7b), llama7b);
    expect(tunable).toEqual({ experts: 79_953_920, routers: 917_504, poolers: 131_072, activations: 384 });
    const listed = milora.parameters(milora.newConfig({}, llama7b), llama7b);
    expect(listed.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0)).toBe(
      Object.values(tunable).reduce((a, b) => a + b),
    );
  });

  test("at most 16.38 M are activated with k = 1, counted as in the paper (experts and routers)", () => {
    const { activated } = milora.countParameters(milora.newConfig({ top_k: 1 }, llama7b), llama7b);
    expect(activated.experts! + activated.routers!).toBe(16_384_000);
  });
});

describe("config", () => {
  test("fills the paper's defaults", () => {
    expect(milora.newConfig({}, llama7b)).toMatchObject({
      r: 32,
      lora_alpha: 32,
      top_k: 3,
      gate: "straight_through",
      pooler: "self_attention",
      activation: "rational",
      load_balance_coefficient: 0.01,
      router_input: "raw",
    });
  });

  test.each([
    [{ top_k: 8 }, /top_k: is larger than the number of target_modules/],
    [{ top_k: 0 }, /top_k/],
    [{ target_modules: ["q_proj", "q_proj", "k_proj", "v_proj"] }, /names a module twice/],
    [{ target_modules: ["q_proj", "c_attn", "k_proj"] }, /the backbone's layers have no "c_attn"/],
    [{ activation: ["gelu", "relu"] }, /has 2 entries, the backbone has 32 layers/],
    [{ gate: "sigmoid" }, /gate/],
    [{ rational_orders: [3, 2] }, /only \[6, 5\] is supported/],
  ])("refuses %j", (options, message) => {
    expect(() => milora.newConfig(options, llama7b)).toThrow(message);
  });
});
