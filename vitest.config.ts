/** @file Test runner settings: unit tests beside their file, cross-cutting tests under test/. */
import { defineConfig } from "vitest/config";

const common = {
  pool: "forks",
  testTimeout: 180_000,
  hookTimeout: 180_000,
} as const;

export default defineConfig({
  oxc: { target: "es2022" },
  test: {
    maxWorkers: 2,
    globalSetup: ["test/cli/build.ts"],
    projects: [
      {
        extends: true,
        test: { ...common, name: "milora", include: ["src/**/*.test.ts", "test/**/*.test.ts"] },
      },
      {
        // As on machines for which there is no prebuilt library of operators.
        extends: true,
        test: {
          ...common,
          name: "without operators",
          include: ["src/generation/*.test.ts", "test/parity/{int4,generation,families}.test.ts"],
          // Other devices never have them.
          exclude: ["**/devices.test.ts"],
          env: { MILORA_OPERATORS: "off" },
        },
      },
    ],
  },
});
