/** @file Tests of `--set key=value`. */
import { expect, test } from "vitest";
import { merge, parseSettings, withoutNulls } from "./settings.ts";

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

test.each<[string, unknown]>([
  ["1e-4", 1e-4],
  [".5", 0.5],
  ["+3", 3],
  ["2.", 2],
  ["1_000", "1_000"],
  ["0x10", "0x10"],
  ["null", null],
  ["[]", []],
  ["[q_proj, v_proj]", ["q_proj", "v_proj"]],
  ["[0.9, .95]", [0.9, 0.95]],
  ["{q: 1, v: null}", { q: 1, v: null }],
  ["data/a: b.jsonl", "data/a: b.jsonl"],
  ["~/rows.jsonl", "~/rows.jsonl"],
  ["", ""],
  ['"3"', "3"],
])("reads the value %s", (text, value) => {
  expect(parseSettings([`key=${text}`])).toEqual({ key: value });
});

test("refuses lists that do not end", () => {
  expect(() => parseSettings(["a=[1,", "b={x: 1"])).toThrow(/2 problems: "a=\[1,".*"b=\{x: 1"/);
});

test("null takes a setting back, but may be a value of the method's", () => {
  expect(withoutNulls({ max_steps: null, data: { dev: null, train: "t" }, adapter: { projection_dim: null } })).toEqual(
    {
      data: { train: "t" },
      adapter: { projection_dim: null },
    },
  );
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
