/** @file Checks that take minutes or the network, beside the tests: `vitest run --config test/package/checks.config.ts`. */
import { join } from "node:path";
import { defineConfig } from "vitest/config";

export default defineConfig({
  root: join(import.meta.dirname, "../.."),
  oxc: { target: "es2022" },
  test: {
    include: ["test/package/*.check.ts"],
    globalSetup: ["test/cli/build.ts"],
    pool: "forks",
    maxWorkers: 1,
    testTimeout: 1_800_000,
    hookTimeout: 1_800_000,
    reporters: ["verbose"],
  },
});
