/** @file Adapters in a real browser: uploads of every kind, what is wrong with broken ones, memory, grants, removal. */
import { cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ask, makeAdapter, post, type Started, scratch, startServer } from "../../src/serving/http/testing.ts";
import { packAdapter } from "../../src/serving/index.ts";
import { CHROMIUM, expectAccessible, launch, visit } from "./support.ts";

/** Bytes of an adapter that this server takes. */
const MOST = 32 * 1024 * 1024;
const FILES = ["adapter_config.json", "adapter_model.safetensors"] as const;

describe.skipIf(CHROMIUM === undefined)("adapters", () => {
  const { directory, remove } = scratch();
  let started: Started;
  let browser: Browser;
  let admin: string;
  let ann: string;
  /** A good adapter. */
  let good: string;

  beforeAll(async () => {
    browser = await launch();
    started = await startServer(`${directory}/data`, { auth: "required", residency: { maxBytes: MOST } });
    const { store } = started.server.services;
    admin = (await store.keys.create({ admin: true })).secret;
    for (const id of ["ann", "bob"]) await store.tenants.create({ id });
    ann = (await store.keys.create({ tenant: "ann" })).secret;
    good = await makeAdapter(directory, "milora", 1);
  });
  afterAll(async () => {
    await browser?.close();
    await started?.[Symbol.asyncDispose]();
    remove();
  });

  const asAdmin = (path = "") => visit(browser, started.url, `/operations/adapters${path}`, { key: admin });
  const installed = async (): Promise<string[]> => {
    const all = await started.server.services.store.adapters.all();
    return all.map(({ owner, name }) => `${owner ?? ""}/${name}`).sort();
  };
  const row = (page: Page, name: RegExp) => page.getByRole("row", { name });
  /** How a request by `key` for this model is answered. */
  const answered = async (model: string, key = admin): Promise<number> =>
    (await post(`${started.url}/v1/completions`, { ...ask, model }, { authorization: `Bearer ${key}` })).status;
  const archiveOf = async (path: string): Promise<Buffer> => buffer(Readable.from(await packAdapter(path)));
  /** A copy of the good adapter in a folder of this name, with its config changed. */
  const copy = (name: string, change: Readonly<Record<string, unknown>> = {}): string => {
    const path = join(directory, "copies", name);
    cpSync(good, path, { recursive: true });
    const config = JSON.parse(readFileSync(join(path, FILES[0]), "utf8")) as object;
    writeFileSync(join(path, FILES[0]), JSON.stringify({ ...config, ...change }));
    return path;
  };
  const choose = (page: Page, what: string | { name: string; mimeType: string; buffer: Buffer } | string[]) =>
    page.getByLabel("Choose files").setInputFiles(what);
  const send = (page: Page) => page.getByRole("button", { name: "Upload", exact: true }).click();

  test("an archive is uploaded for a tenant, and answers its requests", async () => {
    await using seen = await asAdmin();
    const { page } = seen;
    await page.getByRole("heading", { name: "No adapter is installed" }).waitFor();
    const content = gzipSync(await archiveOf(good));
    await choose(page, { name: "my summaries.tar.gz", mimeType: "application/gzip", buffer: content });
    expect(await page.getByLabel("Name").inputValue()).toBe("my-summaries");
    await page.getByLabel("Name").fill("summaries");
    await page.getByLabel("Owner").selectOption("ann");
    await send(page);
    await page.getByText(/Installed ann\/summaries: milora of rank 4, [\d,]+ parameters in \d+ tensors/).waitFor();
    await row(page, /^summaries ann milora, 4 /).waitFor();
    expect(await installed()).toEqual(["ann/summaries"]);
    expect(await answered("summaries", ann)).toBe(200);
    await choose(page, { name: "x.tar", mimeType: "application/x-tar", buffer: await archiveOf(good) });
    await page.getByLabel("Name").fill("summaries");
    await page.getByLabel("Owner").selectOption("ann");
    await page.getByText(/it is replaced/).waitFor();
    await expectAccessible(page);
    await page.getByLabel("Name").fill("tiny-llama"); // the backbone's
    await send(page);
    await page.getByRole("alert").getByText("stands for the backbone").waitFor();
    expect(await installed()).toEqual(["ann/summaries"]);
  });

  test("a folder, and the two files by themselves, are packed by the page", async () => {
    await using seen = await asAdmin();
    const { page } = seen;
    const folder = copy("from folder");
    writeFileSync(join(folder, "README.md"), "notes");
    await page.getByLabel("Choose a folder").setInputFiles(folder);
    expect(await page.getByLabel("Name").inputValue()).toBe("from-folder");
    await send(page);
    await page.getByText(/Installed from-folder: milora/).waitFor();

    const [config, weights] = FILES.map((file) => readFileSync(join(good, file)).toString("base64"));
    const transfer = await page.evaluateHandle(`(() => {
      const bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes("${config}")], "${FILES[0]}"));
      transfer.items.add(new File([bytes("${weights}")], "${FILES[1]}"));
      return transfer;
    })()`);
    await page.locator(".drop").dispatchEvent("drop", { dataTransfer: transfer });
    await page.getByLabel("Name").fill("dropped");
    await send(page);
    await page.getByText(/Installed dropped: milora/).waitFor();
    await row(page, /^dropped everybody/).waitFor();

    const all = await started.server.services.store.adapters.all();
    const digests = Object.fromEntries(all.map(({ name, digest }) => [name, digest]));
    expect(digests.dropped).toBe(digests.summaries); // the very bytes
    expect(await answered("dropped")).toBe(200);
    expect(await answered("from-folder")).toBe(200);
  });

  test("of a broken adapter every problem is told, and nothing of it is installed", async () => {
    await using seen = await asAdmin();
    const { page } = seen;
    const before = await installed();
    const refused = async (what: Parameters<typeof choose>[1]): Promise<string[]> => {
      await choose(page, what);
      await page.getByLabel("Name").fill("broken");
      await send(page);
      const note = page.getByRole("alert");
      await note.waitFor();
      await page.getByText("Nothing was installed.").waitFor();
      return (await note.getByRole("listitem").allInnerTexts()).concat(await note.locator("p").allInnerTexts());
    };
    const both = (path: string) => FILES.map((file) => join(path, file));
    const shapes = await refused(both(copy("other-rank", { r: 3 })));
    expect(shapes).toContain("adapter_model.safetensors does not fit its config and this backbone:");
    const listed = shapes.filter((text) => /lora_[AB].*\[/.test(text)).length;
    const more = await page.getByRole("alert").locator("summary").innerText();
    expect(listed + Number.parseInt(more, 10)).toBe(2 * 7 * 6); // two of each module of each layer
    const fields = await refused(both(copy("no-config", { r: -1, lora_alpha: "much" })));
    expect(fields).toEqual([expect.stringMatching(/^r: /), expect.stringMatching(/^lora_alpha: /), expect.anything()]);
    const noise = await refused({ name: "noise.tar", mimeType: "application/x-tar", buffer: Buffer.alloc(2048, "x") });
    expect(noise.join()).toContain("neither a .tar nor a .tar.gz");
    await expectAccessible(page);

    // What is seen to be no adapter is not even sent.
    const alone = copy("alone");
    rmSync(join(alone, FILES[1]));
    writeFileSync(join(alone, "adapter_model.bin"), "");
    await page.getByLabel("Choose a folder").setInputFiles(alone);
    await page.getByText(/no adapter_model.safetensors beside it.*a pickle/).waitFor();
    expect(await page.getByRole("button", { name: "Upload", exact: true }).count()).toBe(0);
    expect(await installed()).toEqual(before);
    expect(await answered("broken")).toBe(404);
  });

  test("an upload says how far it is, and can be cancelled; one that is too large is refused while it is sent", async () => {
    await using seen = await asAdmin();
    const { page, context } = seen;
    const before = await installed();
    const path = copy("large");
    const name = join(path, FILES[1]);
    const tensors = readFileSync(name);
    const grown = (size: number) => writeFileSync(name, Buffer.concat([tensors, Buffer.alloc(size)]));
    grown(MOST / 4);
    const network = await context.newCDPSession(page);
    const upload = (bytesPerSecond: number) =>
      network.send("Network.emulateNetworkConditions", {
        ...{ offline: false, latency: 0, downloadThroughput: -1, uploadThroughput: bytesPerSecond },
      });
    await network.send("Network.enable");
    await upload(1024 * 1024);
    await page.getByLabel("Choose a folder").setInputFiles(path);
    await send(page);
    await page.getByText(/^Sending, [1-9].* of 8\.\d MiB/).waitFor();
    expect(await page.getByRole("progressbar").count()).toBe(1);
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.getByRole("progressbar").waitFor({ state: "detached" });
    expect(await page.getByLabel("Name").inputValue()).toBe("large"); // to be tried again
    await upload(-1);
    grown(MOST);
    await page.getByLabel("Choose a folder").setInputFiles(path);
    await send(page);
    await page.getByRole("alert").getByText(`larger than the ${MOST} bytes allowed`).waitFor();
    expect(await installed()).toEqual(before);
  });

  test("loading, pinning, granting and removing", async () => {
    await using seen = await asAdmin("?owner=ann");
    const { page } = seen;
    const { registry } = started.server.services;
    const mine = row(page, /^summaries ann/);
    const act = (name: string) => page.getByRole("button", { name: `${name} ann/summaries` }).click();
    await mine.waitFor();
    expect(await row(page, /^dropped/).count()).toBe(0); // filtered by the address
    for (const { owner, name } of await registry.all()) {
      const record = (await started.server.services.store.adapters.get(owner, name))!;
      await registry.unload(record);
    }
    await page.reload();
    await row(page, /^summaries ann .*on disk/).waitFor();
    await act("Load");
    await row(page, /^summaries ann .*in memory/).waitFor();
    expect(registry.stats.resident).toBe(1);
    await act("Pin");
    await row(page, /^summaries ann .*in memory ?pinned/).waitFor();
    await act("Unload");
    await page.getByRole("alert").getByText("is pinned; unpin it first").waitFor();
    await act("Unpin");
    await page.getByText("ann/summaries is no longer pinned.").waitFor();
    await act("Unload");
    await row(page, /^summaries ann .*on disk/).waitFor();
    expect(registry.stats.resident).toBe(0);

    const bob = (await started.server.services.store.keys.create({ tenant: "bob" })).secret;
    expect(await answered("ann/summaries", bob)).toBe(404);
    await page.getByRole("button", { name: "Grants of ann/summaries" }).click();
    const dialog = page.getByRole("dialog");
    await dialog.getByLabel("Tenant").selectOption("bob");
    await dialog.getByRole("button", { name: "Grant" }).click();
    await dialog.getByRole("button", { name: "Take back from bob" }).waitFor();
    await expectAccessible(page);
    expect(await answered("ann/summaries", bob)).toBe(200);
    await dialog.getByRole("button", { name: "Take back from bob" }).click();
    await dialog.getByText("No other tenant may.").waitFor();
    expect(await answered("ann/summaries", bob)).toBe(404);
    await dialog.getByRole("button", { name: "Close" }).click();

    await page.getByRole("button", { name: "Remove ann/summaries" }).click();
    await dialog.getByRole("button", { name: "Cancel" }).click();
    expect(await answered("summaries", ann)).toBe(200);
    await page.getByRole("button", { name: "Remove ann/summaries" }).click();
    await dialog.getByRole("button", { name: "Remove" }).click();
    await mine.waitFor({ state: "detached" });
    expect(await installed()).not.toContain("ann/summaries");
    expect(await answered("summaries", ann)).toBe(404);
    await page.getByLabel("Whose").selectOption("");
    await row(page, /^dropped everybody/).waitFor();
    await page.getByLabel("Find").fill("folder");
    await row(page, /^dropped/).waitFor({ state: "detached" });
    await row(page, /^from-folder/).waitFor();
  });

  test("a tenant uploads and removes what is its own", async () => {
    await using seen = await visit(browser, started.url, "/operations", { key: ann });
    const { page } = seen;
    await row(page, /^dropped everybody's/).waitFor();
    await choose(page, { name: "own.tar", mimeType: "application/x-tar", buffer: await archiveOf(good) });
    expect(await page.getByLabel("Owner").count()).toBe(0);
    await send(page);
    await page.getByText(/Installed own: milora/).waitFor();
    await row(page, /^own yours milora/).waitFor();
    expect(await installed()).toContain("ann/own");
    expect(await answered("own", ann)).toBe(200);
    await expectAccessible(page);
    await page.getByRole("button", { name: "Remove own" }).click();
    await page.getByRole("dialog").getByRole("button", { name: "Remove" }).click();
    await row(page, /^own/).waitFor({ state: "detached" });
    expect(await answered("own", ann)).toBe(404);
  });

  test("of twelve hundred a page at a time is fetched, found and turned, by administrators and tenants", async () => {
    const { adapters } = started.server.services.store;
    const facts = { digest: "0".repeat(64), method: "lora", rank: 4, bytes: 1000 };
    const names = Array.from({ length: 1200 }, (_, i) => `many-${String(i).padStart(4, "0")}`);
    for (const name of names) await adapters.put({ ...facts, owner: null, name });
    const fetched = (page: Page, route: string) =>
      page.waitForResponse((answer) => new URL(answer.url()).pathname === route && answer.url().includes("limit=100"));

    await using seen = await asAdmin();
    const { page } = seen;
    const pages = page.getByRole("navigation", { name: "Pages of adapters" });
    await pages.getByText(/^1 to 100 of 1,2/).waitFor();
    const answer = await fetched(page, "/admin/v1/adapters"); // asked again
    expect((await answer.body()).length).toBeLessThan(60_000);
    const first = page.getByRole("table", { name: "Adapters" }).getByRole("rowheader").first();
    const name = await first.textContent();
    await pages.getByRole("button", { name: "After" }).click();
    await pages.getByText(/^101 to 200 of/).waitFor();
    await row(page, /^many-0150/).waitFor();
    await expectAccessible(page);
    await pages.getByRole("button", { name: "Before" }).click();
    await pages.getByText(/^1 to 100 of/).waitFor();
    expect(await first.textContent()).toBe(name);
    await page.getByLabel("Find").fill("MANY-119");
    await row(page, /^many-1199/).waitFor();
    expect(await page.getByRole("table", { name: "Adapters" }).getByRole("row").count()).toBe(1 + 10);
    expect(await pages.count()).toBe(0);
    await page.getByLabel("Find").fill("%");
    await page.getByRole("heading", { name: "No adapter fits" }).waitFor();
    // Whether a name is taken is asked for, however many there are.
    await choose(page, { name: "many-0432.tar", mimeType: "application/x-tar", buffer: await archiveOf(good) });
    await page.getByText(/There is one of this name/).waitFor();

    await using theirs = await visit(browser, started.url, "/operations", { key: ann });
    await theirs.page.getByText(/^1 to 100 of 1,2/).waitFor();
    await theirs.page.getByLabel("Find").fill("many-0250");
    await row(theirs.page, /^many-0250 everybody's/).waitFor();
    expect(await theirs.page.getByRole("table", { name: "Adapters" }).getByRole("row").count()).toBe(2);
    for (const name of names) await adapters.remove(null, name);
  });
});
