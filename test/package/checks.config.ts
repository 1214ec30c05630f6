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
    // Far more than they take: who else uses the machine decides no check.
    testTimeout: 3 * 3_600_000,
    hookTimeout: 3_600_000,
    reporters: ["verbose"],
  },
});
