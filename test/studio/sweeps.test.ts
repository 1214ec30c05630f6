/** @file Grids in a browser while real workers do them: states, heartbeats, scores, a failure and its next attempt. */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { scratch, startServer } from "../../src/serving/http/testing.ts";
import { NO_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { RunStudio } from "../../src/serving/studio/standalone.ts";
import { CHROMIUM, expectAccessible, launch, type VisitOptions, visit } from "./support.ts";

const MAIN = join(import.meta.dirname, "../../dist/cli/main.js");
const log = { error: console.error, warn() {}, info() {}, debug() {} };
const { directory, remove } = scratch();
const grid = join(directory, "runs/grid");
const run = promisify(execFile);

function writeGrid(): string {
  const rows = readFileSync("assets/data/subjects/test.jsonl", "utf8").split("\n").slice(0, 8);
  const data = join(directory, "rows.jsonl");
  writeFileSync(data, `${rows.join("\n")}\n`);
  const path = join(directory, "grid.json");
  const train = {
    ...{ model: "assets/tiny-llama", method: "lora", adapter: { r: 2 }, max_steps: 3, batch_size: 2 },
    ...{ micro_batch_size: 2, data: { train: data, dev: 0.2 } },
  };
  const evaluate = [{ name: "answers", data, limit: 4, max_new_tokens: 4 }];
  writeFileSync(path, JSON.stringify({ train, axes: { seed: [0, 1, 2] }, evaluate }));
  return path;
}

/** Generous: workers may have to share their cores with other tests. */
const SLOW = { timeout: 600_000 };

const rowOf = (page: Page, label: string) =>
  page.getByRole("table", { name: "Cells" }).getByRole("row").filter({ hasText: label });

describe.skipIf(CHROMIUM === undefined || NO_POSTGRES)(`sweeps ${NO_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use();
  let studio: RunStudio;
  let browser: Browser;
  let env: NodeJS.ProcessEnv;
  let database: string;

  const milora = async (...args: string[]) => (await run(process.execPath, [MAIN, ...args], { env })).stdout;
  function startWorker(): ChildProcess {
    const args = [MAIN, "worker", "--threads", "1", "--lease", "3"];
    const child = spawn(process.execPath, args, { env, stdio: "ignore" });
    onTestFinished(async () => {
      child.kill("SIGINT");
      await once(child, "exit");
    });
    return child;
  }

  beforeAll(async () => {
    database = await servers.cluster.create();
    env = { ...process.env, DATABASE_URL: database, NO_COLOR: "1" };
    mkdirSync(join(directory, "runs"));
    [studio, browser] = await Promise.all([
      RunStudio.start({ folders: [join(directory, "runs")], database, host: "127.0.0.1", port: 0, log: log as never }),
      launch(),
    ]);
  });
  afterAll(async () => {
    await browser?.close();
    await studio?.[Symbol.asyncDispose]();
    if (database !== undefined) await servers.cluster.drop(database);
    remove();
  });
  const open = (path: string, options: VisitOptions = {}) => visit(browser, studio.url, path, options);

  test("a grid waits, is done by a worker, fails in part, and is tried again from its page", SLOW, async () => {
    await using visited = await open("/runs/sweeps");
    const { page } = visited;
    page.setDefaultTimeout(300_000); // trainings take as long as they take
    await page.getByText("There are no sweeps yet").waitFor();
    const file = writeGrid();
    const flags = ["--output", grid];
    const plan = JSON.parse(await milora("sweep", "run", file, ...flags, "--plan", "--json"));
    const blocked = join(grid, "runs", plan.runs[1].id);
    mkdirSync(join(grid, "runs"), { recursive: true });
    writeFileSync(blocked, ""); // the second training cannot be written
    await milora("sweep", "start", file, ...flags, "--retries", "0");

    // Until the database has been asked again it is known as one of its folder only.
    const sweeps = page.getByRole("table", { name: "Sweeps" });
    await sweeps.getByRole("link", { name: "grid", exact: true }).click();
    await page.getByRole("heading", { level: 1, name: "grid" }).waitFor();
    const first = rowOf(page, "seed 0 → answers");
    await first.getByText("waiting", { exact: true }).waitFor();
    await page.getByText("no worker is there").waitFor();
    expect(await page.getByText("not known yet").count()).toBe(1);
    const size = page.viewportSize()!;
    await page.setViewportSize({ width: 320, height: 800 }); // the table is wider, and nothing in it can be reached
    await expectAccessible(page);
    await page.setViewportSize(size);

    const worker = startWorker();
    await page.getByRole("table", { name: "Cells" }).getByText("running", { exact: true }).first().waitFor();
    const running = page.getByRole("row").filter({ has: page.getByText("running", { exact: true }) });
    expect(await running.first().textContent()).toMatch(new RegExp(`${worker.pid}.*heard of (just now|\\d+ \\w+ ago)`));
    await first.getByText("done", { exact: true }).waitFor();
    expect(await first.textContent()).toMatch(/\d+\.\d %\s*accuracy/);
    expect(await rowOf(page, "seed 0 training").textContent()).toMatch(/done.*\d.*dev perplexity/);

    const failed = rowOf(page, "seed 1 → answers");
    await failed.getByText("failed", { exact: true }).waitFor();
    expect(await failed.textContent()).toMatch(/cannot be written.*\(OUTPUT_UNWRITABLE\)/);
    await rowOf(page, "seed 2 → answers").getByText("done", { exact: true }).waitFor();
    await page.getByText("failed in part").waitFor();
    await page.getByLabel("State").selectOption("failed");
    await page.getByText("2 cells", { exact: true }).waitFor();
    expect(await page.getByRole("table", { name: "Cells" }).getByRole("row").count()).toBe(3); // with its head

    rmSync(blocked);
    await failed.getByRole("button", { name: /Try again/ }).focus();
    await page.keyboard.press("Enter");
    await page.getByText("1 job waits again").waitFor();
    await page.getByLabel("State").selectOption("done");
    await page.getByText("6 cells", { exact: true }).waitFor();
    await page.getByText("finished", { exact: true }).waitFor();

    await page.getByLabel("Name").fill("seed 1 →");
    await page.getByText("1 cell", { exact: true }).waitFor();
    await failed.getByRole("link", { name: "seed 1 → answers" }).click();
    await page.getByRole("heading", { level: 1, name: new RegExp(`runs/${plan.runs[1].id}`) }).waitFor();

    await page.goto(`${studio.url}/studio/runs/sweeps`);
    const workers = page.getByRole("table", { name: "Workers" });
    expect(await workers.getByRole("row").nth(1).textContent()).toContain(String(worker.pid));
    const listed = sweeps.getByRole("row").nth(1);
    expect(await listed.textContent()).toMatch(/grid.*finished.*3 of 3.*3 of 3/);
  });

  test.each([{ dark: false }, { dark: true }, { width: 320 }])("can be used by everybody: %o", async (options) => {
    await using visited = await open("/runs/sweeps", options);
    const { page } = visited;
    await page.getByRole("link", { name: "grid", exact: true }).waitFor();
    await expectAccessible(page);
    await page.getByRole("link", { name: "grid", exact: true }).click();
    await page.getByRole("table", { name: "Cells" }).waitFor();
    await expectAccessible(page);
  });

  test("a server shows those of its database to administrators, and to nobody else", async () => {
    await using server = await startServer(join(directory, "data"), { database, auth: "required" });
    const { store } = server.server.services;
    await store.tenants.create({ id: "ann" });
    const admin = (await store.keys.create({ admin: true })).secret;
    const ann = (await store.keys.create({ tenant: "ann" })).secret;
    await using visited = await visit(browser, server.url, "/runs", { key: admin });
    const { page } = visited;
    await page.getByRole("link", { name: "grid", exact: true }).click(); // there are no folders of runs
    await rowOf(page, "seed 0 → answers").getByText("done", { exact: true }).waitFor();
    expect(await rowOf(page, "seed 0 → answers").getByRole("link").count()).toBe(0);
    await using other = await visit(browser, server.url, "/playground", { key: ann });
    await other.page.getByRole("heading", { level: 1, name: "Playground" }).waitFor();
    expect(await other.page.getByRole("link", { name: "Runs" }).count()).toBe(0);
  });

  test("what is not there is said; without a database the same grid is one of its folder", async () => {
    await using visited = await open("/runs/sweep?id=0000");
    await visited.page.getByText('there is no sweep "0000"').waitFor();
    await using bare = await RunStudio.start({ folders: [directory], host: "127.0.0.1", port: 0, log: log as never });
    await using other = await visit(browser, bare.url, "/runs/sweeps");
    await other.page.getByRole("link", { name: "runs/grid", exact: true }).waitFor();
    expect(await other.page.getByRole("table", { name: "Workers" }).count()).toBe(0);
    await using both = await open("/runs/sweeps");
    await both.page.getByRole("link", { name: "grid", exact: true }).waitFor();
    expect(await both.page.getByRole("table", { name: "Grids in folders" }).count()).toBe(0); // it is there once
  });
});
