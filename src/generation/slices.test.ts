/** @file Slices of a pass: all of it, once, in parts of about the size asked for. */
import { expect, test } from "vitest";
import { planSlices } from "./slices.ts";

const pass = { rows: 1, tokens: { from: 0, to: 2048 }, layers: 30, divisible: false };

test("what fits is one run", () => {
  expect(planSlices(pass, 2048)).toEqual([{ tokens: pass.tokens }]);
  expect(planSlices({ ...pass, tokens: { from: 1800, to: 2048 } }, 256)).toHaveLength(1);
  expect(planSlices({ ...pass, rows: 2 }, 2048)).toHaveLength(2);
});

test("else slices are layers, each of them once, alike in number", () => {
  const slices = planSlices(pass, 256);
  expect(slices).toHaveLength(8);
  expect(slices.map(({ layers }) => layers!.from)).toEqual([0, 4, 8, 11, 15, 19, 23, 26]);
  expect(slices.map(({ layers }) => layers!.to)).toEqual([4, 8, 11, 15, 19, 23, 26, 30]);
  expect(new Set(slices.map(({ tokens }) => tokens))).toEqual(new Set([pass.tokens]));
});

test("never less than a layer of a prompt that has to be read whole", () => {
  const slices = planSlices(pass, 1);
  expect(slices).toHaveLength(30);
  expect(slices.every(({ layers }) => layers!.to === layers!.from + 1)).toBe(true);
});

test("tokens are cut where a layer of them is too much", () => {
  const slices = planSlices({ ...pass, divisible: true, tokens: { from: 48, to: 2048 } }, 16);
  expect(slices).toHaveLength(5 * 25); // 400 tokens a time
  for (let part = 0; part < 5; part++) {
    const { tokens } = slices[25 * part]!;
    expect(tokens).toEqual({ from: 48 + 400 * part, to: 448 + 400 * part });
    expect(slices.slice(25 * part, 25 * (part + 1)).every((slice) => slice.tokens === tokens)).toBe(true);
    expect(slices[25 * part + 24]!.layers!.to).toBe(30);
  }
});
