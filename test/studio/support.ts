/** @file For tests of the studio: a real browser in front of a real server, which misses nothing that goes wrong in it. */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import type { AxeResults } from "axe-core";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { expect } from "vitest";

const PLACES = [
  process.env.CHROMIUM_PATH,
  "/usr/bin/chromium",
  "/usr/bin/chromium-browser",
  "/usr/bin/google-chrome",
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
];

/** Where Chromium is; undefined on machines without one, on which tests of pages are skipped. */
export const CHROMIUM = PLACES.find((path) => path !== undefined && existsSync(path));

export function launch(): Promise<Browser> {
  return chromium.launch({ executablePath: CHROMIUM!, args: ["--no-sandbox"] });
}

export interface Visit extends AsyncDisposable {
  readonly page: Page;
  readonly context: BrowserContext;
  /** Errors that the page has told of so far. A test that provokes some takes them away. */
  readonly problems: string[];
}

export interface VisitOptions {
  /** A key to sign in with. */
  readonly key?: string;
  readonly dark?: boolean;
  readonly width?: number;
}

/**
 * Opens a page of the studio in a window of its own. At its end there may have been no error in the page, nothing that
 * its policy blocked, and no request to anybody but the server.
 *
 * @param url of the server
 * @param path below /studio
 */
export async function visit(browser: Browser, url: string, path: string, options: VisitOptions = {}): Promise<Visit> {
  const { key, dark = false, width = 1280 } = options;
  const context = await browser.newContext({
    viewport: { width, height: 900 },
    colorScheme: dark ? "dark" : "light",
    permissions: ["clipboard-read", "clipboard-write"],
  });
  const problems: string[] = [];
  context.on("page", (page) => {
    page.setDefaultTimeout(30_000);
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => {
      // What the server refuses is the tests' own matter; the browser reports each.
      if (message.type() === "error" && !/Failed to load resource/.test(message.text())) problems.push(message.text());
    });
    page.on("request", (request) => {
      const { origin, protocol } = new URL(request.url());
      if (protocol.startsWith("http") && origin !== new URL(url).origin) problems.push(`asked ${origin}`);
    });
  });
  const page = await context.newPage();
  await page.goto(`${url}/studio${path}`);
  if (key !== undefined) await signIn(page, key);
  return {
    page,
    context,
    problems,
    async [Symbol.asyncDispose]() {
      // What was under way when the page goes, a chart's code say, breaks off: that is no problem of the page's.
      const seen = [...problems];
      await context.close();
      expect(seen).toEqual([]);
    },
  };
}

export async function signIn(page: Page, key: string): Promise<void> {
  await page.getByLabel("Key").fill(key);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("button", { name: "Sign out" }).waitFor();
}

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Nothing that axe finds, in the page as it is now; and nothing that is wider than the window. */
export async function expectAccessible(page: Page): Promise<void> {
  await page.evaluate(axe);
  const { violations } = (await page.evaluate("axe.run()")) as AxeResults;
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" | ")}`);
  expect(found).toEqual([]);
  expect(await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")).toBe(0);
}
