/** @file MiLoRA's numbers of parameters and the limits of its config. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Backbone, readBackboneConfig } from "../../models/index.ts";
import { Adapter, lora, milora } from "../index.ts";

const fixtures = new URL("../../../test/fixtures/", import.meta.url).pathname;
const directory = mkdtempSync(join(tmpdir(), "milora-config-"));
afterAll(() => rmSync(directory, { recursive: true }));
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
  const paper = {
    r: 32,
    top_k: 3,
    gate: "straight_through",
    pooler: "self_attention",
    activation: "rational",
  };
  const absent = { router_input: "raw", anneal: 0, balance: "load", load_balance_coefficient: 0.01 };

  test("a file that says nothing else means the paper, also as options", () => {
    const file = { peft_type: "MILORA" };
    expect(milora.configSchema.parse(file)).toMatchObject({ ...paper, ...absent });
    expect(milora.newConfig(file, llama7b)).toMatchObject({ ...paper, ...absent, lora_alpha: 32 });
  });

  test("a new adapter has the recipe that measured best, written out", () => {
    const config = milora.newConfig({}, llama7b);
    const recipe = { router_input: "rms", anneal: 0.5, balance: "information", load_balance_coefficient: 0.03 };
    expect(config).toMatchObject({ ...paper, ...recipe, lora_alpha: 128 });
    expect(milora.configSchema.parse(JSON.parse(JSON.stringify(config)))).toEqual(config);
  });

  test("the recipe is saved, read and saved again as it is", async () => {
    const backbone = readBackboneConfig(`${fixtures}backbones/llama-gqa`);
    using created = Adapter.create(milora, { r: 2 }, backbone, 1);
    const [first, second] = [join(directory, "first"), join(directory, "second")];
    await created.save(first);
    using loaded = Adapter.load(first, backbone, { allowIdentity: true });
    await loaded.save(second);
    for (const name of ["adapter_config.json", "adapter_model.safetensors"]) {
      expect(readFileSync(join(second, name)).equals(readFileSync(join(first, name))), name).toBe(true);
    }
    const written = JSON.parse(readFileSync(join(first, "adapter_config.json"), "utf8"));
    expect(written).toMatchObject({ lora_alpha: 8, router_input: "rms", anneal: 0.5, balance: "information" });
  });

  test("while experts fade, an adapter is not yet what it is trained for", () => {
    const interim = (anneal: number) =>
      [0, 0.5, 1].map((at) => milora.interim!(milora.newConfig({ anneal }, llama7b), at));
    expect(interim(0)).toEqual([false, false, false]);
    expect(interim(0.5)).toEqual([true, false, false]);
    expect(interim(1)).toEqual([true, true, false]);
  });

  test.each([
    [{ top_k: 8 }, /top_k: is larger than the number of target_modules/],
    [{ top_k: 0 }, /top_k/],
    [{ target_modules: ["q_proj", "q_proj", "k_proj", "v_proj"] }, /names a module twice/],
    [{ target_modules: ["q_proj", "c_attn", "k_proj"] }, /the backbone's layers have no "c_attn"/],
    [{ activation: ["gelu", "relu"] }, /has 2 entries, the backbone has 32 layers/],
    [{ gate: "sigmoid" }, /gate/],
    [{ anneal: 1.5 }, /anneal/],
    [{ rational_orders: [3, 2] }, /only \[6, 5\] is supported/],
  ])("refuses %j", (options, message) => {
    expect(() => milora.newConfig(options, llama7b)).toThrow(message);
  });
});
