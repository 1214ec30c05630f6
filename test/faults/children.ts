/** @file The command line as a child that is killed at a random time, and what is left of it. */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

export const ROOT = join(import.meta.dirname, "../..");

/** What a scenario is given. */
export interface Settings {
  /** Faults, of each kind, at most. */
  readonly times: number;
  /** Those that have been. */
  done: number;
  /** Whether there are to be more, and is time for them. */
  more(): boolean;
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
  /** How the faults ended, counted. */
  readonly seen: Readonly<Record<string, number>>;
}

export class FaultError extends Error {}

/** Counts faults until there have been enough. */
export function* faultsOf(settings: Settings): Generator<number> {
  for (let i = 0; settings.more(); i++) {
    yield i;
    settings.done++;
  }
}

/** @throws FaultError */
export function must(holds: boolean, what: string): asserts holds {
  if (!holds) throw new FaultError(what);
}

export function count(seen: Record<string, number>, what: string, times = 1): void {
  seen[what] = (seen[what] ?? 0) + times;
}

export interface Ended {
  readonly code: number | null;
  readonly killed: boolean;
  readonly stdout: string;
  readonly stderr: string;
  readonly ms: number;
}

const started = new Set<ChildProcess>();

/** Ends what a scenario that failed has left running. */
export function killAll(): void {
  for (const child of started) child.kill("SIGKILL");
}

/** @param shell put before the command, such as `ulimit -n 64;` */
export function start(dist: string, args: readonly string[], { shell = "", node = [] as string[] } = {}): ChildProcess {
  const command = [...node, join(dist, "cli/main.js"), ...args];
  const environment = { ...process.env, NO_COLOR: "1", MILORA_DEBUG: undefined };
  const options = { cwd: ROOT, env: environment, stdio: ["ignore", "pipe", "pipe"] as ("ignore" | "pipe")[] };
  const child =
    shell === ""
      ? spawn(process.execPath, command, options)
      : spawn("bash", ["-c", `${shell} exec "$0" "$@"`, process.execPath, ...command], options);
  started.add(child);
  return child.once("close", () => started.delete(child));
}

/** When a command is killed: so many milliseconds after its start, or after a sign that it gives. */
export interface Moment {
  readonly ms: number;
  /** Asked about every millisecond. */
  readonly since?: () => boolean;
}

/** Runs a command; kills it with SIGKILL at a moment, if it still runs. */
export async function run(settings: Settings, args: readonly string[], kill?: Moment): Promise<Ended> {
  const started = performance.now();
  const child = start(settings.dist, args);
  let [stdout, stderr, killed] = ["", "", false];
  child.stdout!.setEncoding("utf8").on("data", (text) => {
    stdout += text;
  });
  child.stderr!.setEncoding("utf8").on("data", (text) => {
    stderr += text;
  });
  let timer: NodeJS.Timeout | undefined;
  const begin = (ms: number): void => {
    timer = setTimeout(() => (killed = child.kill("SIGKILL")), ms);
  };
  const look =
    kill?.since &&
    setInterval(() => {
      if (!kill.since!()) return;
      clearInterval(look);
      begin(kill.ms);
    }, 1);
  if (kill && !kill.since) begin(kill.ms);
  const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
  clearInterval(look);
  clearTimeout(timer);
  return { code, killed: killed && code === null, stdout, stderr, ms: performance.now() - started };
}

/** A failure that is told as one should be: exit code 1 or 2, one line, no stack. */
export function told({ code, stderr }: Ended): boolean {
  const errors = stderr.split("\n").filter((line) => line.startsWith("error: "));
  return (code === 1 || code === 2) && errors.length === 1 && !/\n\s+at /.test(stderr);
}

/** Names and contents of everything below a directory, or the contents of a file. */
export function sumOf(directory: string): string {
  const hash = createHash("sha256");
  if (statSync(directory).isFile()) return hash.update(readFileSync(directory)).digest("hex");
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

/** Waits until something holds. Time in which all of this is paused does not count. */
export async function until(holds: () => boolean | Promise<boolean>, what: string, seconds = 120): Promise<void> {
  using patience = new Patience(seconds);
  while (!(await holds())) {
    must(!patience.signal.aborted, `${what}: not after ${seconds} s`);
    await sleep(20);
  }
}

const TICK_MS = 250;

/** Aborts after so many seconds in which this process ran: whoever pauses the machine is no fault. */
export class Patience implements Disposable {
  readonly #abort = new AbortController();
  readonly #timer: NodeJS.Timeout;

  constructor(seconds: number) {
    let left = (seconds * 1000) / TICK_MS;
    this.#timer = setInterval(() => {
      if (--left <= 0) this.#abort.abort(new FaultError(`nothing came for ${seconds} s`));
    }, TICK_MS);
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}
