/** @file Charts of a reproduction: every point with its spread, names on the axis, nothing of the data taken as markup. */
import { expect, test } from "vitest";
import type { Chart } from "../../evaluation/index.ts";
import { chartFile, chartSvg } from "./charts.ts";

const chart: Chart = {
  kind: "lines",
  name: "fig4-subjects",
  title: "<subjects>",
  x: "λ",
  labels: ["0", "0.01", "<1>"],
  lines: [
    {
      label: "MiLoRA",
      colour: 1,
      points: [
        [0, 60],
        [1, 66],
        [2, 50],
      ],
      spread: [
        [58, 62],
        [66, 66],
        [20, 55],
      ],
    },
  ],
};

test("points have lines to the least and the most of their seeds, which the axis holds", () => {
  const svg = chartSvg(chart);
  const spreads = [
    ...svg.matchAll(/<line x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)" y2="([\d.]+)" class="line c1"\/>/g),
  ];
  expect(spreads).toHaveLength(3);
  for (const [, x1, x2, low, high] of spreads) {
    expect(x1).toBe(x2);
    expect(Number(low)).toBeGreaterThanOrEqual(Number(high)); // downwards
    expect(Number(low)).toBeLessThan(210);
  }
  const dots = [...svg.matchAll(/<circle cx="([\d.]+)" cy="([\d.]+)"/g)];
  expect(dots.map(([, x]) => x)).toEqual(spreads.map(([, x]) => x));
  for (const [i, [, , y]] of dots.entries()) {
    expect(Number(y)).toBeLessThanOrEqual(Number(spreads[i]![3]));
    expect(Number(y)).toBeGreaterThanOrEqual(Number(spreads[i]![4]));
  }
  expect([...svg.matchAll(/class="tick (?:middle|end)">([^<]*)<\/text>/g)].map(([, text]) => text)).toEqual(
    expect.arrayContaining(["0", "0.01", "&lt;1&gt;", "λ"]),
  );
});

test("files are SVG documents with their own colours, light and dark", () => {
  const file = chartFile(chart);
  expect(file).toMatch(
    /^<svg xmlns="http:\/\/www.w3.org\/2000\/svg" viewBox="[^"]*" role="img" aria-label="&lt;subjects&gt;"><style>/,
  );
  expect(file).toContain("prefers-color-scheme: dark");
  expect(file).not.toContain("<subjects>");
});
