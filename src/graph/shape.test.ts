/** @file Symbolic sizes: one spelling, exact division, broadcasting. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { addDims, broadcastShapes, type Dim, dimsEqual, divDims, mulDims, subDims } from "./index.ts";
import { canonicalDim } from "./shape.ts";

/** Value of a size under numbers for its symbols. */
const atNumbers = (dim: Dim, at: Record<string, number>): number =>
  typeof dim === "number"
    ? dim
    : dim
        .replaceAll("-", "+-1*")
        .split("+")
        .filter((term) => term !== "")
        .map((term) => term.split("*").reduce((product, factor) => product * (at[factor] ?? Number(factor)), 1))
        .reduce((a, b) => a + b, 0);

const numbers = { A: 3, B: 5, C: 7 };
const dim: fc.Arbitrary<Dim> = fc.oneof(
  fc.integer({ min: 0, max: 5 }),
  fc.constantFrom<Dim>("A", "B", "C", "A*B", "A+C", "2*B", "A*B+C+1", "B*B"),
);

describe("sizes", () => {
  test("have one spelling", () => {
    expect(mulDims("T", "B")).toBe("B*T");
    expect(mulDims("B", 1)).toBe("B");
    expect(mulDims("P+T", "B", 2)).toBe("2*B*P+2*B*T");
    expect(addDims("T", "P", 0)).toBe("P+T");
    expect(addDims("T", -1)).toBe("T-1");
    expect(subDims("P+T", "P")).toBe("T");
    expect(subDims("B", "B")).toBe(0);
    expect(canonicalDim("T * (B + 1) - T")).toBe("B*T");
    expect(dimsEqual("T*B", "B*T")).toBe(true);
    expect(dimsEqual("T", "B")).toBe(false);
    expect(divDims("B*T", "T")).toBe("B");
    expect(divDims("4*B*T", mulDims(2, "B"))).toBe("2*T");
    expect(divDims("B*P+B*T", "P+T")).toBe("B");
    expect(divDims("B", "T")).toBeUndefined();
    expect(divDims("3*B", 2)).toBeUndefined();
    expect(divDims(6, 0)).toBeUndefined();
  });

  test.each(["B*", "*B", "B T", "B/2", "(B", "2..3", ""])("refuse %j", (text) => {
    expect(() => canonicalDim(text)).toThrow(/is not a size/);
  });

  test("refuse numbers that are none", () => {
    expect(() => canonicalDim(-1)).toThrow("a size of -1 is not possible");
    expect(() => canonicalDim(1.5)).toThrow("a size of 1.5 is not possible");
  });

  test("compute as numbers do", () => {
    fc.assert(
      fc.property(dim, dim, dim, (a, b, c) => {
        const [x, y, z] = [a, b, c].map((d) => atNumbers(d, numbers));
        expect(atNumbers(addDims(a, b), numbers)).toBe(x! + y!);
        expect(atNumbers(mulDims(a, b), numbers)).toBe(x! * y!);
        expect(atNumbers(subDims(a, b), numbers)).toBe(x! - y!);
        expect(mulDims(addDims(a, b), c)).toBe(addDims(mulDims(c, a), mulDims(b, c)));
        if (y !== 0) expect(divDims(mulDims(a, b), b)).toBe(canonicalDim(a));
        expect(atNumbers(mulDims(a, b, c), numbers)).toBe(x! * y! * z!);
      }),
      { seed: 7 },
    );
  });
});

test("shapes broadcast as in NumPy; a symbol fits itself and 1", () => {
  expect(broadcastShapes(["B", 1, 4], [3, 1])).toEqual(["B", 3, 4]);
  expect(broadcastShapes([], ["B"])).toEqual(["B"]);
  expect(broadcastShapes(["B", "T"], ["T"])).toEqual(["B", "T"]);
  expect(broadcastShapes(["B"], ["T"])).toBeUndefined();
  expect(broadcastShapes(["B"], [2])).toBeUndefined();
  expect(broadcastShapes([3], [2])).toBeUndefined();
});
