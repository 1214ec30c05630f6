/** @file Tests of the Wilson interval against published values. */
import { expect, test } from "vitest";
import { accuracyOf, bootstrapInterval, pooledError, standardError } from "./interval.ts";

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

test("standard errors are those of the sample, and the bootstrap agrees with them", () => {
  expect(standardError([1, 0, 0, 1])).toBeCloseTo(Math.sqrt(1 / 3) / 2, 12);
  expect(standardError([1])).toBeNull();
  const values = Array.from({ length: 400 }, (_, i) => (i % 4 === 0 ? 1 : 0));
  const [low, high] = bootstrapInterval(values, 7);
  const half = 1.96 * standardError(values)!;
  expect(Math.abs(low - (0.25 - half))).toBeLessThan(0.006);
  expect(Math.abs(high - (0.25 + half))).toBeLessThan(0.006);
  expect(bootstrapInterval(values, 7)).toEqual([low, high]);
  expect(bootstrapInterval(values, 8)).not.toEqual([low, high]);
});

test("errors of equal parts pool to that of the whole without what lies between the parts", () => {
  const part = [1, 0, 1, 0, 0, 1, 1, 0];
  const error = standardError(part)!;
  expect(pooledError([error, error], [8, 8])).toBeCloseTo(error / Math.SQRT2, 12);
  expect(pooledError([null, error], [1, 8])).toBeNull();
});
