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
    ...[join(ROOT, "dist/cli/main.js"), "serve", "--model", join(ROOT, "assets/tiny-llama"), "--json"],
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
  const take = async (name: string, path: string, dark: boolean, prepare: (page: Page) => Promise<void>) => {
    const page = await browser.newPage({
      viewport: { width: 1280, height: 800 },
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
  await take("playground", "/playground", false, playground);
  await take("routing", "/routing", false, routing);
  await take("runs", "/runs/compare?id=demo%2Fsubjects-milora&id=demo%2Fsubjects-lora", true, settled);
  await take("operations", "/operations", true, settled);
  await browser.close();
} finally {
  server.kill();
  await new Promise((resolve) => server.once("exit", resolve));
  rmSync(data, { recursive: true, force: true });
}

/** All that is asked for is there. */
async function settled(page: Page): Promise<void> {
  await page.locator("figure svg").first().waitFor();
  await page.waitForTimeout(1500);
}

async function playground(page: Page): Promise<void> {
  await page.getByRole("button", { name: "Add a model" }).click();
  await page.getByLabel("Model 1").selectOption("subjects");
  await page.getByLabel("Model 2").selectOption("authors");
  await page.getByRole("textbox", { name: "Message", exact: true }).fill(TITLE);
  await page.getByRole("button", { name: "Send" }).click();
  await page.waitForTimeout(4000);
}

async function routing(page: Page): Promise<void> {
  await page.getByRole("textbox", { name: "Prompt" }).first().fill(TITLE);
  await page.waitForTimeout(3000);
}
