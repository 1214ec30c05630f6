/** @file Tests of the terminal plots. */
import { expect, test } from "vitest";
import { plot } from "./plot.ts";

test("draws a line from corner to corner", () => {
  const box = { from: 0, to: 1, low: 0, high: 1, width: 4, height: 2 };
  expect(plot((x) => x, box)).toEqual(["⠀⠀⡠⠊", "⡠⠊⠀⠀"]);
  expect(plot(() => 0, box)).toEqual(["⠀⠀⠀⠀", "⣀⣀⣀⣀"]);
  expect(plot(() => Number.NaN, box)).toEqual(["⠀⠀⠀⠀", "⠀⠀⠀⠀"]);
  expect(plot(() => 7, box)).toEqual(["⠀⠀⠀⠀", "⠀⠀⠀⠀"]);
});
