/** @file Builds dist/ before the tests of the command line when it is older than src/. */
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dirname, "../..");
const main = join(root, "dist/cli/main.js");

export default function setup(): void {
  // Other rooms' tests, run alone, need no build.
  const filters = process.argv.slice(2).filter((argument) => /^(\.\/)?(src|test)\b/.test(argument));
  if (filters.length > 0 && !filters.some((filter) => /^(\.\/)?test(\/cli.*|\/)?$/.test(filter))) return;
  if (isFresh()) return;
  execFileSync(process.execPath, [join(root, "node_modules/typescript/bin/tsc"), "-p", "tsconfig.build.json"], {
    cwd: root,
    stdio: "inherit",
  });
}

function isFresh(): boolean {
  if (!existsSync(main)) return false;
  const built = statSync(main).mtimeMs;
  const sources = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" });
  return sources.every((path) => !path.endsWith(".ts") || statSync(join(root, "src", path)).mtimeMs <= built);
}
