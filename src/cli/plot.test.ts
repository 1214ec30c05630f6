/** @file Tests of the terminal plots. */
import { expect, test } from "vitest";
import { gelu, largestDeviation, plot } from "./plot.ts";

test("draws a line from corner to corner", () => {
  const box = { from: 0, to: 1, low: 0, high: 1, width: 4, height: 2 };
  expect(plot((x) => x, box)).toEqual(["⠀⠀⡠⠊", "⡠⠊⠀⠀"]);
  expect(plot(() => 0, box)).toEqual(["⠀⠀⠀⠀", "⣀⣀⣀⣀"]);
  expect(plot(() => Number.NaN, box)).toEqual(["⠀⠀⠀⠀", "⠀⠀⠀⠀"]);
  expect(plot(() => 7, box)).toEqual(["⠀⠀⠀⠀", "⠀⠀⠀⠀"]);
});

test("gelu has its known values", () => {
  expect(gelu(0)).toBe(0);
  expect(gelu(1)).toBeCloseTo(0.8413447, 6);
  expect(gelu(-1)).toBeCloseTo(-0.1586553, 6);
  expect(gelu(3)).toBeCloseTo(2.9959503, 6);
});

test("largestDeviation finds the farthest point", () => {
  expect(
    largestDeviation(
      (x) => x * x,
      () => 0,
      -3,
      2,
    ),
  ).toBeCloseTo(9, 10);
  expect(largestDeviation(gelu, gelu, -3, 3)).toBe(0);
  expect(largestDeviation(() => Number.NaN, gelu, -3, 3)).toBeNaN();
});
