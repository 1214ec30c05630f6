/** @file Tests of learned activation functions as curves. */
import { expect, test } from "vitest";
import { gelu, geluDenominator, geluNumerator, largestDeviation, learnedActivations } from "./index.ts";

test("gelu has its known values", () => {
  expect(gelu(0)).toBe(0);
  expect(gelu(1)).toBeCloseTo(0.8413447, 6);
  expect(gelu(-1)).toBeCloseTo(-0.1586553, 6);
  expect(gelu(3)).toBeCloseTo(2.9959503, 6);
});

test("largestDeviation finds the farthest point", () => {
  expect(
    largestDeviation(
      (x) => x * x,
      () => 0,
      -3,
      2,
    ),
  ).toBeCloseTo(9, 10);
  expect(largestDeviation(gelu, gelu, -3, 3)).toBe(0);
  expect(largestDeviation(() => Number.NaN, gelu, -3, 3)).toBeNaN();
});

test("functions are found by their layer and sub-layer, and one that was not trained is GELU", () => {
  const values = (key: string) =>
    Float32Array.from(key.endsWith("numerator") ? geluNumerator : geluDenominator, (x) =>
      /mlp/.test(key) ? 2 * x : x,
    );
  const keys = ["model.layers.4.milora_router.activation.numerator", "model.layers.4.milora_router.gate.weight"];
  const [before, scaled] = learnedActivations([...keys, "model.layers.11.mlp.adapter.activation.numerator"], values);
  expect(before).toMatchObject({ layer: 4, block: undefined });
  expect(before!.deviation).toBeLessThan(1e-3);
  expect(scaled).toMatchObject({ layer: 11, block: "mlp" });
  expect(scaled!.deviation).toBeGreaterThan(0.1);
});
