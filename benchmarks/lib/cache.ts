/** @file Where generated models live: made on first use, ignored by git, safe to delete. */
import { existsSync, mkdirSync, renameSync, rmSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** `benchmarks/`, found from here whether this runs as TypeScript or as compiled output below `benchmarks/dist/`. */
export const benchmarksDirectory = ((): string => {
  let at = dirname(fileURLToPath(import.meta.url));
  while (!(existsSync(join(at, "package.json")) && existsSync(join(at, "lib", "shapes.ts")))) {
    const parent = dirname(at);
    if (parent === at) throw new Error("benchmarks/ not found above this script");
    at = parent;
  }
  return at;
})();

export const cacheDirectory = join(benchmarksDirectory, ".cache");

/** The file or directory `name` in the cache; when absent, `make` fills a temporary path that then takes its place. */
export function cached(name: string, make: (path: string) => void): string {
  const path = join(cacheDirectory, name);
  if (existsSync(path)) return path;
  mkdirSync(cacheDirectory, { recursive: true });
  const unfinished = `${path}.${process.pid}.tmp`;
  process.stderr.write(`writing ${name} (once)\n`);
  try {
    make(unfinished);
    renameSync(unfinished, path);
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
  return path;
}
