/** @file Tests of sums, means and medians. */
import { expect, test } from "vitest";
import { mean, median, sum } from "./statistics.ts";

test("sums add in order, of anything that can be gone through", () => {
  expect(sum([])).toBe(0);
  expect(
    sum(
      new Map([
        ["a", 1],
        ["b", 2.5],
      ]).values(),
    ),
  ).toBe(3.5);
  expect(sum([1e16, 1, -1e16])).toBe(0); // from the left: the 1 is lost
  expect(sum([1e16, -1e16, 1])).toBe(1);
});

test("means and medians", () => {
  expect(mean([1, 2, 6])).toBe(3);
  expect(mean([])).toBeNaN();
  const values = [10, 9, 1];
  expect(median(values)).toBe(9); // by number, not by text
  expect(values).toEqual([10, 9, 1]);
  expect(median([4, 1, 3, 100])).toBe(3.5);
  expect(median([])).toBeNaN();
});
