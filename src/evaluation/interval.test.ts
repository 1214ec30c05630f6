/** @file Tests of the Wilson interval against published values. */
import { expect, test } from "vitest";
import { accuracyOf } from "./interval.ts";

test("agrees with published Wilson intervals", () => {
  // Newcombe (1998), table I, method 3 (score without continuity correction).
  const rows: [number, number, number, number][] = [
    [81, 263, 0.2553, 0.3662],
    [15, 148, 0.0624, 0.1605],
    [0, 20, 0, 0.1611],
    [1, 29, 0.0061, 0.1718],
  ];
  for (const [correct, total, low, high] of rows) {
    const { interval, value } = accuracyOf(correct, total);
    expect(interval[0]).toBeCloseTo(low, 4);
    expect(interval[1]).toBeCloseTo(high, 4);
    expect(value).toBe(correct / total);
  }
});

test("stays within 0 and 1 at the ends", () => {
  expect(accuracyOf(20, 20).interval).toEqual([expect.closeTo(1 - 0.1611, 4), 1]);
  expect(accuracyOf(0, 0)).toEqual({ correct: 0, total: 0, value: 0, interval: [0, 1] });
});
