/** @file Processes of this machine: whether one lives, and how busy they are. */
import { cpus } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * Also for one of another user. A number may have gone to another process since it was written down; one that is none, of a file
 * that was damaged, may stand for a group of them.
 */
export function isAlive(pid: number): boolean {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/** Share of the processors' time that is in use over `ms` milliseconds in which this process waits, 0 … 1. */
export async function busyShare(ms: number): Promise<number> {
  const read = (): { idle: number; total: number } => {
    let idle = 0;
    let total = 0;
    for (const { times } of cpus()) {
      idle += times.idle;
      total += times.idle + times.user + times.nice + times.sys + times.irq;
    }
    return { idle, total };
  };
  const before = read();
  await sleep(ms);
  const after = read();
  const share = 1 - (after.idle - before.idle) / Math.max(1, after.total - before.total);
  return Math.min(1, Math.max(0, share));
}
