/** @file The forward numbers of every op of the table against a plain computation. */
import { describe, expect, test } from "vitest";
import type { Value } from "./graph.ts";
import { ops } from "./index.ts";
import { plainCases } from "./testing/cases.ts";
import { evaluate } from "./testing/run.ts";
import { transformerCases } from "./testing/transformer-cases.ts";

const cases = { ...plainCases, ...transformerCases };

/** milora's own; src/runtime/operators.test.ts has them. */
const OPERATORS = ["linearItems", "lowRankItems", "routePrompts", "gated", "widen", "narrow"];

test("every op has a case", () => {
  expect(Object.keys(ops).filter((name) => cases[name] === undefined)).toEqual(OPERATORS);
});

describe("forward numbers", () => {
  test.each(Object.keys(cases))("%s", (name) => {
    const { inputs, build, expected, tolerance = 1e-5 } = cases[name]!;
    const wanted = [expected(inputs)].flat();
    const results = evaluate(inputs, (values) => {
      const built = [build(values)].flat() as Value[];
      // Shape inference holds for the numbers that come out.
      built.forEach((value, i) => {
        if (value.shape.every((dim) => typeof dim === "number")) expect(value.shape).toEqual(wanted[i]!.shape);
      });
      return built;
    });
    expect(results.length).toBe(wanted.length);
    results.forEach(({ shape, data }, i) => {
      expect(shape).toEqual(wanted[i]!.shape);
      expect(data.length).toBe(wanted[i]!.data.length);
      const worst = Math.max(0, ...data.map((x, k) => Math.abs(x - wanted[i]!.data[k]!)));
      expect(worst).toBeLessThanOrEqual(tolerance);
    });
  });
});
