/** @file Runs the built command line as a child process, as a user's shell does. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

export const root = join(import.meta.dirname, "../..");
const main = join(root, "dist/cli/main.js");

export interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

interface MiloraOptions {
  readonly input?: string;
  readonly env?: Record<string, string>;
  /** Presses Ctrl-C as soon as stderr holds this text. */
  readonly interruptAt?: string;
}

/** Runs `milora …` in the project's root; `input` is its stdin, empty by default. */
export function milora(args: readonly string[], options: MiloraOptions = {}): Promise<Outcome> {
  return new Promise((resolve) => {
    const env = { ...process.env, NO_COLOR: "1", FORCE_COLOR: undefined, MILORA_DEBUG: undefined, ...options.env };
    const settings = { cwd: root, env, maxBuffer: 64 * 1024 * 1024 };
    const child = execFile(process.execPath, [main, ...args], settings, (error, stdout, stderr) => {
      resolve({ code: error ? (typeof error.code === "number" ? error.code : -1) : 0, stdout, stderr });
    });
    let seen = "";
    child.stderr?.on("data", (text: string) => {
      const before = options.interruptAt === undefined || seen.includes(options.interruptAt);
      seen += text;
      if (!before && seen.includes(options.interruptAt!)) child.kill("SIGINT");
    });
    child.stdin?.on("error", () => {}); // a command that ends without reading closes the pipe
    child.stdin?.end(options.input ?? "");
  });
}

export const fixture = (...parts: string[]): string => join(root, "test/fixtures", ...parts);
export const tiny = join(root, "assets/tiny-llama");

/** A directory that is gone after the test. */
export function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), "milora-cli-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}
