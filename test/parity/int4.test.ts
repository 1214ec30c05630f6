/** @file 4-bit weights: decoding, which multiplies fused weights, continues what the prompt's pass, which does not, computes. */
import { expect, test } from "vitest";
import { Engine } from "../../src/generation/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { Backbone } from "../../src/models/index.ts";

const MODEL = new URL("../../assets/tiny-llama", import.meta.url).pathname;

test.each([
  [undefined, "float32"],
  ["lora", "float32"],
  ["lora", "float16"],
  ["milora", "float32"],
  ["milora", "float16"],
] as const)("greedy tokens and log-probabilities, adapter: %s, in decoding %s", async (method, adapterPrecision) => {
  using backbone = await Backbone.load(MODEL, { weights: "int4" });
  using engine = Engine.create(backbone, { adapterPrecision });
  using adapter = method ? Adapter.create(methodOf(method), { r: 4 }, backbone.config, 1) : undefined;
  for (const [index, key] of [...(adapter?.tensors.keys() ?? [])].entries()) {
    if (key.includes("lora_B"))
      adapter!.values(key).forEach((_, i, values) => {
        values[i] = 0.05 * Math.sin(i + index);
      });
  }
  const prompt = backbone.tokenizer.encode("The cell is the basic unit of life, and");
  const options = { maxNewTokens: 8, eosTokenIds: [] };
  const [result] = await engine.generate([{ prompt, options, ...(adapter && { adapter }) }]);
  const rows = [{ prompt, continuation: result!.tokens }];
  const [scored] = await engine.score(rows, adapter);
  expect(scored!.greedy).toBe(true);
  scored!.logprobs.forEach((logprob, i) => {
    // Activations are rounded to 8 bits on the way: a difference in the last float bit may move one by a level, and
    // float16 factors move more of them.
    expect(Math.abs(result!.logprobs[i]! - logprob)).toBeLessThan(adapterPrecision === "float16" ? 0.04 : 0.02);
  });
});

test("4-bit weights change the numbers, but not beyond recognition", async () => {
  const text = "The cell is the basic unit of life. Plants make sugar from light, water and carbon dioxide.";
  const losses: number[] = [];
  for (const weights of ["float32", "int4"] as const) {
    using backbone = await Backbone.load(MODEL, { weights });
    using engine = Engine.create(backbone);
    const { logprobs } = await engine.inspectTokens(backbone.tokenizer.encode(text));
    losses.push(-logprobs.reduce((a, b) => a + b) / logprobs.length);
  }
  expect(losses[1]).not.toBe(losses[0]);
  expect(Math.abs(losses[1]! - losses[0]!)).toBeLessThan(0.2);
});
