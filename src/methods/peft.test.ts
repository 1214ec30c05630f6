/** @file Patterns of adapter configs: what they match, however often and in whatever order they are asked. */
import { expect, test } from "vitest";
import { Patterns, pathsMeant } from "./peft.ts";

const PATHS = Array.from({ length: 40 }, (_, i) => `model.layers.${i}.self_attn.${"qkv"[i % 3]}_proj`);

test("paths that are looked for at once are matched as one by one", () => {
  const pattern = "model\\.layers\\.(?:\\d|1\\d)\\.self_attn\\.(?:q|v)_proj";
  const expected = PATHS.filter((path) => new RegExp(`^${pattern}$`).test(path));
  expect(expected).toHaveLength(13);
  expect(PATHS.filter(pathsMeant(pattern, "target_modules", PATHS))).toEqual(expected);
  expect(PATHS.filter(pathsMeant(pattern, "target_modules", PATHS.slice(0, 3)))).toEqual(expected);
  expect(PATHS.filter(pathsMeant(`(?:${pattern})`, "target_modules", []))).toEqual(expected);
});

test("the first of several patterns counts, plain or not, at the end of a path or for all of it", () => {
  const sources = ["v_proj", "layers\\.[12]\\..*", "(?:q|v)_proj"];
  const first = (path: string, ending: boolean) => new Patterns(sources, "rank_pattern", { ending }).first(path);
  for (const _ of ["anew", "known"]) {
    expect(["a.v_proj", "layers.1.v_proj", "layers.1.q", "x.q_proj", "none"].map((path) => first(path, true))).toEqual([0, 0, 1, 2, -1]); // biome-ignore format: one line
    expect(["a.v_proj", "layers.1.v_proj", "layers.1.q", "q_proj", "x.q_proj"].map((path) => first(path, false))).toEqual([-1, 1, 1, 2, -1]); // biome-ignore format: one line
  }
});

test("what is known of patterns is let go, and found anew", () => {
  for (let i = 0; i < 50; i++) expect(new Patterns([`(?:q|k)_${i}`], "rank_pattern").first(`q_${i % 7}`)).toBe(i % 7 === i ? 0 : -1); // biome-ignore format: one line
  expect(new Patterns(["(?:q|k)_3"], "rank_pattern").first("q_3")).toBe(0);
});
