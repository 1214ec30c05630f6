/** @file GGUF models: the logits that transformers computes with the weights the file holds, whatever their type. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { Backbone } from "../../src/models/index.ts";
import { distance, FIXTURES, fixture, pass } from "./support.ts";

interface Expected {
  readonly backbone: string;
  readonly type: string;
  readonly sequences: readonly { readonly tokens: number[]; readonly lastLogits: number[] }[];
}

const MODELS = Object.entries(fixture<Record<string, Expected>>("gguf", "expected.json"));
const TOLERANCE = 1e-4; // as for the checkpoints themselves

function lastLogits(backbone: Backbone, tokens: number[]): Float32Array {
  const { logits } = pass(backbone, undefined, { tokens: [tokens], promptLengths: [tokens.length] });
  return logits.slice(-backbone.config.vocabSize);
}

const pathOf = (name: string) => join(FIXTURES, "gguf", `${name}.gguf`);

test.each(MODELS)("%s: logits as transformers computes them from the dequantised weights", async (name, expected) => {
  using backbone = await Backbone.load(pathOf(name));
  for (const { tokens, lastLogits: wanted } of expected.sequences) {
    expect(distance(lastLogits(backbone, tokens), wanted)).toBeLessThan(TOLERANCE);
  }
});

test.each(MODELS.filter(([, { type }]) => type === "F32"))("%s: the checkpoint's logits", async (name, expected) => {
  using backbone = await Backbone.load(pathOf(name));
  using checkpoint = await Backbone.load(join(FIXTURES, expected.backbone));
  for (const { tokens } of expected.sequences) {
    expect(distance(lastLogits(backbone, tokens), lastLogits(checkpoint, tokens))).toBeLessThan(1e-5);
  }
});

test("a quantised file is not the checkpoint it was made of", async () => {
  const [, { backbone: source, sequences }] = MODELS.find(([, { type }]) => type === "Q4_0")!;
  using checkpoint = await Backbone.load(join(FIXTURES, source));
  const { tokens, lastLogits: wanted } = sequences.at(-1)!;
  expect(distance(lastLogits(checkpoint, tokens), wanted)).toBeGreaterThan(0.01);
});
