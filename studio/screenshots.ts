/** @file Takes the pictures of README and docs: a real server, with the adapters and runs that `make demo` has left. */
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium, type Page } from "playwright-core";

const ROOT = join(import.meta.dirname, "..");
const RUNS = join(ROOT, "runs");
const OUT = join(ROOT, "docs/images");
const TENANTS = ["subjects", "authors"];
const CHROMIUM = process.env.CHROMIUM_PATH ?? "/usr/bin/chromium";

/** A title as in the demo's data, for which the two tenants' adapters say different things. */
const TITLE = "On the measurement of the velocity of electric currents in a wire";

for (const [path, hint] of [
  [join(RUNS, "demo/subjects-milora/best"), "run make demo first"],
  [join(ROOT, "dist/studio/index.html"), "run npm run build first"],
  [CHROMIUM, "set CHROMIUM_PATH"],
]) {
  if (existsSync(path!)) continue;
  process.stderr.write(`error: ${path} is not there; ${hint}\n`);
  process.exit(2);
}

const data = mkdtempSync(join(tmpdir(), "milora-studio-"));
const adapters = TENANTS.flatMap((name) => [
  ...["--adapter", `${name}=${RUNS}/demo/${name}-milora/best`],
  ...["--adapter", `${name}-lora=${RUNS}/demo/${name}-lora/best`],
]);
const server = spawn(
  process.execPath,
  [
    ...[
      join(ROOT, "dist/cli/main.js"),
      "serve",
      "--model",
      join(ROOT, "assets/tiny-llama"),
      "--json",
      "--log-level",
      "warn",
    ],
    ...["--data", data, "--port", "0", "--runs", RUNS, ...adapters],
  ],
  { stdio: ["ignore", "pipe", "inherit"] },
);

try {
  const url = await new Promise<string>((resolve, reject) => {
    let text = "";
    server.stdout.on("data", (chunk: Buffer) => {
      text += chunk.toString();
      const found = /"url":\s*"([^"]+)"/.exec(text);
      if (found) resolve(found[1]!);
    });
    server.once("exit", () => reject(new Error("the server did not start")));
  });
  const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
  const take = async (
    name: string,
    path: string,
    dark: boolean,
    prepare: (page: Page) => Promise<void>,
    height = 800,
  ) => {
    const page = await browser.newPage({
      viewport: { width: 1280, height },
      colorScheme: dark ? "dark" : "light",
      reducedMotion: "reduce",
    });
    await page.goto(`${url}/studio${path}`);
    await prepare(page);
    await page.waitForTimeout(500);
    await page.screenshot({ path: join(OUT, `studio-${name}.png`) });
    await page.close();
    process.stdout.write(`docs/images/studio-${name}.png\n`);
  };
  await take("playground", "/playground", false, playground, 900);
  await take("routing", "/routing", false, routing, 1080);
  await take("runs", "/runs/run?id=demo%2Fsubjects-milora", true, settled);
  await traffic(url, 30_000);
  await take("operations", "/operations", true, settled);
  await browser.close();
} finally {
  server.kill();
  await new Promise((resolve) => server.once("exit", resolve));
  rmSync(data, { recursive: true, force: true });
}

/** Requests of both tenants' adapters, some at a time, for `ms`. */
async function traffic(url: string, ms: number): Promise<void> {
  const end = Date.now() + ms;
  const ask = async (client: number) => {
    for (let i = 0; Date.now() < end; i++) {
      const model = TENANTS[(client + i) % TENANTS.length]!;
      const body = { model, prompt: TITLE, max_tokens: 16 + ((7 * i + client) % 48), ignore_eos: true };
      const headers = { "content-type": "application/json" };
      await fetch(`${url}/v1/completions`, { method: "POST", headers, body: JSON.stringify(body) });
      await new Promise((resolve) => setTimeout(resolve, (client * 37 + i * 53) % 400));
    }
  };
  await Promise.all(Array.from({ length: 6 }, (_, client) => ask(client)));
}

/** All that is asked for is there. */
async function settled(page: Page): Promise<void> {
  await page.locator("figure svg").first().waitFor();
  await page.waitForTimeout(1500);
}

async function playground(page: Page): Promise<void> {
  const models = page.getByRole("combobox", { name: /^Model/ });
  await models.first().waitFor();
  while ((await models.count()) < TENANTS.length) await page.getByRole("button", { name: "Add a model" }).click();
  for (const [i, tenant] of TENANTS.entries()) await models.nth(i).selectOption(tenant);
  await page.getByLabel("Most new tokens").fill("24");
  await page.getByLabel("Message", { exact: true }).fill(TITLE);
  await page.getByRole("button", { name: "Send" }).click();
  await page
    .getByText(/tokens\/s/)
    .nth(TENANTS.length - 1)
    .waitFor();
  await page.evaluate("scrollTo(0, 0)");
}

async function routing(page: Page): Promise<void> {
  await page.getByLabel("Prompt", { exact: true }).fill(TITLE);
  const add = page.getByLabel("Add an adapter");
  const shown = page.getByRole("list", { name: "Adapters that are shown" });
  for (const tenant of TENANTS) if (!(await shown.getByText(tenant).count())) await add.selectOption(tenant);
  await page
    .getByText("What the router attends to")
    .nth(TENANTS.length - 1)
    .waitFor();
  await page.evaluate("scrollTo(0, 0)");
}
