/** @file P-tuning v2's numbers of parameters and the limits of its config. */
import { describe, expect, test } from "vitest";
import { Backbone } from "../../models/index.ts";
import { Adapter } from "../index.ts";
import { pTuningV2 } from "./index.ts";

const llama7b = Backbone.shapes["llama-2-7b"]!;
const small = Backbone.shapes["smollm2-135m"]!;
const sizes = (specs: readonly { readonly shape: readonly number[] }[]) =>
  specs.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0);

describe("parameter counts of LLaMA-2 7B", () => {
  test("the paper's 84.5 M: 16 keys and values a layer of size 640, and a projection", () => {
    const config = pTuningV2.newConfig({}, llama7b);
    const { tunable } = pTuningV2.countParameters(config, llama7b);
    expect(tunable).toEqual({ prefix: 655_360, projections: 83_886_080 });
    expect(Math.abs((tunable.prefix! + tunable.projections!) / 84.5e6 - 1)).toBeLessThan(0.01);
    expect(sizes(pTuningV2.parameters(config, llama7b))).toBe(tunable.prefix! + tunable.projections!);
  });

  test("without a projection the prefix alone, as in the files of PEFT", () => {
    const config = pTuningV2.newConfig({ prefix_projection: false }, llama7b);
    expect(pTuningV2.countParameters(config, llama7b).tunable).toEqual({ prefix: 16 * 2 * 32 * 4096 });
    expect(pTuningV2.parameters(config, llama7b).map(({ key, shape }) => [key, shape])).toEqual([
      ["prompt_embeddings", [16, 32 * 2 * 4096]],
    ]);
  });
});

test("with grouped queries the prefix is as wide as the key-value heads", () => {
  const width = small.numKvHeads * small.headDim;
  expect(width).toBeLessThan(small.hiddenSize);
  const config = pTuningV2.newConfig({ prefix_projection: false }, small);
  expect(config).toMatchObject({ token_dim: width, num_attention_heads: small.numKvHeads, num_layers: 30 });
  expect(pTuningV2.parameters(config, small)[0]!.shape).toEqual([16, 30 * 2 * width]);
});

test("a new adapter is drawn anew from its seed, and never the identity", () => {
  const create = (seed: number) => Adapter.create(pTuningV2, { encoder_hidden_size: 8 }, small, seed);
  using first = create(1);
  using same = create(1);
  using other = create(2);
  expect(first.digest).toBe(same.digest);
  expect(first.digest).not.toBe(other.digest);
  expect(pTuningV2.properties.startsAsIdentity).toBe(false);
  expect(pTuningV2.isIdentity(first.config as never, small, (key) => first.values(key))).toBe(false);
});

test.each([
  [{ num_layers: 7, token_dim: 64 }, /token_dim: is 64, this backbone needs 192; num_layers: is 7/],
  [{ num_transformer_submodules: 2 }, /num_transformer_submodules: only 1 is supported/],
  [{ num_virtual_tokens: 0 }, /num_virtual_tokens/],
  [{ num_virtual_tokens: 60_000 }, /num_virtual_tokens: leaves nothing/],
  [{ encoder_hidden_size: null }, /encoder_hidden_size: is missing/],
  [{ inference_mode: false }, /inference_mode: is set by training/],
])("refuses %j", (options, message) => {
  expect(() => pTuningV2.newConfig(options, small)).toThrow(message);
});
