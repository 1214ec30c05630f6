/** @file A data directory belongs to one process: a file with who holds it, taken over when that process is gone. */
import { execFileSync } from "node:child_process";
import { linkSync, mkdirSync, readFileSync, rmSync, unlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isAlive, MiloraError } from "../../base/index.ts";

export const LOCK_FILE = "lock";

interface Holder {
  readonly pid: number;
  /** When the process began, as the system tells it: a number alone comes again after a restart. */
  readonly started: string | null;
}

/** Locks of this process, which may not open one directory twice. */
const held = new Set<string>();

/**
 * Takes the directory until disposed.
 *
 * @param remedy what to do where another process has it
 * @throws MiloraError DATA_IN_USE when a living process, or this one, has it
 */
export function lockDirectory(directory: string, remedy = REMEDY): Disposable {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const path = join(directory, LOCK_FILE);
  const own = JSON.stringify({ pid: process.pid, started: startOf(process.pid) } satisfies Holder);
  const draft = `${path}.${process.pid}`;
  writeFileSync(draft, `${own}\n`);
  try {
    // Linked, not written in place: nobody ever sees a lock without its holder.
    for (let attempt = 0; !link(draft, path); attempt++) {
      const holder = read(path);
      if (attempt >= 10 || (holder !== undefined && holds(holder, path))) throw inUse(directory, holder, remedy);
      takeAway(path, holder);
    }
  } finally {
    unlinkSync(draft);
  }
  held.add(path);
  return {
    [Symbol.dispose]() {
      if (held.delete(path)) rmSync(path, { force: true });
    },
  };
}

function link(from: string, to: string): boolean {
  try {
    linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw error;
  }
}

function read(path: string): Holder | undefined {
  try {
    const { pid, started } = JSON.parse(readFileSync(path, "utf8")) as Partial<Holder>;
    return Number.isSafeInteger(pid) ? { pid: pid!, started: started ?? null } : undefined;
  } catch {
    return undefined; // gone meanwhile, or no lock of ours
  }
}

function holds({ pid, started }: Holder, path: string): boolean {
  if (pid === process.pid) return held.has(path);
  if (!isAlive(pid)) return false;
  const now = startOf(pid);
  return started === null || now === null || started === now;
}

/** Two that take over at once must not remove each other's new lock: only who makes the guard removes the dead one. */
function takeAway(path: string, dead: Holder | undefined): void {
  const guard = `${path}.takeover`;
  try {
    mkdirSync(guard);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    const until = performance.now() + 100;
    while (performance.now() < until); // the other needs microseconds; one that was killed just here leaves the guard behind
    rmSync(guard, { recursive: true, force: true });
    return;
  }
  try {
    const now = read(path);
    if (now?.pid === dead?.pid && now?.started === dead?.started) rmSync(path, { force: true });
  } finally {
    rmSync(guard, { recursive: true, force: true });
  }
}

/** Of a process on Linux (clock ticks since boot, with the boot's id) and macOS (a date); elsewhere null. */
function startOf(pid: number): string | null {
  try {
    if (process.platform === "linux") {
      const fields = readFileSync(`/proc/${pid}/stat`, "latin1")
        .replace(/^.*\) /s, "")
        .split(" ");
      return `${readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim()} ${fields[19]}`;
    }
    if (process.platform === "darwin") {
      return execFileSync("ps", ["-o", "lstart=", "-p", String(pid)], { encoding: "utf8" }).trim() || null;
    }
  } catch {
    // a process that is not there, or a system that does not tell
  }
  return null;
}

const REMEDY = "ask a running server by --server URL with MILORA_ADMIN_KEY, or stop it";

function inUse(directory: string, holder: Holder | undefined, remedy: string): MiloraError {
  const who = holder === undefined ? "another process" : `process ${holder.pid}`;
  return new MiloraError("DATA_IN_USE", `${directory} is in use by ${who}; ${remedy}`);
}
