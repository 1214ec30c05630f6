/** @file The playground in a browser: several tenants' adapters side by side, stopping, errors, and requests to take along. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import type { Browser, Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { makeAdapter, post, type Started, scratch, startServer, until } from "../../src/serving/http/testing.ts";
import { CHROMIUM, expectAccessible, launch, type VisitOptions, visit } from "./support.ts";

const { directory, remove } = scratch();
let server: Started;
let browser: Browser;
let admin: string;
let ann: string;

beforeAll(async () => {
  if (CHROMIUM === undefined) return;
  [server, browser] = await Promise.all([startServer(`${directory}/data`, { auth: "required" }), launch()]);
  const { store, registry } = server.server.services;
  const methods = { ann: "milora", bob: "lora" };
  for (const [id, method] of Object.entries(methods)) {
    await store.tenants.create({ id });
    await registry.install({ directory: await makeAdapter(directory, method, 3) }, { owner: id, name: method });
  }
  await registry.install({ directory: await makeAdapter(directory, "lora", 5) }, { owner: null, name: "shared" });
  admin = (await store.keys.create({ admin: true })).secret;
  ann = (await store.keys.create({ tenant: "ann" })).secret;
});

afterAll(async () => {
  await browser?.close();
  await server?.[Symbol.asyncDispose]();
  remove();
});

const open = (options: VisitOptions = {}) => visit(browser, server.url, "/playground", { key: admin, ...options });

async function choose(page: Page, models: readonly string[]): Promise<void> {
  for (const [i, model] of models.entries()) {
    if (i > 0) await page.getByRole("button", { name: "Add a model" }).click();
    await page.getByLabel(`Model ${i + 1}`, { exact: true }).selectOption(model);
  }
}

async function set(page: Page, settings: Readonly<Record<string, string>>): Promise<void> {
  if (!(await page.getByLabel("Seed").isVisible())) await page.getByRole("heading", { name: "Settings" }).click();
  for (const [label, value] of Object.entries(settings)) await page.getByLabel(label, { exact: true }).fill(value);
}

const answerOf = (page: Page, model: string) => page.getByRole("article", { name: `Answer of ${model}` });
const said = (page: Page, model: string) => answerOf(page, model).locator(".said");
const ended = (page: Page, model: string) =>
  answerOf(page, model)
    .getByText(/^(done|cut short)$/)
    .waitFor();

/** What the API says to the same. */
async function reference(body: object): Promise<{ text: string; usage: { prompt_tokens: number } }> {
  const path = "messages" in body ? "/v1/chat/completions" : "/v1/completions";
  const response = await post(server.url + path, body, { authorization: `Bearer ${admin}` });
  expect(response.status).toBe(200);
  const { choices, usage } = (await response.json()) as {
    choices: { text?: string; message?: { content: string } }[];
    usage: { prompt_tokens: number };
  };
  return { text: choices[0]!.text ?? choices[0]!.message!.content, usage };
}

describe.skipIf(CHROMIUM === undefined)("the playground", () => {
  test("puts a conversation to two tenants' adapters, which answer side by side as the API does", async () => {
    await using visited = await open();
    const { page } = visited;
    await choose(page, ["ann/milora", "bob/lora"]);
    await set(page, { Temperature: "0", "Most new tokens": "24", "System message": "Be brief." });
    await page.getByLabel("Message", { exact: true }).fill("What is a cell?");
    await page.getByLabel("Message", { exact: true }).press("Control+Enter");
    const system = { role: "system", content: "Be brief." };
    const first = { role: "user", content: "What is a cell?" };
    const texts: Record<string, string> = {};
    for (const model of ["ann/milora", "bob/lora"]) {
      await ended(page, model);
      const { text, usage } = await reference({ model, messages: [system, first], max_tokens: 24, temperature: 0 });
      texts[model] = text;
      expect(await said(page, model).textContent()).toBe(text);
      const numbers = await answerOf(page, model).locator(".numbers").textContent();
      expect(numbers).toMatch(/First token\d[\d.]* m?s/);
      expect(numbers).toMatch(/Speed[\d,.]+ tokens\/s/);
      expect(numbers).toContain(`Prompt${usage.prompt_tokens} tokens`);
    }
    expect(texts["ann/milora"]).not.toBe(texts["bob/lora"]);
    // Only one of the two routes.
    await answerOf(page, "ann/milora")
      .getByRole("img", { name: /^Chosen experts of \d+ layers: q in \d/ })
      .waitFor();
    expect(await answerOf(page, "bob/lora").getByRole("img").count()).toBe(0);

    // What was said before goes with the next message, to each what it said itself.
    expect(await page.getByLabel("Message", { exact: true }).inputValue()).toBe("");
    await page.getByLabel("Message", { exact: true }).fill("Go on.");
    await page.getByRole("button", { name: "Send" }).click();
    await page
      .getByRole("article")
      .nth(3)
      .getByText(/^(done|cut short)$/)
      .waitFor();
    await page
      .getByRole("article")
      .nth(2)
      .getByText(/^(done|cut short)$/)
      .waitFor();
    for (const [i, model] of ["ann/milora", "bob/lora"].entries()) {
      const messages = [
        system,
        first,
        { role: "assistant", content: texts[model]! },
        { role: "user", content: "Go on." },
      ];
      const { text } = await reference({ model, messages, max_tokens: 24, temperature: 0 });
      expect(
        await page
          .getByRole("article")
          .nth(2 + i)
          .locator(".said")
          .textContent(),
      ).toBe(text);
    }
    expect(await page.locator("main p[role=status]").textContent()).toMatch(
      /^ann\/milora answered, \d+ tokens; bob\/lora answered/,
    );

    // The window keeps it, but not for anybody else.
    await page.reload();
    await page.getByRole("article").nth(3).waitFor();
    expect(await page.getByLabel("Model 2", { exact: true }).inputValue()).toBe("bob/lora");
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("Key").fill(ann);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByLabel("Message", { exact: true }).waitFor();
    expect(await page.getByRole("article").count()).toBe(0);
    expect(await page.evaluate("JSON.stringify(sessionStorage)")).not.toContain("What is a cell?");
  });

  test("what is stopped half-way stops on the server, and is charged for what was made", async () => {
    await using visited = await open();
    const { page } = visited;
    const { scheduler, store } = server.server.services;
    await choose(page, ["ann/milora", "bob/lora"]);
    await set(page, { "Most new tokens": "900" });
    await page.getByLabel("Ignore the end token").check();
    await page.getByLabel("Message", { exact: true }).fill("Count the cells of a whale.");
    await page.getByLabel("Message", { exact: true }).press("Control+Enter");
    for (const model of ["ann/milora", "bob/lora"]) await answerOf(page, model).getByText("answering").waitFor();
    expect(scheduler.stats().running).toBe(2);
    await page.getByRole("button", { name: "Stop bob/lora" }).click();
    await answerOf(page, "bob/lora").getByText("stopped").waitFor();
    await until(() => scheduler.stats().running === 1);
    await answerOf(page, "ann/milora").getByText("answering").waitFor();
    await page.keyboard.press("Escape");
    await answerOf(page, "ann/milora").getByText("stopped").waitFor();
    await until(() => scheduler.stats().running + scheduler.stats().waiting === 0);
    await until(() => server.server.services.state.inFlight === 0);
    expect((await said(page, "ann/milora").textContent())!.length).toBeGreaterThan(0);
    const used = await store.usage.report({ tenant: "admin", adapter: "bob/lora" });
    expect(used[0]!.completionTokens).toBeGreaterThan(0);
    expect(used[0]!.completionTokens).toBeLessThan(900);
    // A page that is left takes its requests with it.
    await page.getByRole("button", { name: "Ask again of ann/milora" }).click();
    await answerOf(page, "ann/milora").getByText("answering").waitFor();
    await page.getByRole("link", { name: "Operations" }).click();
    await until(() => scheduler.stats().running + scheduler.stats().waiting === 0);
  });

  test("says in its column what was refused, while the others answer; and at the field what cannot be sent", async () => {
    await using visited = await open();
    const { page } = visited;
    const { registry } = server.server.services;
    await registry.install({ directory: await makeAdapter(directory, "lora", 9) }, { owner: "bob", name: "brief" });
    await page.reload();
    await choose(page, ["bob/brief", "bob/lora"]);
    await registry.remove("bob", "brief");
    await set(page, { Temperature: "hot", "Most new tokens": "8" });
    await page.getByLabel("Message", { exact: true }).fill("Hello");
    expect(await page.getByRole("button", { name: "Send" }).isDisabled()).toBe(true);
    await page.getByText("must be a number from 0 to 100").waitFor();
    await set(page, { Temperature: "0.5", Beams: "3" });
    await page.getByRole("button", { name: "Send" }).click();
    await answerOf(page, "bob/brief").getByRole("alert").getByText("does not exist, or is not yours to use").waitFor();
    // Beams are not drawn: the server says so, in its own words.
    await answerOf(page, "bob/lora")
      .getByRole("alert")
      .getByText(/temperature/)
      .waitFor();
    await set(page, { Temperature: "" });
    await page.getByRole("button", { name: "Ask again of bob/lora" }).click();
    await ended(page, "bob/lora");
    await page.getByRole("button", { name: "Remove model 1" }).click();
    expect(await answerOf(page, "bob/brief").count()).toBe(0);
  });

  test("several answers come as they are written, the best of some at their end; a bias keeps a token away", async () => {
    await using visited = await open();
    const { page } = visited;
    await page.getByLabel("Completion").check();
    await choose(page, ["ann/milora"]);
    await set(page, { Temperature: "1", Seed: "3", "Most new tokens": "8", Answers: "3" });
    await page.getByLabel("Prompt").fill("The cell");
    await page.getByLabel("Prompt").press("Control+Enter");
    await ended(page, "ann/milora");
    const others = page.getByRole("list", { name: "Further answers of ann/milora" }).getByRole("listitem");
    expect(await others.count()).toBe(2);
    const texts = [await said(page, "ann/milora").first().textContent(), ...(await others.allTextContents())];
    expect(new Set(texts).size).toBe(3);
    for (const text of texts) expect(text).toMatch(/^The cell./);
    await expectAccessible(page);

    await set(page, { Answers: "", "Best of": "4" });
    await page.getByLabel("Prompt").press("Control+Enter");
    await ended(page, "ann/milora");
    expect(await others.count()).toBe(0);
    const best = await said(page, "ann/milora").textContent();
    await page.getByRole("button", { name: "Copy as TypeScript" }).click();
    const program = (await page.evaluate("navigator.clipboard.readText()")) as string;
    const env = { ...process.env, MILORA_KEY: admin, NODE_USE_ENV_PROXY: undefined };
    const cwd = join(import.meta.dirname, "../..");
    const ran = await promisify(execFile)(process.execPath, ["--input-type=module", "-e", program], { env, cwd });
    expect(`The cell${ran.stdout}`).toBe(`${best}\n`);

    await set(page, { "Best of": "", Temperature: "0", "Most new tokens": "1" });
    await page.getByLabel("Prompt").press("Control+Enter");
    await ended(page, "ann/milora");
    const likeliest = await said(page, "ann/milora").textContent();
    const scored = await fetch(`${server.url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${admin}` },
      body: JSON.stringify({
        ...{ model: "ann/milora", prompt: "The cell", max_tokens: 1, temperature: 0 },
        logprobs: 1,
        return_tokens_as_token_ids: true,
      }),
    });
    const { choices } = (await scored.json()) as { choices: { logprobs: { tokens: string[] } }[] };
    const token = choices[0]!.logprobs.tokens[0]!.replace("token_id:", "");
    await set(page, { "Logit bias": `${token}: nothing` });
    await page.getByText(/must be a token's id and a number/).waitFor();
    await set(page, { "Logit bias": `${token}: -100` });
    await page.getByLabel("Prompt").press("Control+Enter");
    await ended(page, "ann/milora");
    expect(await said(page, "ann/milora").textContent()).not.toBe(likeliest);
  });

  test("requests can be taken along as a command and as a program", async () => {
    await using visited = await open();
    const { page } = visited;
    await page.getByLabel("Completion").check();
    await choose(page, ["ann/milora"]);
    await set(page, {
      Temperature: "0",
      "Most new tokens": "12",
      "Top k": "20",
      "Repetition penalty": "1.1",
      "Stop texts": "zzz\\n",
    });
    await page.getByLabel("Prompt").fill("It's a cell's \"wall\" and $HOME");
    await page.getByLabel("Prompt").press("Control+Enter");
    await ended(page, "ann/milora");
    const shown = await said(page, "ann/milora").textContent();
    const copied = async (name: string): Promise<string> => {
      await page.getByRole("button", { name }).click();
      await page.getByRole("button", { name }).getByText("✓ copied").waitFor();
      return (await page.evaluate("navigator.clipboard.readText()")) as string;
    };
    const env = { ...process.env, MILORA_KEY: admin, NODE_USE_ENV_PROXY: undefined };
    const curl = await copied("Copy as curl");
    expect(curl).not.toContain(admin);
    const run = promisify(execFile);
    const { stdout } = await run("bash", ["-c", `${curl.trimEnd()} --silent`], { env });
    const answer = JSON.parse(stdout) as { choices: { text: string }[]; x_milora: { routes: object[] } };
    const prompt = "It's a cell's \"wall\" and $HOME";
    expect(prompt + answer.choices[0]!.text).toBe(shown);
    expect(answer.x_milora.routes).toHaveLength(1);
    const program = await copied("Copy as TypeScript");
    const cwd = join(import.meta.dirname, "../..");
    // It has no types of its own to take away.
    const printed = await run(process.execPath, ["--input-type=module", "-e", program], { env, cwd });
    expect(prompt + printed.stdout).toBe(shown);
    expect(program).toContain("  top_k: 20,");
  });

  test("a tenant finds its own adapters, everybody's and the backbone; four models at most", async () => {
    await using visited = await open({ key: ann });
    const { page } = visited;
    await page.getByLabel("Model 1", { exact: true }).waitFor();
    const options = await page.getByLabel("Model 1", { exact: true }).locator("option").allTextContents();
    expect(options).toEqual(["tiny-llama", "shared (lora)", "milora (milora)"]);
    await choose(page, ["tiny-llama", "shared", "milora", "milora"]);
    expect(await page.getByRole("button", { name: "Add a model" }).count()).toBe(0);
    await set(page, { "Most new tokens": "4" });
    await page.getByLabel("Message", { exact: true }).fill("Hello");
    await page.getByRole("button", { name: "Send" }).click();
    await page.getByRole("article").nth(3).waitFor();
    for (let i = 0; i < 4; i++)
      await page
        .getByRole("article")
        .nth(i)
        .getByText(/^(done|cut short)$/)
        .waitFor();
  });

  test.each([
    ["light", {}],
    ["dark", { dark: true }],
    ["narrow", { width: 320 }],
  ])("is accessible: %s", async (_, options) => {
    await using visited = await open(options);
    const { page } = visited;
    await choose(page, ["ann/milora", "bob/lora"]);
    await expectAccessible(page);
    await set(page, { "Most new tokens": "8" });
    await page.getByLabel("Message", { exact: true }).fill("What is a cell? ".repeat(10));
    await page.getByRole("button", { name: "Send" }).click();
    for (const model of ["ann/milora", "bob/lora"]) await ended(page, model);
    await set(page, { "Top p": "7" });
    await expectAccessible(page);
  });

  test("long lists are searched by typing; a name that is not there is told so by the server", async () => {
    const { store } = server.server.services;
    const facts = { digest: "0".repeat(64), method: "lora", rank: 4, bytes: 1 };
    for (let i = 0; i < 250; i++) await store.adapters.put({ owner: "ann", name: `many-${i}`, ...facts });
    await using visited = await open({ key: ann });
    const { page } = visited;
    const model = page.getByRole("combobox", { name: "Model 1" });
    await model.fill("tiny-llama");
    await set(page, { "Most new tokens": "4" });
    await page.getByLabel("Message", { exact: true }).fill("Hello");
    await page.getByRole("button", { name: "Send" }).click();
    await ended(page, "tiny-llama");
    await model.fill("many-9999");
    await page.getByRole("button", { name: "Ask again of tiny-llama" }).click();
    await answerOf(page, "many-9999").getByRole("alert").getByText("does not exist").waitFor();
    await expectAccessible(page);
  });
});
