/** @file Where damaged files are written: in memory where there is such a disk. On another, writing them takes most of the time. */
import { accessSync, constants } from "node:fs";
import { tmpdir } from "node:os";

export function quickDisk(): string {
  if (process.env.TMPDIR) return tmpdir();
  try {
    accessSync("/dev/shm", constants.W_OK);
    return "/dev/shm";
  } catch {
    return tmpdir();
  }
}
