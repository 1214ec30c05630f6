/** @file Builds dist/ before the tests of the command line, the studio and the package when it is older than its sources. */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");

export default function setup(): void {
  // Other rooms' tests, run alone, need no build.
  const filters = process.argv.slice(2).filter((argument) => /^(\.\/)?(src|test)\b/.test(argument));
  const needs = (room: string) =>
    filters.length === 0 || filters.some((filter) => new RegExp(`^(\\./)?test(/${room}.*|/)?$`).test(filter));
  if (needs("(cli|package|serving|fleet)") && !isFresh("dist/cli/main.js", "src", /\.ts$/))
    run("typescript/bin/tsc", "-p", "tsconfig.build.json");
  if (needs("(cli|package|studio)") && !isFresh("dist/studio/index.html", "studio", /./)) {
    run("vite/bin/vite.js", "build", "--logLevel", "warn", "studio");
  }
}

function run(tool: string, ...args: string[]): void {
  // As for a release: the test runner's environment would give the pages React's slow form.
  const env = { ...process.env, NODE_ENV: "production" };
  execFileSync(process.execPath, [join(root, "node_modules", tool), ...args], { cwd: root, stdio: "inherit", env });
}

function isFresh(target: string, folder: string, sources: RegExp): boolean {
  const path = join(root, target);
  if (!existsSync(path)) return false;
  const built = statSync(path).mtimeMs;
  const names = readdirSync(join(root, folder), { recursive: true, encoding: "utf8" });
  return names.every((name) => !sources.test(name) || statSync(join(root, folder, name)).mtimeMs <= built);
}
