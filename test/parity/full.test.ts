/** @file Full fine-tuning: how many weights, and an engine that answers with and without them. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { Engine } from "../../src/generation/index.ts";
import { Adapter, full } from "../../src/methods/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { distance, FIXTURES, pass } from "./support.ts";

test("all 6.74 billion parameters of LLaMA-2 7B are trained", () => {
  const backbone = Backbone.shapes["llama-2-7b"];
  const { tunable } = full.countParameters(full.newConfig({}, backbone), backbone);
  expect(tunable).toEqual({ embedding: 131_072_000, norm: 65 * 4096, linear: 6_476_005_376, head: 131_072_000 });
  expect(Object.values(tunable).reduce((a, b) => a! + b!)).toBe(6_738_415_616);
});

// One model, one engine: its language-model head is another for each of them.
test.each(["gqa", "tied"])("%s: bare and fully fine-tuned by turns in one engine", async (name) => {
  using backbone = await Backbone.load(join(FIXTURES, `backbones/llama-${name}`));
  using adapter = Adapter.load(join(FIXTURES, `full/${name}`), backbone.config);
  const engine = Engine.create(backbone);
  const tokens = [1, 30, 41, 7, 88];
  const last = (of: Adapter | undefined) =>
    pass(backbone, of, { tokens: [tokens], promptLengths: [5] }).logits.slice(-backbone.config.vocabSize);
  for (const of of [undefined, adapter, undefined, adapter]) {
    const { logits } = await engine.inspectTokens(tokens, of);
    expect(distance(logits, last(of))).toBeLessThan(1e-4);
  }
  expect(distance(last(adapter), last(undefined))).toBeGreaterThan(0.1);
  engine.dispose();
});
