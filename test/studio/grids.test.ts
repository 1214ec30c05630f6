/** @file Grids that `milora sweep run` made without a database, in a browser: from their folders, as they grow. */
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { scratch } from "../../src/serving/http/testing.ts";
import { RunStudio } from "../../src/serving/studio/standalone.ts";
import { CHROMIUM, expectAccessible, launch, type VisitOptions, visit } from "./support.ts";

const MAIN = join(import.meta.dirname, "../../dist/cli/main.js");
const log = { error: console.error, warn() {}, info() {}, debug() {} };
const { directory, remove } = scratch();
const runs = join(directory, "runs");
let studio: RunStudio;
let browser: Browser;

/** @param steps of each training @param evaluate what is measured, by name */
function writeGrid(seeds: readonly number[], evaluate: readonly string[]): string {
  const rows = readFileSync("assets/data/subjects/test.jsonl", "utf8").split("\n").slice(0, 8);
  const data = join(directory, "rows.jsonl");
  writeFileSync(data, `${rows.join("\n")}\n`);
  const path = join(directory, "grid.json");
  const train = {
    ...{ model: "assets/tiny-llama", method: "lora", adapter: { r: 2 }, max_steps: 2, batch_size: 2 },
    ...{ micro_batch_size: 2, data: { train: data, dev: 0.2 } },
  };
  const measured = evaluate.map((name) => ({ name, data, limit: 4, ...(name === "perplexity" ? { metric: name } : { max_new_tokens: 4 }) })); // biome-ignore format: one line
  writeFileSync(path, JSON.stringify({ train, axes: { seed: seeds }, evaluate: measured }));
  return path;
}

const sweep = (file: string) =>
  promisify(execFile)(process.execPath, [MAIN, "sweep", "run", file, "--output", join(runs, "grid")]);

beforeAll(async () => {
  if (CHROMIUM === undefined) return;
  mkdirSync(runs);
  [studio, browser] = await Promise.all([
    RunStudio.start({ folders: [runs], host: "127.0.0.1", port: 0, log: log as never }),
    launch(),
  ]);
});
afterAll(async () => {
  await browser?.close();
  await studio?.[Symbol.asyncDispose]();
  remove();
});
const open = (path: string, options: VisitOptions = {}) => visit(browser, studio.url, path, options);

describe.skipIf(CHROMIUM === undefined)("grids", () => {
  test("appear when they are there, with their table as a page and as a file, and lead to their runs", async () => {
    await using visited = await open("/runs/sweeps");
    const { page } = visited;
    page.setDefaultTimeout(120_000);
    await page.getByText("There are no grids yet").waitFor();
    await sweep(writeGrid([0, 1], ["answers"]));
    await page.getByRole("link", { name: "grid", exact: true }).click();
    const table = page.getByRole("table", { name: "Results" });
    await table.waitFor();
    await page.getByText("finished", { exact: true }).waitFor();
    const { points } = JSON.parse(readFileSync(join(runs, "grid/results.json"), "utf8"));
    for (const [i, { scores, run }] of points.entries()) {
      const row = table.getByRole("row").nth(1 + i);
      expect(await row.textContent()).toContain((100 * scores[0].value).toFixed(1));
      const link = row.getByRole("link", { name: /^dev perplexity \d/ });
      expect(decodeURIComponent((await link.getAttribute("href"))!)).toContain(`id=grid/${run}`);
    }
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("button", { name: "Results as CSV" }).click(),
    ]);
    const lines = (text: string) => text.trim().split(/\r?\n/);
    const csv = readFileSync(await download.path(), "utf8");
    expect(lines(csv).slice(1)).toEqual(lines(readFileSync(join(runs, "grid/results.csv"), "utf8")).slice(1));

    // It grows while it is looked at: another seed, and another column.
    await sweep(writeGrid([0, 1, 2], ["answers", "perplexity"]));
    await table.getByRole("columnheader", { name: "perplexity" }).waitFor();
    expect(await table.getByRole("row").count()).toBe(4);
    await table.getByRole("link").first().click();
    await page.getByRole("heading", { level: 1, name: new RegExp(points[0].run) }).waitFor();
  });

  test.each([{ dark: false }, { dark: true }, { width: 320 }])("can be used by everybody: %o", async (options) => {
    await using visited = await open("/runs/sweeps", options);
    const { page } = visited;
    await page.getByRole("table", { name: "Grids in folders" }).waitFor();
    await expectAccessible(page);
    await page.getByRole("link", { name: "grid", exact: true }).click();
    await page.getByRole("table", { name: "Results" }).waitFor();
    await expectAccessible(page);
  });

  test("what is not there is said", async () => {
    await using visited = await open("/runs/grid?id=other");
    await visited.page.getByText('there is no grid "other"').waitFor();
  });
});
