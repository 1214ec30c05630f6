/** @file Operations in a real browser: what the server does, tenants, keys, usage, errors, and who sees what. */
import { readFileSync } from "node:fs";
import type { Browser, Locator, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ask, makeAdapter, post, type Started, scratch, startServer, until } from "../../src/serving/http/testing.ts";
import { CHROMIUM, expectAccessible, launch, signIn, visit } from "./support.ts";

describe.skipIf(CHROMIUM === undefined)("operations", () => {
  const { directory, remove } = scratch();
  let started: Started;
  let browser: Browser;
  let admin: string;
  const keys: Record<string, string> = {};

  beforeAll(async () => {
    browser = await launch();
    started = await startServer(`${directory}/data`, { auth: "required" });
    const { store, registry } = started.server.services;
    admin = (await store.keys.create({ admin: true }, { label: "me" })).secret;
    for (const id of ["ann", "bob"]) {
      await store.tenants.create({ id });
      keys[id] = (await store.keys.create({ tenant: id }, { label: `website of ${id}` })).secret;
    }
    for (const [owner, name, seed] of [
      ["ann", "ledger", 1],
      ["bob", "diary", 2],
      [null, "common", 3],
    ] as const) {
      await registry.install({ directory: await makeAdapter(directory, "lora", seed) }, { owner, name });
    }
    await complete("ann", "ledger");
    await complete("ann", "ledger");
    await complete("bob", "diary");
  });
  afterAll(async () => {
    await browser?.close();
    await started?.[Symbol.asyncDispose]();
    remove();
  });

  const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
  const complete = (tenant: string, model: string) =>
    post(`${started.url}/v1/completions`, { ...ask, model }, bearer(keys[tenant]!));
  const statusWith = async (key: string): Promise<number> =>
    (await fetch(`${started.url}/v1/models`, { headers: bearer(key) })).status;
  const asAdmin = (path: string, options: { dark?: boolean } = {}) =>
    visit(browser, started.url, `/operations${path}`, { key: admin, ...options });
  const row = (page: Page | Locator, name: string | RegExp) => page.getByRole("row", { name });
  const stat = async (page: Page, name: string): Promise<string | undefined> => {
    const texts = await page.locator(".stats > div").allInnerTexts();
    return texts
      .find((text) => text.includes(name))
      ?.replace(name, "")
      .trim();
  };

  test("the overview shows what runs as it runs, and asks for nothing while nobody looks", async () => {
    await using seen = await asAdmin("");
    const { page } = seen;
    await page.getByText("Nobody has a request under way.").waitFor();
    expect(await stat(page, "Requests running")).toBe("0");
    let looked = false;
    const traffic = (async () => {
      const long = { ...ask, model: "ledger", max_tokens: 450, ignore_eos: true };
      while (!looked) expect((await post(`${started.url}/v1/completions`, long, bearer(keys.ann!))).status).toBe(200);
    })();
    await row(page.getByRole("region", { name: "By tenant" }), /^ann 1 0/).waitFor();
    await until(async () => (await stat(page, "Requests running")) === "1");
    looked = true;
    await traffic;
    await row(page, /^ann\/ledger lora/).waitFor();
    const tokens = page.locator("figure").filter({ hasText: "Tokens a second" });
    await tokens.getByRole("img").waitFor();
    await tokens.getByRole("button", { name: "Table" }).click();
    const column = async () => (await tokens.getByRole("cell").allInnerTexts()).map(Number).filter((n) => n > 0);
    await until(async () => (await column()).length > 0);

    const asked: string[] = [];
    page.on("request", (request) => asked.push(request.url()));
    const look = (state: string) =>
      page.evaluate(`Object.defineProperty(document, "visibilityState", { value: "${state}", configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));`);
    await until(() => asked.some((url) => url.includes("/status")));
    await look("hidden");
    await page.waitForTimeout(1500); // what was under way
    asked.length = 0;
    await page.waitForTimeout(2500);
    expect(asked).toEqual([]);
    await look("visible");
    await until(() => asked.some((url) => url.includes("/history")));
  });

  test("a tenant is made, limited, disabled and removed; what is wrong is told at its field", async () => {
    await using seen = await asAdmin("/tenants");
    const { page } = seen;
    const { store } = started.server.services;
    await page.getByRole("button", { name: "New tenant" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Id").fill("Not An Id");
    await dialog.getByLabel("Weight").fill("-1");
    await dialog.getByLabel("Tokens a day").fill("many");
    await dialog.getByRole("button", { name: "Make tenant" }).click();
    for (const [label, about] of [
      ["Id", /must be 1 to 63/],
      ["Weight", />=0.01/],
      ["Tokens a day", /expected number/],
    ] as const) {
      const field = dialog.getByLabel(label);
      await until(async () => (await field.getAttribute("aria-invalid")) === "true");
      const about_ = (await field.getAttribute("aria-describedby"))!.split(" ").at(-1)!;
      expect(await page.locator(`[id="${about_}"]`).innerText()).toMatch(about);
    }
    await dialog.getByLabel("Id").fill("ann");
    await dialog.getByLabel("Weight").fill("2");
    await dialog.getByLabel("Tokens a day").fill("5000");
    await dialog.getByRole("button", { name: "Make tenant" }).click();
    await dialog.getByText("is there already").waitFor();
    await dialog.getByLabel("Id").fill("cleo");
    await dialog.getByRole("button", { name: "Make tenant" }).click();
    await row(page, /^cleo .*5,000 tokens a day/).waitFor();
    expect(await store.tenants.get("cleo")).toMatchObject({ name: "cleo", weight: 2, limits: { tokensPerDay: 5000 } });

    await page.getByRole("button", { name: "Change cleo" }).click();
    await dialog.getByText("0 of 5,000").waitFor();
    await dialog.getByLabel("Tokens a day").fill("");
    await dialog.getByLabel("Requests at a time").fill("3");
    await dialog.getByRole("button", { name: "Save" }).click();
    await row(page, /^cleo .*3 requests at a time/).waitFor();
    expect((await store.tenants.get("cleo")).limits).toEqual({ maxConcurrent: 3 });

    const { secret } = await store.keys.create({ tenant: "cleo" });
    expect(await statusWith(secret)).toBe(200);
    await page.getByRole("button", { name: "Disable cleo" }).click();
    await row(page, /^cleo .*disabled/).waitFor();
    expect(await statusWith(secret)).toBe(401);

    await page.getByRole("button", { name: "Remove ann" }).click();
    await dialog.getByLabel("Type ann to confirm").fill("ann");
    await dialog.getByRole("button", { name: "Remove" }).click();
    await dialog.getByText(/has adapters/).waitFor();
    await dialog.getByRole("button", { name: "Cancel" }).click();
    await page.getByRole("button", { name: "Remove cleo" }).click();
    const confirm = dialog.getByRole("button", { name: "Remove" });
    expect(await confirm.isDisabled()).toBe(true);
    await dialog.getByLabel("Type cleo to confirm").fill("cleo");
    await confirm.click();
    await row(page, /^cleo/).waitFor({ state: "detached" });
    expect((await store.tenants.list()).map(({ id }) => id)).toEqual(["ann", "bob"]);
  });

  test("a key is shown once and works; revoked it is refused", async () => {
    await using seen = await asAdmin("/keys");
    const { page } = seen;
    await page.getByRole("button", { name: "New key" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Whose").selectOption("bob");
    await dialog.getByLabel("What it is for").fill("nightly batch");
    await dialog.getByLabel("Expires").selectOption({ label: "in 30 days" });
    await dialog.getByRole("button", { name: "Make key" }).click();
    const shown = page.getByRole("region", { name: "The new key" });
    const secret = await shown.locator("code").innerText();
    expect(secret).toMatch(/^mk_/);
    await shown.getByRole("button", { name: "Copy the key" }).click();
    await shown.getByText("copied").waitFor();
    expect(await page.evaluate("navigator.clipboard.readText()")).toBe(secret);
    expect(await statusWith(secret)).toBe(200);
    const listed = row(page, /^nightly batch bob/);
    expect(await listed.innerText()).toMatch(/active/);
    const { expiresAt } = (await started.server.services.store.keys.list("bob")).at(-1)!;
    expect(Math.round((expiresAt!.getTime() - Date.now()) / 86_400_000)).toBe(30);
    await shown.getByRole("button", { name: "I have it" }).click();
    await shown.waitFor({ state: "detached" });
    expect(await page.content()).not.toContain(secret);
    await page.reload();
    await listed.waitFor();
    expect(await page.content()).not.toContain(secret);

    await page.getByRole("button", { name: "Revoke nightly batch" }).click();
    await dialog.getByRole("button", { name: "Cancel" }).click();
    expect(await statusWith(secret)).toBe(200);
    await page.getByRole("button", { name: "Revoke nightly batch" }).click();
    await dialog.getByRole("button", { name: "Revoke" }).click();
    await listed.waitFor({ state: "detached" });
    expect(await statusWith(secret)).toBe(401);
    await page.getByLabel("Also those that are over").check();
    expect(await listed.innerText()).toMatch(/revoked/);
  });

  test("usage is added up by tenant and adapter, and can be taken along", async () => {
    await using seen = await asAdmin("/usage");
    const { page } = seen;
    await row(page, /^ann \d/).waitFor();
    const report = await started.server.services.store.usage.report({ by: ["tenant"] });
    const ann = report.find(({ tenant }) => tenant === "ann")!;
    const numbers = (
      await row(page, /^ann \d/)
        .getByRole("cell")
        .allInnerTexts()
    ).slice(0, 3);
    expect(numbers).toEqual([ann.requests, ann.promptTokens, ann.completionTokens].map((n) => n.toLocaleString("en")));
    await page.locator("figure rect").first().waitFor({ state: "attached" });
    await page.getByLabel("By", { exact: true }).selectOption("adapter");
    await row(page, /^bob\/diary 1/).waitFor();
    expect(page.url()).toContain("by=adapter");
    await page.getByLabel("Tenant", { exact: true }).selectOption("ann");
    await row(page, /^bob\/diary/).waitFor({ state: "detached" });
    await page.reload(); // a link shows the same
    await row(page, /^ann\/ledger \d/).waitFor();
    expect(await row(page, /^bob/).count()).toBe(0);
    const [download] = await Promise.all([
      page.waitForEvent("download"),
      page.getByRole("button", { name: "CSV" }).click(),
    ]);
    const lines = readFileSync(await download.path(), "utf8")
      .trim()
      .split("\r\n");
    expect(lines[0]).toBe("hour,adapter,requests,prompt_tokens,completion_tokens");
    expect(lines[1]).toMatch(/^\d{4}-\d\d-\d\dT\d\d:00Z,ann\/ledger,\d+,\d+,\d+$/);
  });

  test("errors are listed with their requests, and filtered by status", async () => {
    await post(`${started.url}/v1/completions`, { ...ask, model: "none" }, { ...bearer(keys.ann!), "x-request-id": "lost-1" }); // biome-ignore format: one line
    await post(`${started.url}/v1/completions`, { ...ask, n: 0 }, { ...bearer(keys.bob!), "x-request-id": "odd-2" });
    await using seen = await asAdmin("/errors");
    const { page } = seen;
    const lost = row(page, /404 MODEL_NOT_FOUND POST \/v1\/completions ann .*lost-1/);
    await lost.waitFor();
    await row(page, /400 REQUEST_INVALID .*bob .*odd-2/).waitFor();
    await page.getByLabel("Status").selectOption("404");
    await row(page, /odd-2/).waitFor({ state: "detached" });
    expect(await lost.count()).toBe(1);
    await page.getByLabel("Find").fill("no such thing");
    await page.getByRole("heading", { name: "No error fits" }).waitFor();
  });

  test("a tenant sees its own adapters and everybody's, and reaches nothing else", async () => {
    await using seen = await visit(browser, started.url, "/operations/keys", { key: keys.bob! });
    const { page } = seen;
    await row(page, /^diary yours/).waitFor();
    await row(page, /^common everybody's/).waitFor();
    expect(await page.getByRole("navigation").allInnerTexts()).not.toContain("Tenants");
    expect(await page.getByRole("button", { name: "Remove common" }).count()).toBe(0);
    for (const path of ["", "/adapters", "/tenants", "/keys", "/usage", "/errors"]) {
      await page.goto(`${started.url}/studio/operations${path}`);
      await row(page, /^diary yours/).waitFor();
      expect(await page.content()).not.toMatch(/ledger|ann/);
    }
    const status = (method: string, path: string) =>
      page.evaluate(`fetch(${JSON.stringify(path)}, { method: "${method}", headers: { "x-milora-studio": "1" } })
        .then(({ status }) => status)`);
    for (const path of ["status", "history", "errors", "adapters", "tenants", "keys", "usage", "grants?owner=ann"]) {
      expect([path, await status("GET", `/admin/v1/${path}`)]).toEqual([path, 403]);
    }
    expect(await status("GET", "/v1/adapters/ann%2Fledger")).toBe(404);
    expect(await status("DELETE", "/v1/adapters/ledger")).toBe(404);
    expect(await status("PUT", "/admin/v1/adapters/ledger/resident?tenant=ann")).toBe(403);
    // Whoever signs in next sees nothing of what was here before.
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    let answer = (): void => {};
    const held = new Promise<void>((resolve) => {
      answer = resolve;
    });
    await page.route(/\/v1\/adapters\?/, (route) => held.then(() => route.continue()));
    await signIn(page, keys.ann!);
    await page.getByRole("status").filter({ hasText: "Asking for adapters" }).waitFor();
    expect(await page.content()).not.toContain("diary");
    answer();
    await row(page, /^ledger yours/).waitFor();
    expect(await page.content()).not.toContain("diary");
  });

  test.each([false, true])("every page is clean to axe; dark: %s", async (dark) => {
    await using seen = await asAdmin("", { dark });
    const { page } = seen;
    for (const [path, shown] of [
      ["", page.getByRole("img", { name: "Time to first token" })],
      ["/adapters", row(page, /^ledger/)],
      ["/tenants", row(page, /^ann/)],
      ["/keys", row(page, /^website of ann/)],
      ["/usage", page.locator("figure rect").first()],
      ["/errors", page.getByRole("heading", { name: "Errors" })],
    ] as const) {
      await page.goto(`${started.url}/studio/operations${path}`);
      await shown.waitFor({ state: "attached" });
      await expectAccessible(page);
      await page.setViewportSize({ width: 320, height: 800 });
      await expectAccessible(page);
      await page.setViewportSize({ width: 1280, height: 900 });
    }
    await page.goto(`${started.url}/studio/operations/tenants`);
    await page.getByRole("button", { name: "Change ann" }).click();
    await page.getByText("no limit").first().waitFor();
    await expectAccessible(page);
  });
});

test.skipIf(CHROMIUM === undefined)(
  "on an open server the first key is an administrator's, who goes on with it",
  async () => {
    const { directory, remove } = scratch();
    const browser = await launch();
    try {
      await using started = await startServer(directory);
      await using seen = await visit(browser, started.url, "/operations/tenants");
      const { page } = seen;
      await page.getByRole("link", { name: "make an administrator's key" }).click();
      await page.getByRole("button", { name: "Make an administrator's key" }).click();
      await page.getByRole("dialog").getByRole("button", { name: "Make key" }).click();
      const secret = await page.getByRole("region", { name: "The new key" }).locator("code").innerText();
      expect((await fetch(`${started.url}/v1/models`)).status).toBe(401);
      expect(await started.server.services.store.authenticate(secret)).toMatchObject({ role: "admin" });
      await page.getByRole("button", { name: "Sign out" }).waitFor();
      await page.getByRole("link", { name: "Tenants" }).click();
      await page.getByRole("button", { name: "New tenant" }).first().click();
      await page.getByRole("dialog").getByLabel("Id").fill("dora");
      await page.getByRole("dialog").getByRole("button", { name: "Make tenant" }).click();
      await page.getByRole("row", { name: /^dora/ }).waitFor();

      // What was there stays in sight when the server goes.
      await page.getByRole("link", { name: "Overview" }).click();
      await page.getByRole("region", { name: "Memory", exact: true }).waitFor();
      await started.server.stop();
      await page.getByRole("alert").getByText("The server cannot be reached").first().waitFor();
      expect(await page.getByRole("region", { name: "Memory", exact: true }).count()).toBe(1);
    } finally {
      await browser.close();
      remove();
    }
  },
);
