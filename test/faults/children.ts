/** @file The command line as a child that is killed at a random time, and what is left of it. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const ROOT = join(import.meta.dirname, "../..");

/** What a scenario is given. */
export interface Settings {
  /** Faults, of each kind. */
  readonly times: number;
  /** The built package. */
  readonly dist: string;
  /** An empty directory. */
  readonly directory: string;
  /** The bundled backbone, cut to two layers. */
  readonly model: string;
  /** A LoRA adapter of it. */
  readonly adapter: string;
  random(): number;
}

export interface Outcome {
  readonly scenario: string;
  readonly faults: number;
  /** How the faults ended, counted. */
  readonly seen: Readonly<Record<string, number>>;
}

export class FaultError extends Error {}

/** @throws FaultError */
export function must(holds: boolean, what: string): asserts holds {
  if (!holds) throw new FaultError(what);
}

export function count(seen: Record<string, number>, what: string): void {
  seen[what] = (seen[what] ?? 0) + 1;
}

export interface Ended {
  readonly code: number | null;
  readonly killed: boolean;
  readonly stdout: string;
  readonly stderr: string;
  readonly ms: number;
}

const environment = { ...process.env, NO_COLOR: "1", MILORA_DEBUG: undefined };

const started = new Set<ChildProcess>();

/** Ends what a scenario that failed has left running. */
export function killAll(): void {
  for (const child of started) child.kill("SIGKILL");
}

/** @param shell put before the command, such as `ulimit -n 64;` */
export function start(dist: string, args: readonly string[], { shell = "", node = [] as string[] } = {}): ChildProcess {
  const command = [...node, join(dist, "cli/main.js"), ...args];
  const options = { cwd: ROOT, env: environment, stdio: ["ignore", "pipe", "pipe"] as ("ignore" | "pipe")[] };
  const child =
    shell === ""
      ? spawn(process.execPath, command, options)
      : spawn("bash", ["-c", `${shell} exec "$0" "$@"`, process.execPath, ...command], options);
  started.add(child);
  return child.once("close", () => started.delete(child));
}

/** Runs a command; kills it with SIGKILL so many milliseconds after its start, if it still runs. */
export async function run(settings: Settings, args: readonly string[], killAfter?: number): Promise<Ended> {
  const started = performance.now();
  const child = start(settings.dist, args);
  let [stdout, stderr, killed] = ["", "", false];
  child.stdout!.setEncoding("utf8").on("data", (text) => {
    stdout += text;
  });
  child.stderr!.setEncoding("utf8").on("data", (text) => {
    stderr += text;
  });
  const timer = killAfter === undefined ? undefined : setTimeout(() => (killed = child.kill("SIGKILL")), killAfter);
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  clearTimeout(timer);
  return { code, killed: killed && code === null, stdout, stderr, ms: performance.now() - started };
}

/** A failure that is told as one should be: exit code 1 or 2, one line, no stack. */
export function told({ code, stderr }: Ended): boolean {
  const errors = stderr.split("\n").filter((line) => line.startsWith("error: "));
  return (code === 1 || code === 2) && errors.length === 1 && !/\n\s+at /.test(stderr);
}

/** Names and contents of everything below a directory. */
export function sumOf(directory: string): string {
  const hash = createHash("sha256");
  for (const name of readdirSync(directory, { recursive: true, encoding: "utf8" }).sort()) {
    const path = join(directory, name);
    try {
      hash.update(`${name}\n`).update(readFileSync(path));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EISDIR") throw error;
    }
  }
  return hash.digest("hex");
}

/** Waits until something holds. */
export async function until(holds: () => boolean | Promise<boolean>, what: string, seconds = 120): Promise<void> {
  const end = performance.now() + seconds * 1000;
  while (!(await holds())) {
    must(performance.now() < end, `${what}: not after ${seconds} s`);
    await sleep(20);
  }
}
