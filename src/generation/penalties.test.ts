/** @file Biases and penalties against the formulas in OpenAI's documentation, and the repetition penalty of transformers. */
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { Penalties } from "./penalties.ts";
import type { SamplingOptions } from "./request.ts";
import { distance } from "./testing.ts";

const logits = Float32Array.of(1, -2, 3, 0.5, -0.25, 2);
const options = (extra: Partial<SamplingOptions>): SamplingOptions => ({ maxNewTokens: 9, ...extra });

function changed(extra: Partial<SamplingOptions>, generated: number[], prompt: number[] = [0]): Float32Array {
  const penalties = Penalties.of(options(extra), prompt)!;
  for (const token of generated) penalties.count(token);
  return penalties.apply(logits);
}

test("presence and frequency: mu[j] - c[j] * frequency - (c[j] > 0) * presence, of generated tokens only", () => {
  const generated = [2, 5, 2, 2];
  const counts = [0, 0, 3, 0, 0, 1];
  for (const [presence, frequency] of [
    [0.5, 0],
    [0, 1.5],
    [-2, 0.25],
  ] as const) {
    const expected = logits.map((mu, j) => mu - counts[j]! * frequency - (counts[j]! > 0 ? 1 : 0) * presence);
    const found = changed({ presencePenalty: presence, frequencyPenalty: frequency }, generated, [1, 4]);
    expect(distance(found, expected)).toBeLessThan(1e-6);
  }
});

test("a bias is added to the logits of its token", () => {
  expect([...changed({ logitBias: { "1": 100, "5": -100 } }, [])]).toEqual([1, 98, 3, 0.5, -0.25, -98]);
});

test("the repetition penalty is that of transformers, for prompt and answer", () => {
  const file = new URL("../../test/fixtures/sampling.json", import.meta.url);
  const { repetition } = JSON.parse(readFileSync(file, "utf8")) as {
    repetition: { logits: number[]; seen: number[]; penalty: number; changed: number[] }[];
  };
  expect(repetition).toHaveLength(2);
  for (const { logits, seen, penalty, changed } of repetition) {
    const penalties = Penalties.of(options({ repetitionPenalty: penalty }), seen.slice(0, 2))!;
    for (const token of seen.slice(2)) penalties.count(token);
    expect(distance(penalties.apply(Float32Array.from(logits)), changed)).toBeLessThan(1e-6);
  }
});

test("the logits themselves stay, and neutral options cost nothing", () => {
  const before = [...logits];
  changed({ presencePenalty: 1, logitBias: { "0": 5 } }, [1]);
  expect([...logits]).toEqual(before);
  expect(
    Penalties.of(options({ presencePenalty: 0, frequencyPenalty: 0, repetitionPenalty: 1, logitBias: {} }), [1]),
  ).toBeUndefined();
});
