/** @file Schedules against the values of transformers 5.18 (`get_linear_schedule_with_warmup`). */
import { describe, expect, it } from "vitest";
import { scheduleFactor, warmupSteps } from "./schedule.ts";

describe("scheduleFactor", () => {
  it("gives transformers' factors for 10 steps with 4 of warm-up", () => {
    const factors = Array.from({ length: 11 }, (_, step) => scheduleFactor("linear", step, 10, 4));
    expect(factors).toEqual([0, 0.25, 0.5, 0.75, 1, 5 / 6, 4 / 6, 0.5, 2 / 6, 1 / 6, 0]);
  });

  it("starts at 1 without a warm-up and never falls below 0", () => {
    expect(scheduleFactor("linear", 0, 4, 0)).toBe(1);
    expect(scheduleFactor("linear", 3, 4, 0)).toBe(0.25);
    expect(scheduleFactor("linear", 9, 4, 0)).toBe(0);
  });

  it("keeps the constant schedule at 1 after its warm-up", () => {
    expect([0, 1, 2, 3].map((step) => scheduleFactor("constant", step, 4, 2))).toEqual([0, 0.5, 1, 1]);
  });

  it("rounds the warm-up up", () => {
    expect(warmupSteps(100, 0.06)).toBe(6);
    expect(warmupSteps(101, 0.06)).toBe(7);
    expect(warmupSteps(101, 0)).toBe(0);
  });
});
