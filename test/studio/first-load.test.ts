/** @file What a browser has to load before a page is there: everything from this server, compressed, and not much of it. */
import { cpSync } from "node:fs";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, test } from "vitest";
import { makeAdapter, type Started, scratch, startServer } from "../../src/serving/http/testing.ts";
import { CHROMIUM, launch, visit } from "./support.ts";

const { directory, remove } = scratch();
let server: Started;
let browser: Browser;

beforeAll(async () => {
  if (CHROMIUM === undefined) return;
  cpSync("test/fixtures/curve", `${directory}/runs/curve`, { recursive: true });
  const adapters = { routed: await makeAdapter(directory, "milora", 1) };
  [server, browser] = await Promise.all([
    startServer(`${directory}/data`, { runs: [`${directory}/runs`], adapters }),
    launch(),
  ]);
});

afterAll(async () => {
  await browser?.close();
  await server?.[Symbol.asyncDispose]();
  remove();
});

const KILOBYTES = 1000;
/** Of each file that was fetched: its address, and its bytes as they came. */
const FETCHED = `performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
  .map(({ name, encodedBodySize, decodedBodySize }) => ({ name, encodedBodySize, decodedBodySize }))`;

test.skipIf(CHROMIUM === undefined).each(["/playground", "/routing", "/runs", "/operations"])(
  "%s, charts included, takes less than 300 kB",
  async (path) => {
    await using opened = await visit(browser, server.url, path);
    const { page } = opened;
    await page.getByRole("heading", { level: 1 }).waitFor();
    await page.waitForLoadState("networkidle").catch(() => {}); // a page that is live never is
    const fetched = (await page.evaluate(FETCHED)) as {
      name: string;
      encodedBodySize: number;
      decodedBodySize: number;
    }[];
    const scripts = fetched.filter(({ name }) => name.endsWith(".js"));
    expect(scripts.length).toBeGreaterThan(1);
    for (const { encodedBodySize, decodedBodySize } of scripts.filter((script) => script.decodedBodySize > 5000)) {
      expect(encodedBodySize).toBeLessThan(decodedBodySize / 2);
    }
    const bytes = fetched.reduce((sum, { encodedBodySize }) => sum + encodedBodySize, 0);
    expect(bytes).toBeGreaterThan(50 * KILOBYTES);
    expect(bytes).toBeLessThan(300 * KILOBYTES);
  },
);
