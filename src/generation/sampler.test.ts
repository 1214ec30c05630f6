/** @file Choosing tokens: arg-max against the plain loop, top-k and top-p against transformers, draws against their odds. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Random } from "../base/index.ts";
import { argmax, candidates, chooseToken, likeliest } from "./sampler.ts";

interface Case {
  readonly logits: (number | null)[];
  readonly temperature: number;
  readonly topK: number | null;
  readonly topP: number | null;
  readonly minP: number | null;
  readonly kept: number[];
  readonly probabilities: number[];
}
const file = new URL("../../test/fixtures/sampling.json", import.meta.url);
const { cases } = JSON.parse(readFileSync(file, "utf8")) as { cases: Case[] };

function inputs({ logits, temperature, topK, topP, minP }: Case) {
  return {
    logits: Float32Array.from(logits, (value) => value ?? Number.NEGATIVE_INFINITY),
    sampling: { temperature, topK: topK ?? undefined, topP: topP ?? undefined, minP: minP ?? undefined },
  };
}

test("arg-max is the first of the largest, wherever it stands", () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: -4, max: 4 }), { minLength: 1, maxLength: 40 }), (values) => {
      const floats = Float32Array.from(values);
      expect(argmax(floats)).toBe(values.indexOf(Math.max(...values)));
    }),
  );
  expect(argmax(Float32Array.of(9, 1, 5, 7, 0), 1, 4)).toBe(2);
});

test("logits that are no numbers are an error, not token 0", () => {
  const nothing = new Float32Array(20).fill(Number.NaN);
  expect(() => argmax(nothing)).toThrow(/not numbers/);
  expect(() => chooseToken(nothing, { temperature: 1 }, new Random(1))).toThrow(
    expect.objectContaining({ code: "LOGITS_NOT_FINITE" }),
  );
});

test.each(cases.map((one, index) => [index, one] as const))("keeps what transformers keeps (case %i)", (_, one) => {
  const { logits, sampling } = inputs(one);
  const { ids, weights } = candidates(logits, sampling);
  const kept = [...ids].filter((_, i) => weights[i]! > 0);
  expect(kept.toSorted((a, b) => a - b)).toEqual(one.kept.toSorted((a, b) => a - b));
  const total = weights.reduce((a, b) => a + b, 0);
  one.kept.forEach((id, i) => {
    expect(weights[ids.indexOf(id)]! / total).toBeCloseTo(one.probabilities[i]!, 5);
  });
});

test("draws follow the odds", () => {
  const random = new Random(5);
  for (const one of cases.filter(({ kept }) => kept.length > 1).slice(0, 6)) {
    const { logits, sampling } = inputs(one);
    const counts = new Map<number, number>();
    const draws = 4000;
    for (let i = 0; i < draws; i++) {
      const token = chooseToken(logits, sampling, random);
      counts.set(token, (counts.get(token) ?? 0) + 1);
    }
    for (const token of counts.keys()) expect(one.kept).toContain(token);
    one.kept.slice(0, 5).forEach((token, i) => {
      const p = one.probabilities[i]!;
      const spread = Math.sqrt((p * (1 - p)) / draws);
      expect(Math.abs((counts.get(token) ?? 0) / draws - p)).toBeLessThan(5 * spread + 1e-9);
    });
  }
});

test("the same seed draws the same tokens, another seed others", () => {
  const { logits } = inputs(cases[0]!);
  const draw = (seed: number) => {
    const random = new Random(seed);
    return Array.from({ length: 20 }, () => chooseToken(logits, { temperature: 1 }, random));
  };
  expect(draw(1)).toEqual(draw(1));
  expect(draw(1)).not.toEqual(draw(2));
});

test("the likeliest tokens are those of sorting, lower ids first among equals", () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: -6, max: 0 }), { minLength: 1, maxLength: 40 }),
      fc.nat(25),
      (values, count) => {
        const sorted = values.map((logprob, token) => ({ token, logprob })).sort((a, b) => b.logprob - a.logprob);
        expect(likeliest(Float32Array.from(values), count)).toEqual(sorted.slice(0, count));
      },
    ),
  );
});

test("min-p alone also limits draws", () => {
  const logits = Float32Array.of(0, Math.log(0.5), Math.log(0.09), 0);
  const random = new Random(1);
  const drawn = new Set(Array.from({ length: 300 }, () => chooseToken(logits, { temperature: 1, minP: 0.1 }, random)));
  expect([...drawn].sort()).toEqual([0, 1, 3]);
});
