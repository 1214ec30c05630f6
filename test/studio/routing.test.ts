/** @file The routing explorer in a browser: routes as one types, side by side, compared, and Figure 2 of named and own data. */
import { readFileSync } from "node:fs";
import type { Browser, Download, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { readBackboneConfig } from "../../src/models/index.ts";
import { MODEL, makeAdapter, post, type Started, scratch, startServer, until } from "../../src/serving/http/testing.ts";
import type { AdapterRoute, ExploreResult } from "../../src/serving/studio/types.ts";
import { CHROMIUM, expectAccessible, launch, type VisitOptions, visit } from "./support.ts";

const { directory, remove } = scratch();
let server: Started;
let browser: Browser;
/** The key of a tenant. */
let ann: string;

beforeAll(async () => {
  if (CHROMIUM === undefined) return;
  [server, browser] = await Promise.all([startServer(`${directory}/data`, { auth: "required" }), launch()]);
  const { store, registry } = server.server.services;
  for (const [i, owner] of ["ann", "ann", "bob", null].entries()) {
    if (owner && i !== 1) await store.tenants.create({ id: owner });
    const name = ["first", "second", "hidden", "plain"][i]!;
    await registry.install(
      { directory: await makeAdapter(directory, name === "plain" ? "lora" : "milora", i) },
      { owner, name },
    );
  }
  ann = (await store.keys.create({ tenant: "ann" })).secret;
});

afterAll(async () => {
  await browser?.close();
  await server?.[Symbol.asyncDispose]();
  remove();
});

const open = (path = "", options: VisitOptions = {}) =>
  visit(browser, server.url, `/routing${path}`, { key: ann, ...options });

/** What the server says of a prompt. */
async function routeOf(
  prompt: string,
  adapter = "first",
  format = "raw",
): Promise<AdapterRoute & Pick<ExploreResult, "tokens">> {
  const body = { adapters: [adapter], prompt, format };
  const response = await post(`${server.url}/studio/v1/explore`, body, { authorization: `Bearer ${ann}` });
  const { tokens, routes } = (await response.json()) as ExploreResult;
  return { ...routes[0]!, tokens };
}

/** An adapter with a pooler of this kind. */
async function adapterOf(pooler: string): Promise<string> {
  const path = `${directory}/${pooler}`;
  using adapter = Adapter.create(methodOf("milora"), { r: 2, pooler }, readBackboneConfig(MODEL), 5);
  for (const key of adapter.tensors.keys()) if (key.includes("lora_B")) adapter.values(key).fill(0.01);
  await adapter.save(path);
  return path;
}

const short = (name: string): string => name.replace(/_proj$/, "");
const gridOf = (page: Page, name: string) => page.getByRole("grid", { name: `${name}: experts by layer` });

/** What every cell of a grid says must come to be. */
async function expectRoute(page: Page, name: string, { experts, layers }: AdapterRoute): Promise<void> {
  const wanted = layers.flatMap(({ probabilities, chosen }, layer) =>
    experts.map((expert, i) => {
      const words = `layer ${layer}, ${short(expert)}: ${probabilities[i]!.toFixed(3)}`;
      return chosen.includes(i) ? `${words}, chosen` : words;
    }),
  );
  const cells = gridOf(page, name).getByRole("gridcell");
  const read = () => cells.evaluateAll((all) => all.map((cell) => cell.querySelector(".unseen")!.textContent!));
  await until(async () => (await read())[0]?.startsWith(wanted[0]!.slice(0, 20)) === true);
  expect((await read()).map((words) => words.replace(/, (gained|lost) by .*/, ""))).toEqual(wanted);
}

async function textOf(download: Download): Promise<string> {
  return readFileSync(await download.path(), "utf8");
}

describe.skipIf(CHROMIUM === undefined)("a prompt", () => {
  test("is explored as it is typed, through several adapters; layers are walked with the keys", async () => {
    await using visited = await open();
    const { page } = visited;
    await gridOf(page, "first").waitFor();
    const options = await page.getByLabel("Add an adapter").locator("option").allTextContents();
    expect(options).toEqual(["Choose …", "second (milora)"]); // not Bob's, nor what does not route
    await page.getByLabel("Add an adapter").selectOption("second");
    const prompt = "Who wrote this passage? 細胞";
    await page.getByLabel("Prompt", { exact: true }).fill("");
    await page.getByText("Type a prompt").waitFor();
    await page.getByLabel("Prompt", { exact: true }).pressSequentially(prompt);
    const [first, second] = [await routeOf(prompt), await routeOf(prompt, "second")];
    await page.getByText(`${first.tokens.length} tokens through 2 adapters`).waitFor();
    await expectRoute(page, "first", first);
    await expectRoute(page, "second", second);

    // A click picks a layer for all, the arrow keys go on from there.
    await gridOf(page, "first")
      .getByRole("gridcell", { name: /^layer 1, v/ })
      .click();
    await page.keyboard.press("ArrowDown");
    await page.keyboard.press("ArrowRight");
    expect(await page.locator(":focus").textContent()).toMatch(/^layer 2, o/);
    for (const [name, { experts, layers }] of [
      ["first", first],
      ["second", second],
    ] as const) {
      const detail = page.getByRole("region", { name: `Layer 2 of ${name}` });
      const bars = await detail.getByRole("listitem").allTextContents();
      expect(bars).toEqual(
        experts.map((expert, i) => {
          const { probabilities, chosen } = layers[2]!;
          return `${short(expert)}${(100 * probabilities[i]!).toFixed(1)} %${chosen.includes(i) ? "chosen" : ""}`;
        }),
      );
      // The tokens as they are, with the pooler's attention.
      await detail.getByRole("button", { name: "Table" }).click();
      const weights = await detail.getByRole("row").locator("td:last-child").allTextContents();
      expect(weights).toEqual(layers[2]!.attention!.map((weight) => `${(100 * weight).toFixed(2)} %`));
      await detail.getByRole("button", { name: "Table" }).click();
      const shown = await detail.getByRole("region", { name: `Tokens as ${name} sees them` }).textContent();
      expect(shown!.replaceAll(/⟨\w+⟩/g, "")).toContain(prompt);
    }
    await page.keyboard.press("Tab");

    // A link shows the same.
    await page.reload();
    await expectRoute(page, "second", second);
    await page.getByRole("region", { name: "Layer 2 of second" }).waitFor();
    expect(await page.getByLabel("Prompt", { exact: true }).inputValue()).toBe(prompt);
    await page.getByRole("button", { name: "Remove first" }).click();
    await gridOf(page, "first").waitFor({ state: "detached" });
  });

  test("that was kept shows what another one changes", async () => {
    await using visited = await open();
    const { page } = visited;
    const [one, other] = ["What is a cell?", "It was the best of times, it was the worst of times"];
    await page.getByLabel("Prompt", { exact: true }).fill(one);
    await page.getByRole("button", { name: "Keep this prompt to compare" }).click();
    await page.getByText("The same experts as with the kept prompt").waitFor();
    await page.getByLabel("Prompt", { exact: true }).fill(other);
    const [before, now] = [await routeOf(one), await routeOf(other)];
    const differ = (from: AdapterRoute, to: AdapterRoute) =>
      to.layers.flatMap(({ chosen }, layer) =>
        chosen.filter((expert) => !from.layers[layer]!.chosen.includes(expert)).map((expert) => ({ layer, expert })),
      );
    const [gained, lost] = [differ(before, now), differ(now, before)];
    expect(gained.length).toBeGreaterThan(0);
    await page.getByText(`${gained.length} of ${3 * now.layers.length} experts changed`).waitFor();
    await expectRoute(page, "first", now);
    const marked = async (grid: string, word: string) => {
      const cells = page.getByRole("grid", { name: grid }).getByRole("gridcell", { name: new RegExp(`${word} by`) });
      return cells.evaluateAll((all) => all.map((cell) => cell.getAttribute("data-cell")));
    };
    const places = (some: typeof gained) => some.map(({ layer, expert }) => `${layer} ${expert}`).sort();
    expect((await marked("first: experts by layer", "gained")).sort()).toEqual(places(gained));
    expect((await marked("first: kept prompt, by layer", "lost")).sort()).toEqual(places(lost));
    const [p, q] = [now, before].map(({ layers }) => layers.flatMap(({ probabilities }) => probabilities));
    const largest = Math.max(...p!.map((value, i) => Math.abs(value - q![i]!)));
    const said = await page.getByText("Largest change of a probability").textContent();
    expect(Number(/[\d.]+/.exec(said!)![0])).toBeCloseTo(largest, 2);
    await page.reload(); // kept in the address
    await page.getByText(`${gained.length} of ${3 * now.layers.length} experts changed`).waitFor();
    await page.getByRole("button", { name: "Stop comparing" }).click();
    await page.getByRole("grid", { name: "first: kept prompt, by layer" }).waitFor({ state: "detached" });
  });

  test("as an instruction is the one of training; one that is too long is refused, and the next is explored again", async () => {
    await using visited = await open();
    const { page } = visited;
    await page.getByLabel("Prompt", { exact: true }).fill("Why?");
    await page.getByLabel("How it is put to the model").selectOption("alpaca");
    await expectRoute(page, "first", await routeOf("Why?", "first", "alpaca"));
    await page.getByLabel("Prompt", { exact: true }).fill("word ".repeat(3000));
    await page
      .getByRole("alert")
      .filter({ hasText: /tokens, the context holds|characters; the context/ })
      .waitFor();
    await page.getByLabel("Prompt", { exact: true }).fill("Why not?");
    await expectRoute(page, "first", await routeOf("Why not?", "first", "alpaca"));
    expect(await page.getByRole("alert").count()).toBe(0);
  });

  test("through a pooler that has no weights says so", async () => {
    const { registry } = server.server.services;
    const directories = await Promise.all(["max", "mean"].map((pooler) => adapterOf(pooler)));
    for (const [i, name] of ["largest", "plain-mean"].entries()) {
      await registry.install({ directory: directories[i]! }, { owner: "ann", name });
    }
    await using visited = await open("?adapter=largest&adapter=plain-mean&layer=1&prompt=What is a cell?");
    const { page } = visited;
    const [largest, mean] = [page.getByRole("article").nth(0), page.getByRole("article").nth(1)];
    await largest.getByText("no token has a weight").waitFor();
    await mean.getByText("every token counts alike").waitFor();
    const { tokens } = await routeOf("What is a cell?", "plain-mean");
    await mean
      .getByText(`${(100 / tokens.length).toFixed(1)} %`)
      .first()
      .waitFor();
    for (const name of ["largest", "plain-mean"]) await registry.remove("ann", name);
  });

  test("of somebody else's adapter is refused", async () => {
    await using visited = await open("?adapter=bob/hidden");
    const { page } = visited;
    await page.getByRole("alert").filter({ hasText: "does not exist, or is not yours" }).waitFor();
  });
});

describe.skipIf(CHROMIUM === undefined)("a data set", () => {
  const run = (page: Page) => page.getByRole("button", { name: "Route the rows" }).click();

  test("by name becomes Figure 2, with its numbers as a table, as CSV and as a picture", async () => {
    await using visited = await open("/data");
    const { page } = visited;
    await page.getByLabel("Data set").selectOption("subjects/dev");
    await page.getByLabel("First rows").fill("24");
    await run(page);
    await page.getByText("distinct routes").waitFor();
    const figure = page.getByRole("figure").filter({ hasText: "Share of the prompts" });
    await figure.getByRole("img", { name: /Share of the prompts/ }).waitFor();
    expect(await figure.locator("rect").count()).toBe(6 * 7);
    await figure.getByRole("button", { name: "Table" }).click();
    const cells = await figure.getByRole("row").nth(1).getByRole("cell").allTextContents();
    const shares = cells.slice(1).map((text) => Number.parseInt(text, 10));
    expect(shares).toHaveLength(7);
    expect(Math.abs(shares.reduce((a, b) => a + b) - 300)).toBeLessThan(4); // three of seven, rounded
    const download = async (name: string) => {
      const waiting = page.waitForEvent("download");
      await figure.getByRole("button", { name }).click();
      return textOf(await waiting);
    };
    const csv = (await download("CSV")).trim().split("\n");
    expect(csv[0]).toBe(
      "layer,q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,entropy,information,information_by_chance",
    );
    expect(csv).toHaveLength(7);
    for (const [i, share] of csv[1]!.split(",").slice(1, 8).entries()) {
      expect(Math.abs(100 * Number(share) - shares[i]!)).toBeLessThanOrEqual(0.51);
    }
    const svg = await download("SVG");
    expect(svg.match(/<rect x=/g)).toHaveLength(6 * 7);
    expect(svg).toContain("first, subjects/dev (24 prompts)");
    await page.getByRole("img", { name: "What the chosen experts tell of the answer" }).waitFor();

    // It stays while one looks at a prompt.
    await page.getByRole("link", { name: "A prompt" }).click();
    await gridOf(page, "first").waitFor();
    await page.getByRole("link", { name: "A data set" }).click();
    await page.getByText("distinct routes").waitFor();
  });

  test("of a file of one's own: what is wrong with it is said row by row, and a sound one is routed", async () => {
    await using visited = await open("/data");
    const { page } = visited;
    await page.getByLabel("Data set").selectOption("a file of mine");
    expect(await page.getByRole("button", { name: "Route the rows" }).isDisabled()).toBe(true);
    const give = (name: string, text: string) =>
      page.getByLabel("File of rows").setInputFiles({ name, mimeType: "text/plain", buffer: Buffer.from(text) });
    await give("rows.csv", 'prompt,answer\n"What is it?",yes\nlonely\n"And now?",no,more\n');
    await run(page);
    const alert = page.getByRole("alert");
    await alert.waitFor();
    expect(await alert.getByRole("listitem").allTextContents()).toEqual([
      "row 2: has 1 fields, the header 2",
      "row 3: has 3 fields, the header 2",
    ]);
    await give("rows.json", "[1,");
    await run(page);
    await alert.filter({ hasText: "not valid JSON" }).waitFor();
    await give("huge.jsonl", " ".repeat(8 * 1024 * 1024));
    await page.getByText("huge.jsonl is larger than 7 MiB.").waitFor();
    // A file that is dropped.
    const drop = await page.evaluateHandle(`(() => {
      const transfer = new DataTransfer();
      transfer.items.add(new File(['{"prompt": "One"}\\n{"prompt": "Two"}\\n'], "two.jsonl"));
      return transfer;
    })()`);
    await page.locator(".drop").dispatchEvent("drop", { dataTransfer: drop });
    await page.getByText("two.jsonl is ready.").waitFor();
    await run(page);
    await page.getByRole("heading", { name: "first, two.jsonl" }).waitFor();
    await page.getByText("The rows have no answers").waitFor();
    expect(await alert.count()).toBe(0);
  });

  test("can be stopped, and then the server has nothing more to do", async () => {
    await using visited = await open("/data?data=authors/train&rows=1000");
    const { page } = visited;
    await run(page);
    await page.getByText(/^\d+ of 1000 prompts routed$/).waitFor();
    await page.getByRole("button", { name: "Stop" }).click();
    await page.getByText("No rows routed yet").waitFor();
    const { scheduler, store } = server.server.services;
    await until(() => store.quotas.state("ann").running === 0);
    expect(scheduler.stats()).toMatchObject({ waiting: 0, running: 0 });
  });
});

describe.skipIf(CHROMIUM === undefined)("for everybody", () => {
  test.each([
    ["light", { dark: false }],
    ["dark", { dark: true }],
    ["narrow", { width: 320 }],
  ] as const)("%s", async (_, options) => {
    await using visited = await open(
      "?adapter=first&adapter=second&kept=What is it?&prompt=It was the best of times",
      options,
    );
    const { page } = visited;
    await page
      .getByText(/experts changed|The same experts/)
      .nth(1)
      .waitFor();
    await expectAccessible(page);
    await page.getByRole("button", { name: "Table" }).first().click();
    await expectAccessible(page);
    await page.getByRole("link", { name: "A data set" }).click();
    await page.getByLabel("First rows").fill("5");
    await page.getByRole("button", { name: "Route the rows" }).click();
    await page.getByRole("img", { name: /Share of the prompts/ }).waitFor();
    await expectAccessible(page);
  });

  test("without an adapter that routes it says how to get one", async () => {
    const { store } = server.server.services;
    await store.tenants.create({ id: "new" });
    const { secret } = await store.keys.create({ tenant: "new" });
    await using visited = await open("", { key: secret });
    const { page } = visited;
    await page.getByRole("heading", { name: "No adapter here routes prompts yet" }).waitFor();
    await page.getByText("milora train --model").waitFor();
    await expectAccessible(page);
  });
});
