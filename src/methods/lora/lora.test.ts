/** @file PEFT's rules of targets and patterns, and the PEFT features that are refused rather than ignored. */
import { describe, expect, test } from "vitest";
import { Backbone } from "../../models/index.ts";
import { lora } from "../index.ts";

const shape = Backbone.shapes["smollm2-135m"]!;
const parse = (config: object) => lora.configSchema.parse({ peft_type: "LORA", target_modules: ["q_proj"], ...config });
const keys = (config: object) => lora.parameters(parse(config), shape).map(({ key }) => key);
const ranks = (config: object) =>
  lora
    .parameters(parse(config), shape)
    .filter(({ key }) => key.endsWith("lora_A.weight"))
    .map((spec) => spec.shape[0]);

describe("targets", () => {
  test("a list names path suffixes at a dot", () => {
    expect(keys({})).toHaveLength(2 * 30);
    expect(keys({})[0]).toBe("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    expect(() => keys({ target_modules: ["proj"] })).toThrow(/name no linear module/);
    expect(keys({ target_modules: ["layers.3.self_attn.q_proj", "mlp.up_proj"] })).toHaveLength(2 + 60);
  });

  test("a string is a regular expression on the whole path, or all-linear", () => {
    expect(keys({ target_modules: ".*\\.layers\\.[01]\\..*(q|v)_proj" })).toHaveLength(2 * 4);
    expect(keys({ target_modules: "all-linear" })).toHaveLength(2 * 7 * 30);
    expect(() => keys({ target_modules: "(" })).toThrow(/is not a regular expression/);
  });

  test("excludes modules and restricts layers", () => {
    expect(keys({ target_modules: "all-linear", exclude_modules: ["down_proj"] })).toHaveLength(2 * 6 * 30);
    expect(keys({ layers_to_transform: 4 })).toHaveLength(2);
    expect(keys({ layers_to_transform: [0, 29] })).toHaveLength(4);
  });

  test("rank_pattern takes the first key that ends the path", () => {
    const found = ranks({
      r: 4,
      rank_pattern: { "layers.1.self_attn.q_proj": 8, q_proj: 16 },
      layers_to_transform: [0, 1],
    });
    expect(found).toEqual([16, 8]);
  });
});

test.each([
  { bias: "all" },
  { modules_to_save: ["lm_head"] },
  { lora_bias: true },
  { fan_in_fan_out: true },
  { trainable_token_indices: [1, 2] },
  { layer_replication: [[0, 2]] },
])("refuses %j, which would change the result", (config) => {
  expect(() => parse(config)).toThrow(/not supported/);
});

test("keeps fields it does not know", () => {
  expect(parse({ peft_version: "0.21.0", runtime_config: { a: 1 } })).toMatchObject({ peft_version: "0.21.0" });
});
