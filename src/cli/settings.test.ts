/** @file Tests of `--set key=value`. */
import { expect, test } from "vitest";
import { merge, parseSettings } from "./settings.ts";

test("reads numbers, booleans, lists, text and dotted paths", () => {
  expect(
    parseSettings([
      "lr=3e-3",
      "adapter.r=16",
      "adapter.gate=probability",
      "bilevel=false",
      "betas=[0.9,0.95]",
      "a=b=c",
    ]),
  ).toEqual({ lr: 0.003, adapter: { r: 16, gate: "probability" }, bilevel: false, betas: [0.9, 0.95], a: "b=c" });
});

test("names every ill-formed entry", () => {
  expect(() => parseSettings(["lr", "=3", "ok=1", "a..b=1", "__proto__.x=1"])).toThrow(
    /4 problems: "lr" .*"=3".*"a\.\.b=1".*"__proto__\.x=1"/,
  );
  expect(({} as { x?: unknown }).x).toBeUndefined();
});

test("merges objects and replaces everything else", () => {
  expect(merge({ a: { b: 1, c: 2 }, l: [1] }, { a: { c: 3 }, l: [2] })).toEqual({ a: { b: 1, c: 3 }, l: [2] });
});
