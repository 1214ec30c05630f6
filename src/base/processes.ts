/** @file Whether a process of this machine lives. */

/** Also for one of another user. A number may have gone to another process since it was written down. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
