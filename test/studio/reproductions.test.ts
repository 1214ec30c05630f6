/** @file The paper's tables and figures as measured, in a browser. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { scratch } from "../../src/serving/http/testing.ts";
import { RunStudio } from "../../src/serving/studio/standalone.ts";
import { CHROMIUM, expectAccessible, launch, type VisitOptions, visit } from "./support.ts";

const RESULTS = join(import.meta.dirname, "../../docs/results");
/** Of a chart's series; axes and grids have other colours. */
const LINES = 'g[fill="none"][stroke^="var(--series"] > path';

const { directory, remove } = scratch();
const log = { error: console.error, warn() {}, info() {}, debug() {} };
let studio: RunStudio;
let browser: Browser;

beforeAll(async () => {
  if (CHROMIUM === undefined) return;
  for (const name of ["paper/small", "failed"]) mkdirSync(join(directory, name), { recursive: true });
  cpSync(join(RESULTS, "results.json"), join(directory, "paper/small/results.json"));
  const failures = [{ label: "table 1 of lora", code: "FILE_UNREADABLE", reason: "no such file" }];
  const report = { ...JSON.parse(readFileSync(join(RESULTS, "results.json"), "utf8")), failures, studies: [] };
  writeFileSync(join(directory, "failed/results.json"), JSON.stringify({ ...report, made: "2026-01-01T00:00:00Z" }));
  [studio, browser] = await Promise.all([
    RunStudio.start({ folders: [directory], host: "127.0.0.1", port: 0, log: log as never }),
    launch(),
  ]);
});

afterAll(async () => {
  await browser?.close();
  await studio?.[Symbol.asyncDispose]();
  remove();
});

const open = (path: string, options: VisitOptions = {}) => visit(browser, studio.url, path, options);

async function downloaded(page: Page, button: string): Promise<string> {
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.getByRole("button", { name: button }).click(),
  ]);
  return readFileSync(await download.path(), "utf8");
}

describe.skipIf(CHROMIUM === undefined)("reproductions", () => {
  test("are listed; one shows the tables with the paper's numbers beside, and gives them as files", async () => {
    await using visited = await open("/runs/reproductions");
    const { page } = visited;
    await page.getByRole("table", { name: "Reproductions" }).waitFor();
    const links = page.getByRole("table", { name: "Reproductions" }).getByRole("link");
    expect(await links.allTextContents()).toEqual(["paper/small", "failed"]);
    await page.getByRole("link", { name: "paper/small" }).click();
    const table = page.getByRole("table", { name: "Table 1: all methods: Accuracy" });
    const milora = table.getByRole("row", { name: /^MiLoRA/ });
    const written = JSON.parse(readFileSync(join(RESULTS, "results.json"), "utf8"));
    const row = written.studies[0].tables[0].rows.find(({ method }: { method: string }) => method === "MiLoRA");
    expect(await milora.textContent()).toContain(row.subjects.value.toFixed(1));
    expect(await milora.textContent()).toContain(`${row.subjects.low.toFixed(1)}–${row.subjects.high.toFixed(1)}`);
    expect(await milora.locator(".of-paper").last().textContent()).toBe(row.average_paper.toFixed(1));
    expect(await downloaded(page, "table1.csv")).toBe(readFileSync(join(RESULTS, "table1.csv"), "utf8"));
    expect(await downloaded(page, "fig3.csv")).toBe(readFileSync(join(RESULTS, "fig3.csv"), "utf8"));
    const { studies, differences } = JSON.parse(await downloaded(page, "Everything as JSON"));
    expect(differences).toEqual(written.differences);
    expect(studies.map(({ tables }: { tables: unknown }) => tables)).toEqual(
      written.studies.map(({ tables }: { tables: unknown }) => tables),
    );
  });

  test("one figure by itself: lines, and their numbers; figure 2 as heat maps", async () => {
    await using visited = await open("/runs/reproduction?id=paper/small");
    const { page } = visited;
    await page.getByLabel("Table or figure").selectOption("fig3");
    await page.waitForURL(/study=fig3/);
    const figure = page.locator("figure.chart");
    await figure.locator(LINES).first().waitFor({ state: "attached" });
    expect(await figure.count()).toBe(1);
    expect(await figure.locator(LINES).count()).toBe(await figure.locator(".legend li").count());
    await figure.getByRole("button", { name: /^Table/ }).click();
    expect(await figure.getByRole("row").count()).toBeGreaterThan(3);
    await page.getByLabel("Table or figure").selectOption("fig2");
    await page
      .getByRole("img", { name: /mean of the layers q \d+ %/ })
      .first()
      .waitFor();
    expect(await page.locator(".heat-map").count()).toBe(2);
  });

  test("what failed is said, and what is not there", async () => {
    await using visited = await open("/runs/reproduction?id=failed");
    const { page } = visited;
    await page.getByText("table 1 of lora: no such file (FILE_UNREADABLE)").waitFor();
    await page.goto(`${studio.url}/studio/runs/reproduction?id=other`);
    await page.getByText(/there is no reproduction "other"/).waitFor();
  });

  test.each([{ dark: false }, { dark: true }, { width: 320 }])("can be used by everybody: %o", async (options) => {
    await using visited = await open("/runs/reproductions", options);
    const { page } = visited;
    await page.getByRole("table", { name: "Reproductions" }).waitFor();
    await expectAccessible(page);
    await page.getByRole("link", { name: "paper/small" }).click();
    await page.locator(LINES).first().waitFor({ state: "attached" });
    await expectAccessible(page);
  });
});
