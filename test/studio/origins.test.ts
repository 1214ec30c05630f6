/** @file Another page in the same browser, on another port of the same host and so sent the cookie: it gets and changes nothing. */
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Started, scratch, startServer, until } from "../../src/serving/http/testing.ts";
import { CHROMIUM, launch, signIn } from "./support.ts";

const { directory, remove } = scratch();
let closed: Started;
let open: Started;
let browser: Browser;
let other: Server;
let admin: string;

beforeAll(async () => {
  if (CHROMIUM === undefined) return;
  [closed, open, browser] = await Promise.all([
    startServer(`${directory}/closed`, { auth: "required" }),
    startServer(`${directory}/open`),
    launch(),
  ]);
  admin = (await closed.server.services.store.keys.create({ admin: true })).secret;
  other = createServer((_, response) => response.setHeader("content-type", "text/html").end("<title>other</title>"));
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
});

afterAll(async () => {
  await browser?.close();
  await Promise.all([closed?.[Symbol.asyncDispose](), open?.[Symbol.asyncDispose]()]);
  other?.close();
  remove();
});

/** What a page may try without being allowed anything: requests that need no leave, or none that it would get. */
const ATTEMPTS = `async (server) => {
  const form = new FormData();
  form.set("file", new Blob(["x"]), "adapter.tar");
  const plain = { method: "POST", credentials: "include", mode: "no-cors" };
  const tries = [
    fetch(server + "/v1/models", { credentials: "include" }),
    fetch(server + "/admin/v1/tenants", { credentials: "include" }),
    fetch(server + "/studio/v1/session", { credentials: "include" }),
    fetch(server + "/v1/adapters/forged", { method: "DELETE", credentials: "include" }),
    fetch(server + "/admin/v1/tenants", {
      ...{ method: "POST", credentials: "include", body: '{"id":"forged"}' },
      headers: { "content-type": "application/json", "x-milora-studio": "1" },
    }),
  ];
  const read = await Promise.allSettled(tries);
  // Their answers nobody sees; that they were sent is enough to do harm.
  await Promise.allSettled([
    fetch(server + "/admin/v1/tenants", { ...plain, body: '{"id":"forged"}' }),
    fetch(server + "/v1/adapters/forged", { ...plain, body: form }),
    fetch(server + "/studio/v1/session", { ...plain, body: '{"key":"x"}' }),
    fetch(server + "/v1/models", { credentials: "include", mode: "no-cors" }),
  ]);
  return read.map(({ status }) => status);
}`;

/** The answers that `server` gave since `from`, where there is a route: browsers ask for leave and for icons, too. */
const answers = ({ lines }: Started, from: number) =>
  lines
    .slice(from)
    .flatMap(({ msg, method, route, status }) =>
      msg === "request" && route !== "none" ? [`${method} ${status}`] : [],
    );

async function tryAll(page: Page, server: Started, host: string): Promise<void> {
  const { port } = other.address() as AddressInfo;
  await page.goto(`http://${host}:${port}/`);
  const from = server.lines.length;
  const read = await page.evaluate(`(${ATTEMPTS})(${JSON.stringify(server.url)})`);
  expect(read).toEqual(["rejected", "rejected", "rejected", "rejected", "rejected"]);
  await until(() => server.server.services.state.inFlight === 0);
  // Who is signed in may be asked by anybody, is seen by nobody, and not logged.
  expect(answers(server, from).length).toBeGreaterThanOrEqual(6);
  // A form, which takes the window along: not even its answer is anything.
  await page.setContent(
    `<form method="post" enctype="text/plain" action="${server.url}/admin/v1/tenants"><input name="id" value="forged"></form>`,
  );
  const [answer] = await Promise.all([page.waitForNavigation(), page.evaluate("document.forms[0].submit()")]);
  expect(answer!.status()).toBeGreaterThanOrEqual(400);
}

describe.skipIf(CHROMIUM === undefined)("another page", () => {
  test.each(["127.0.0.1", "localhost"])("of %s, beside a session of an administrator", async (host) => {
    const context = await browser.newContext();
    try {
      const page = await context.newPage();
      await page.goto(`${closed.url}/studio/`);
      await signIn(page, admin);
      await page.goto("about:blank"); // asks nothing itself meanwhile
      await until(() => closed.server.services.state.inFlight === 0);
      const from = closed.lines.length;
      await tryAll(await context.newPage(), closed, host);
      const { store } = closed.server.services;
      expect((await store.tenants.list()).map(({ id }) => id)).not.toContain("forged");
      for (const answer of answers(closed, from)) expect(answer).toMatch(/^(GET|POST) (401|403|415)$/);
      // And the session is what it was.
      await page.goto(`${closed.url}/studio/`);
      await page.getByRole("button", { name: "Sign out" }).waitFor();
    } finally {
      await context.close();
    }
  });

  test("beside an open server", async () => {
    const context = await browser.newContext();
    try {
      await tryAll(await context.newPage(), open, "127.0.0.1");
      const { store, registry } = open.server.services;
      expect((await store.tenants.list()).map(({ id }) => id)).not.toContain("forged");
      expect(await registry.all()).toEqual([]);
    } finally {
      await context.close();
    }
  });

  test("cannot show the studio within itself", async () => {
    const context = await browser.newContext();
    try {
      const page = await context.newPage();
      const { port } = other.address() as AddressInfo;
      await page.goto(`http://127.0.0.1:${port}/`);
      const refused = page.waitForEvent("console", {
        predicate: (message) => /frame-ancestors|X-Frame/i.test(message.text()),
      });
      await page.setContent(`<iframe src="${open.url}/studio/"></iframe>`);
      await refused;
      expect(page.frames().some((frame) => frame.url().startsWith(`${open.url}/studio`))).toBe(false);
    } finally {
      await context.close();
    }
  });
});
