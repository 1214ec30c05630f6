/** @file Every gradient rule of the op table against central finite differences, over random shapes. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Backward, Contribution, Op } from "./graph.ts";
import { mul, type OpName, ops } from "./index.ts";
import { Draw, problems } from "./testing/problems.ts";
import { gradientError } from "./testing/run.ts";

test("every op with a gradient rule is held against finite differences", () => {
  expect(withRule.filter((name) => problems[name] === undefined)).toEqual([]);
  expect(Object.keys(problems).filter((name) => !ops[name as OpName]?.gradient)).toEqual([]);
});

const withRule = Object.entries(ops).flatMap(([name, op]) => (op.gradient ? [name] : []));

const errorOf = (name: string, seed: number): { error: number; tolerance: number } => {
  const problem = problems[name]!(new Draw(seed));
  const double = problem.inputs.every(({ dtype }) => dtype !== "float32");
  return { error: gradientError(problem, seed), tolerance: double ? 1e-6 : 1e-2 };
};

describe("gradient rules", () => {
  test.each(Object.keys(problems))("%s", (name) => {
    const run = (seed: number): void => {
      const { error, tolerance } = errorOf(name, seed);
      expect(error).toBeLessThan(tolerance);
    };
    fc.assert(fc.property(fc.integer({ min: 0, max: 2 ** 31 }), run), { numRuns: 20, seed: 7 });
  });
});

describe("a contribution that is off by a tenth is noticed", () => {
  test.each(withRule)("%s", (name) => {
    const op = ops[name as OpName] as Op;
    const right = op.gradient!;
    const unnoticed = new Set<number>();
    const noticed = new Set<number>();
    for (let operand = 0; operand < 3; operand++) {
      const wrong = (contribution: Contribution, i: number): Contribution =>
        contribution && i === operand ? () => mul(contribution(), 1.1) : contribution;
      const changed = { gradient: (at: Backward<unknown>) => right.call(op, at).map(wrong) };
      let exists = false;
      const watched = {
        gradient(at: Backward<unknown>) {
          const rule = changed.gradient(at);
          exists ||= typeof rule[operand] === "function";
          return rule;
        },
      };
      try {
        Object.assign(op, watched);
        let seed = 0;
        for (; seed < 20; seed++) {
          const { error, tolerance } = errorOf(name, seed);
          if (error > tolerance || (seed === 2 && !exists)) break;
        }
        if (exists) (seed < 20 ? noticed : unnoticed).add(operand);
      } finally {
        Object.assign(op, { gradient: right });
      }
    }
    expect([...unnoticed]).toEqual([]);
    expect(noticed.size).toBeGreaterThan(0);
  });
});
