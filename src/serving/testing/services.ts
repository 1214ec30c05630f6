/** @file For tests: services that end with the tests, however these end, and directories that the next one removes. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { isAlive } from "../../base/index.ts";

const SETPRIV = "/usr/bin/setpriv";

/**
 * Starts a service of which nobody hears. Where the system can, it gets `signal` when this process is gone: a runner that is killed, or
 * whose hook has timed out, disposes of nothing.
 */
export function spawnService(
  command: string,
  args: readonly string[],
  {
    signal = "KILL",
    ...owner
  }: { readonly signal?: "KILL" | "QUIT"; readonly uid?: number; readonly gid?: number } = {},
): ChildProcess {
  const options = { ...owner, stdio: "ignore", cwd: "/" } as const;
  return existsSync(SETPRIV)
    ? spawn(SETPRIV, ["--pdeathsig", signal, command, ...args], options)
    : spawn(command, args, options);
}

/** An empty directory `KIND-PID-…`. Those that processes have left which are gone are removed. */
export function serviceDirectory(kind: string): string {
  for (const name of readdirSync(tmpdir())) {
    const [, pid] = name.startsWith(`${kind}-`) ? (/^(\d+)-\w{6}$/.exec(name.slice(kind.length + 1)) ?? []) : [];
    if (pid !== undefined && !isAlive(Number(pid))) rmSync(join(tmpdir(), name), { recursive: true, force: true });
  }
  return mkdtempSync(join(tmpdir(), `${kind}-${process.pid}-`));
}
