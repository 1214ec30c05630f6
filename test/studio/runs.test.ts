/** @file Runs in a browser: real ones, one that grows while it is looked at, and one of a million steps. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Browser, Locator, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Started, scratch, startServer, until } from "../../src/serving/http/testing.ts";
import { shortTraining, writeLongRun } from "../../src/serving/studio/runs/testing.ts";
import { RunStudio } from "../../src/serving/studio/standalone.ts";
import { type StepMetrics, type TrainingConfigInput, train } from "../../src/training/index.ts";
import { CHROMIUM, expectAccessible, launch, type VisitOptions, visit } from "./support.ts";

const root = join(import.meta.dirname, "../..");
const { directory, remove } = scratch();
const runs = join(directory, "runs");
const log = { error: console.error, warn() {}, info() {}, debug() {} };
const MILLION = 1_000_000;
let studio: RunStudio;
let browser: Browser;

const startStudio = (folder: string) =>
  RunStudio.start({ folders: [folder], host: "127.0.0.1", port: 0, log: log as never });

beforeAll(async () => {
  if (CHROMIUM === undefined) return;
  await train(shortTraining(join(runs, "subjects/milora")));
  await train(shortTraining(join(runs, "subjects/lora"), { method: "lora", lr: 1e-3 }));
  mkdirSync(join(runs, "broken"));
  writeFileSync(join(runs, "broken/config.json"), "{");
  writeFileSync(join(runs, "broken/metrics.jsonl"), "");
  [studio, browser] = await Promise.all([startStudio(runs), launch()]);
});

afterAll(async () => {
  await browser?.close();
  await studio?.[Symbol.asyncDispose]();
  remove();
});

const open = (path: string, options: VisitOptions = {}) => visit(browser, studio.url, path, options);

/** The steps of a run as its file has them. */
function stepsOf(run: string): StepMetrics[] {
  const lines = readFileSync(join(runs, run, "metrics.jsonl"), "utf8")
    .trimEnd()
    .split("\n");
  return lines.map((line) => JSON.parse(line) as StepMetrics).filter(({ type }) => type === "step");
}

const names = (page: Page) => page.getByRole("table", { name: "Runs" }).locator("tbody th a").allTextContents();
const chart = (page: Page, title: string) => page.locator("figure", { has: page.getByText(title, { exact: true }) });

/** Of a chart's series; axes and grids have other colours. */
const LINES = 'g[fill="none"][stroke^="var(--series"] > path';

/** Points of the longest line of a chart. */
async function pointsOf(figure: Locator): Promise<number> {
  await figure.locator(LINES).first().waitFor({ state: "attached" });
  const paths = await figure.locator(LINES).evaluateAll((all) => all.map((one) => one.getAttribute("d")));
  return Math.max(0, ...paths.map((path) => path?.match(/[ML]/g)?.length ?? 0));
}

/** Draws over a share of a chart. */
async function draw(page: Page, figure: Locator, from: number, to: number): Promise<void> {
  await figure.scrollIntoViewIfNeeded();
  const { x, y, width, height } = (await figure.locator(".canvas svg").first().boundingBox())!;
  // Axes are left and right of what is drawn.
  const at = (share: number) => x + 56 + share * (width - 56 - 12);
  await page.mouse.move(at(from), y + height / 2);
  await page.mouse.down();
  await page.mouse.move(at((from + to) / 2), y + height / 2);
  await page.mouse.move(at(to), y + height / 2);
  await page.mouse.up();
}

describe.skipIf(CHROMIUM === undefined)("runs", () => {
  test("are listed, sorted and filtered, and a link shows the same", async () => {
    await using visited = await open("/runs");
    const { page } = visited;
    await page.getByRole("table", { name: "Runs" }).waitFor();
    expect((await names(page)).sort()).toEqual(["broken", "subjects/lora", "subjects/milora"]);
    await page.getByRole("row", { name: /subjects\/milora finished milora .*4 of 4/ }).waitFor();
    await page.getByRole("row", { name: /broken .*not valid JSON/ }).waitFor();

    await page.getByRole("button", { name: "Name" }).click();
    expect(await names(page)).toEqual(["broken", "subjects/lora", "subjects/milora"]);
    await page.getByRole("button", { name: "Name" }).click();
    expect(await names(page)).toEqual(["subjects/milora", "subjects/lora", "broken"]);
    await page.getByLabel("Name", { exact: true }).fill("SUBJ");
    await page.getByText("2 of 3 runs").waitFor();
    await page.getByLabel("Method").selectOption("lora");
    await page.getByText("1 of 3 runs").waitFor();
    await page.reload();
    await page.getByText("1 of 3 runs").waitFor();
    expect(await names(page)).toEqual(["subjects/lora"]);
    await page.getByLabel("State").selectOption("running");
    await page.getByText("No run is like that").waitFor();
    await page.getByRole("button", { name: "Show all" }).click();
    await page.getByText("3 runs", { exact: true }).waitFor();
  });

  test("one run: its numbers, as charts and as a table", async () => {
    await using visited = await open("/runs/run?id=subjects/milora");
    const { page } = visited;
    await page.getByRole("heading", { name: "subjects/milora" }).waitFor();
    const loss = chart(page, "Loss, nats a token");
    expect(await pointsOf(loss)).toBe(4);
    const titles = (await page.locator(".chart figcaption > span:first-child").allTextContents()).join(", ");
    expect(titles).toMatch(
      /Dev perplexity.*Loss of the method: information.*Tokens a second.*Norm.*Learning rate.*activations/,
    );
    await loss.getByRole("button", { name: "Table" }).click();
    const first = stepsOf("subjects/milora")[0]!;
    const cells = await loss.getByRole("row").nth(1).getByRole("cell").allTextContents();
    expect(cells[0]).toBe("1");
    expect(Number(cells[1])).toBeCloseTo(first.lm_loss, 2);

    await page.getByLabel("Smoothing").selectOption("0.9");
    await page.getByLabel("Logarithmic").check();
    expect(new URL(page.url()).search).toBe("?id=subjects%2Fmilora&smooth=0.9&log=1");
    const smoothed = await loss.getByRole("row").nth(4).getByRole("cell").nth(1).textContent();
    expect(Number(smoothed)).not.toBeCloseTo(stepsOf("subjects/milora")[3]!.lm_loss, 3);
  });

  test("where the part that draws cannot be loaded the numbers are still there", async () => {
    await using visited = await open("/runs");
    const { page } = visited;
    // The chart's library is a file of its own, named by what it is made of.
    await page.route(/\/assets\/src-/, (route) => route.abort());
    await page.goto(`${studio.url}/studio/runs/run?id=subjects/milora`);
    const loss = chart(page, "Loss, nats a token");
    await loss.getByRole("status").filter({ hasText: "could not be loaded" }).waitFor();
    await loss.getByRole("button", { name: "Table" }).click();
    expect(await loss.getByRole("row").count()).toBe(5);
  });

  test("a part of the steps: drawn over, typed in, and let go", async () => {
    await using visited = await open("/runs/run?id=subjects/milora");
    const { page } = visited;
    const loss = chart(page, "Loss, nats a token");
    await pointsOf(loss);
    await draw(page, loss, 0.4, 0.9);
    await page.waitForURL(/from=2&to=4/);
    await until(async () => (await pointsOf(loss)) === 3);
    await page.getByLabel("From step").fill("3");
    await page.getByLabel("To step").fill("2");
    await page.getByText("lies after the last").waitFor();
    await page.getByLabel("To step").fill("4");
    await page.getByLabel("To step").press("Enter");
    await page.waitForURL(/from=3&to=4/);
    await until(async () => (await pointsOf(loss)) === 2);
    await page.getByRole("link", { name: "Routing" }).click();
    await page.getByRole("img", { name: /^Layer 5/ }).waitFor();
    await page.getByRole("link", { name: "Training" }).click();
    await until(async () => (await pointsOf(loss)) === 2);
    await page.getByRole("button", { name: "All steps" }).click();
    await until(async () => (await pointsOf(loss)) === 4);
    expect(new URL(page.url()).search).toBe("?id=subjects%2Fmilora");
  });

  test("routing, activations and config of a run", async () => {
    await using visited = await open("/runs/run?id=subjects/milora");
    const { page } = visited;
    await page.getByRole("link", { name: "Routing" }).click();
    const first = stepsOf("subjects/milora");
    await page.getByRole("img", { name: /^Layer 5: from step 4 on q \d+ %, k/ }).waitFor();
    expect(await page.getByRole("img", { name: /^Layer \d/ }).count()).toBe(6);
    const cells = await page
      .getByRole("table", { name: "Shares of the experts by layer" })
      .getByRole("cell")
      .allTextContents();
    expect(cells[0]).toBe(`${(100 * first.at(-1)!.expert_shares![0]![0]!).toFixed(1)} %`);
    await chart(page, "Entropy of the routers, bits").waitFor();

    await page.getByRole("link", { name: "Activations" }).click();
    await page.getByRole("img", { name: /^Layer 5: .* from GELU at most/ }).waitFor();
    expect(await page.getByRole("table", { name: "Largest distances from GELU" }).getByRole("row").count()).toBe(7);

    await page.getByRole("link", { name: "Config" }).click();
    await page.getByLabel("Settings named").fill("top_k");
    expect(await page.getByRole("row", { name: /adapter\.top_k 3/ }).count()).toBe(1);
    await page.getByRole("button", { name: "Copy as JSON" }).first().click();
    await page.getByText("copied").waitFor();
    const copied = JSON.parse(await page.evaluate("navigator.clipboard.readText()")) as unknown;
    expect(copied).toEqual(JSON.parse(readFileSync(join(runs, "subjects/milora/config.json"), "utf8")));
    await page.goBack();
    await page.getByRole("heading", { name: "Learned activation functions of the best adapter" }).waitFor();
  });

  test("several beside each other: curves, what differs, which is best", async () => {
    await using visited = await open("/runs");
    const { page } = visited;
    await page.getByLabel("Compare subjects/milora").check();
    await page.getByText("Check another to compare them.").waitFor();
    await page.getByLabel("Compare subjects/lora").check();
    expect(await page.getByLabel("Compare broken").isDisabled()).toBe(true);
    await page.reload();
    await page.getByRole("link", { name: "Compare 2 runs" }).click();
    const loss = chart(page, "Loss, nats a token");
    await pointsOf(loss);
    expect(await loss.locator(".legend li").allTextContents()).toEqual(["subjects/milora", "subjects/lora"]);
    expect(await loss.locator(LINES).count()).toBe(2);
    const [milora, lora] = ["subjects/milora", "subjects/lora"].map((run) => stepsOf(run).at(-1)!.lm_loss) as [
      number,
      number,
    ];
    const best = page
      .getByRole("row", { name: new RegExp(milora < lora ? "subjects/milora" : "subjects/lora") })
      .first();
    expect(await best.textContent()).toContain(`${Number(Math.min(milora, lora).toPrecision(4))} ★`);
    const config = page.getByRole("table", { name: "Settings in which the runs differ" });
    expect(await config.getByRole("row", { name: /^method milora lora$/ }).count()).toBe(1);
    expect(await config.getByRole("row", { name: /^batch_size/ }).count()).toBe(0);
    await page.getByLabel(/Also the \d+ settings that are equal/).check();
    expect(await config.getByRole("row", { name: /^batch_size 4 4$/ }).count()).toBe(1);
  });

  test("what is not there, is broken or was mistyped is said", async () => {
    await using visited = await open("/runs/run?id=nothing");
    const { page } = visited;
    await page.getByText(/there is no run "nothing"/).waitFor();
    await page.goto(`${studio.url}/studio/runs/run?id=broken`);
    await page.getByText(/not valid JSON/).waitFor();
    await page.goto(`${studio.url}/studio/runs/run`);
    await page.getByText("The address names no run").waitFor();
    await page.goto(`${studio.url}/studio/runs/compare?id=subjects/lora`);
    await page.getByText("Choose at least two runs").waitFor();
    await page.goto(`${studio.url}/studio/runs/run?id=subjects/lora&view=routing&from=9&to=2`);
    await page.getByText("Learning rate", { exact: true }).waitFor();
  });

  test("a folder without runs says how to make one", async () => {
    mkdirSync(join(directory, "empty"));
    await using empty = await startStudio(join(directory, "empty"));
    await using visited = await visit(browser, empty.url, "/runs");
    await visited.page.getByText(/milora train --model/).waitFor();
    await expectAccessible(visited.page);
  });

  test("with keys: administrators see runs, tenants do not", async () => {
    await using server: Started = await startServer(join(directory, "data"), { auth: "required", runs: [runs] });
    const { store } = server.server.services;
    await store.tenants.create({ id: "ann" });
    const admin = (await store.keys.create({ admin: true })).secret;
    const ann = (await store.keys.create({ tenant: "ann" })).secret;
    await using visited = await visit(browser, server.url, "/runs", { key: admin });
    await visited.page.getByRole("link", { name: "subjects/milora" }).waitFor();
    await using other = await visit(browser, server.url, "/runs", { key: ann });
    await other.page.getByText("There is no such page").first().waitFor();
    const refused = await fetch(`${server.url}/studio/v1/runs`, { headers: { authorization: `Bearer ${ann}` } });
    expect(refused.status).toBe(403);
  });

  test.each([{ dark: false }, { dark: true }, { width: 320 }])("can be used by everybody: %o", async (options) => {
    await using visited = await open("/runs", options);
    const { page } = visited;
    await page.getByRole("table", { name: "Runs" }).waitFor();
    await expectAccessible(page);
    for (const view of ["", "routing", "activations", "config"]) {
      await page.goto(`${studio.url}/studio/runs/run?id=subjects/milora&view=${view}`);
      await page
        .locator(view === "config" ? "table" : "figure svg")
        .first()
        .waitFor();
      await expectAccessible(page);
    }
    await page.goto(`${studio.url}/studio/runs/compare?id=subjects/milora&id=subjects/lora`);
    await pointsOf(chart(page, "Loss, nats a token"));
    await expectAccessible(page);
  });
});

/** Trains in a process of its own. */
function trainElsewhere(config: TrainingConfigInput): ChildProcess {
  const code = `
    import { runnerImport } from "vite";
    const options = { root: ${JSON.stringify(root)}, configFile: false, logLevel: "error", oxc: { target: "es2022" } };
    const { module } = await runnerImport(${JSON.stringify(join(root, "src/training/index.ts"))}, options);
    await module.train(${JSON.stringify(config)});`;
  const args = ["--input-type=module", "-e", code];
  return spawn(process.execPath, args, { cwd: root, stdio: ["ignore", "ignore", "inherit"] });
}

describe.skipIf(CHROMIUM === undefined)("live", () => {
  test("a run that grows while it is looked at", async () => {
    const output = join(runs, "growing");
    const child = trainElsewhere(shortTraining(output, { max_steps: 5000, eval_every: 5 }));
    try {
      await until(() => existsSync(join(output, "metrics.jsonl")) || child.exitCode !== null);
      await using visited = await open("/runs/run?id=growing");
      const { page } = visited;
      await page.getByText("running", { exact: true }).waitFor();
      const loss = chart(page, "Loss, nats a token");
      const before = await pointsOf(loss);
      await until(async () => (await pointsOf(loss)) >= before + 3);
      await page.getByText(/^about /).waitFor();
      child.kill("SIGKILL");
      await page.getByText("stopped", { exact: true }).waitFor();
      expect(await page.getByText("running", { exact: true }).count()).toBe(0);
    } finally {
      child.kill("SIGKILL");
      if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
    }
  });

  test("a million steps: few points, each part finer, and a page that answers all the while", async () => {
    const folder = join(directory, "long");
    const all = MILLION.toLocaleString("en");
    writeLongRun(join(folder, "long"), MILLION, { config: { epochs: MILLION / 100 } });
    await using own = await startStudio(folder);
    await using visited = await visit(browser, own.url, "/runs/run?id=long");
    const { page } = visited;
    // While the file is read, what has been read is shown and the page is used.
    await page.getByLabel("Logarithmic").check();
    await page.getByLabel("Logarithmic").uncheck();
    await page.getByText(`${all} of ${all}`).waitFor({ timeout: 150_000 });
    const loss = chart(page, "Loss, nats a token");
    const lastStep = async () => {
      const words = await loss.locator("svg").getAttribute("aria-description");
      return Number(/ at step \d+, .* at step (\d+),/.exec(words ?? "")?.[1]);
    };
    await until(async () => (await lastStep()) > 0.99 * MILLION);
    expect(await pointsOf(loss)).toBeLessThanOrEqual(1024);
    expect(await page.locator("svg *").count()).toBeLessThan(10_000);
    await draw(page, loss, 0.5, 0.52);
    await page.waitForURL(/from=\d+&to=\d+/);
    const range = new URL(page.url()).searchParams;
    const [from, to] = [Number(range.get("from")), Number(range.get("to"))];
    expect(Math.abs(from - MILLION / 2)).toBeLessThan(5000);
    await page.getByLabel("To step").fill(String(from + 400));
    await page.getByRole("button", { name: "Show" }).click();
    expect(to).toBeGreaterThan(from + 400);
    // Each step by itself.
    await until(async () => (await pointsOf(chart(page, "Tokens a second"))) === 401);
  });
});
