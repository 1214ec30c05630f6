/** @file Holds the parameter counts of every method to the paper's table 1, LLaMA-2 7B. */
import { describe, expect, test } from "vitest";
import { Backbone } from "../models/index.ts";
import { milora } from "./index.ts";
import { methods } from "./registry.ts";
import { PAPER_SHAPE, parameterTable } from "./table.ts";

const backbone = Backbone.shapes[PAPER_SHAPE];
const rows = parameterTable(backbone, true);
const within = (actual: number, millions: number) => expect(Math.abs(actual / (millions * 1e6) - 1)).toBeLessThan(0.01);

test("has a row for every method, with the paper's figures for those it compares", () => {
  expect(rows.map(({ method }) => method.name)).toEqual([...methods.keys()]);
  const missing = rows.filter(({ paper }) => paper === null).map(({ method }) => method.name);
  expect(missing.filter((name) => name !== "full")).toEqual([]);
  expect(parameterTable(Backbone.shapes["smollm2-135m"], false).every(({ paper }) => paper === null)).toBe(true);
});

describe.each(rows.filter(({ paper }) => paper))("$method.name", ({ tunable, activated, paper }) => {
  test("tunable parameters are the paper's, within 1 %", () => {
    within(paper!.ours, paper!.tunable);
    // What the paper leaves out is small, and named.
    expect(paper!.without?.every((part) => part in tunable.parts) ?? true).toBe(true);
    expect(tunable.total / paper!.ours).toBeLessThan(1.02);
  });

  test.runIf(paper!.activated === paper!.tunable)("all of them are activated", () => {
    expect(activated.total).toBe(tunable.total);
  });

  test.runIf(paper!.activated !== paper!.tunable)("a part of them is activated", () => {
    expect(activated.total).toBeLessThan(0.62 * tunable.total);
    expect(activated.total).toBeGreaterThan(paper!.activated * 1e6); // the paper counts less than the most
  });
});

test.each([
  [{}, 25.2],
  [{ use_dora: true }, 25.8],
])(
  "the paper's activated parameters of MiLoRA %j are three experts of the attention in each layer",
  (options, paper) => {
    const attention = { ...options, target_modules: ["q_proj", "k_proj", "v_proj", "o_proj"], top_k: 3 };
    const { activated } = milora.countParameters(milora.newConfig(attention, backbone), backbone);
    within(activated.experts! + (activated.magnitudes ?? 0), paper);
  },
);
