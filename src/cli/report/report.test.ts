/** @file The report: from files of a run, without scripts or requests, with nothing of the files taken as markup. */
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { writeReport } from "./index.ts";
import { binned, escapeHtml, heatMap, lineChart, ticks } from "./svg.ts";

const EVIL = `"><script>alert(1)</script><img src=x onerror='x'>&`;

function run(lines: readonly object[], config: object = {}): string {
  const directory = join(mkdtempSync(join(tmpdir(), "milora-report-")), "run");
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  mkdirSync(directory);
  writeFileSync(join(directory, "config.json"), JSON.stringify({ method: "milora", model: "assets/tiny", ...config }));
  writeFileSync(join(directory, "metrics.jsonl"), lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
  return directory;
}

const step = (number: number, changes: object = {}) => ({
  ...{
    type: "step",
    step: number,
    epoch: number / 10,
    loss: 2,
    lm_loss: 4 / number,
    auxiliary: { load_balance: 0.01 },
  },
  ...{ lr: 1e-4, grad_norm: 1, tokens: 100, supervised_tokens: 10, seconds: 0.5, tokens_per_second: 200 },
  expert_shares: [[0.5, 0.5, 0]],
  ...changes,
});

const routing = {
  ...{ rows: 4, experts: ["q", "k", EVIL], expert_shares: [[0.5, 0.25, 0.25]], entropy: [1.2], routes: 3 },
  ...{ layer_routes: [3], label_entropy: 1, mutual_information: [0.5], mutual_information_by_chance: [0.25] },
  ...{ route_mutual_information: 0.5, route_mutual_information_by_chance: 0.25 },
};
const evaluation = {
  type: "evaluation",
  step: 2,
  epoch: 0.2,
  dev_loss: 1.5,
  dev_perplexity: 4.48,
  best: true,
  routing,
  seconds: 0.25,
};

test("shows what was measured, and nothing from the files becomes markup", () => {
  const html = readFileSync(
    writeReport(run([step(1), step(2), evaluation], { method: EVIL, adapter: { x: EVIL } })),
    "utf8",
  );
  for (const title of ["Dev perplexity", "Learning rate", "Norm of the gradients", "Tokens a second", "load balance"]) {
    expect(html).toContain(title);
  }
  expect(html).toContain("4.48 at step 2");
  expect(html).toContain("layer 0");
  expect(html).not.toMatch(/<script|<img|<link|<iframe|javascript:/i);
  expect(html).not.toMatch(/(src|href)\s*=\s*["']?https?:/i);
  expect(html).not.toMatch(/url\(/i);
  expect(html).toContain("default-src 'none'");
  expect(html.match(/&lt;script&gt;/g)!.length).toBeGreaterThanOrEqual(3); // title, config, table
});

test("runs without steps, of other methods, with numbers that were not finite, and cut off in the last line", () => {
  expect(readFileSync(writeReport(run([])), "utf8")).toContain("nothing measured yet");
  const plain = run([step(1, { expert_shares: undefined, lm_loss: null, auxiliary: {} })], { method: "lora" });
  appendFileSync(join(plain, "metrics.jsonl"), '{"type":"step","st');
  const html = readFileSync(writeReport(plain), "utf8");
  expect(html).not.toContain("Routing");
  expect(html).not.toContain("NaN,"); // no coordinates
});

test("what is no run is refused, with the line", () => {
  expect(() => writeReport(run([step(1), { type: "step", step: "x" }]))).toThrow(/metrics\.jsonl line 2/);
  expect(() => writeReport(tmpdir())).toThrow(/config\.json: no such file/);
});

test("ticks are round and inside", () => {
  expect(ticks(0, 1, 4)).toEqual([0, 0.5, 1]);
  expect(ticks(0.13, 0.87, 4)).toEqual([0.2, 0.4, 0.6, 0.8]);
  expect(ticks(1, 320, 5)).toEqual([100, 200, 300]);
  expect(ticks(5, 5, 4)).toEqual([5]);
});

test("many points become the means of bins with their span; few stay", () => {
  expect(
    binned([
      [1, 5],
      [2, 7],
    ]),
  ).toEqual([
    { x: 1, mean: 5, low: 5, high: 5 },
    { x: 2, mean: 7, low: 7, high: 7 },
  ]);
  const bins = binned(
    Array.from({ length: 1000 }, (_, i) => [i, i % 2] as const),
    100,
  );
  expect(bins).toHaveLength(100);
  expect(bins[0]).toEqual({ x: 4.5, mean: 0.5, low: 0, high: 1 });
});

test("charts leave out what cannot be drawn", () => {
  const series = [
    {
      label: "a",
      colour: 1,
      points: [
        [1, 0],
        [2, Number.NaN],
        [3, 10],
        [4, 100],
      ] as const,
    },
  ];
  const svg = lineChart({ title: "t", x: "step", log: true, series });
  expect(/<polyline points="([^"]*)"/.exec(svg)![1]!.split(" ")).toHaveLength(2);
  expect(svg).not.toContain("NaN");
  const map = heatMap({
    title: "<t>",
    rows: ["a", "b"],
    columns: [
      [1, 0],
      [0.5, 1],
    ],
    most: 1,
    from: "1",
    to: "2",
  });
  expect(map.match(/<rect/g)).toHaveLength(3);
  expect(map).toContain('fill-opacity="0.5"');
  expect(map).toContain("&lt;t&gt;");
});

test("escapes markup and drops control characters", () => {
  expect(escapeHtml(`<a href="x">'&\u0007\u0000</a>\n`)).toBe("&lt;a href=&quot;x&quot;&gt;&#39;&amp;&lt;/a&gt;\n");
});
