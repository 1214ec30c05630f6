/** @file A bar over the rows of a task, of which an earlier run may have left some. */
import { startProgress } from "../progress.ts";

export async function rowProgress<T>(
  title: string,
  run: (onProgress: (done: number, total: number) => void) => Promise<T>,
  unit = "rows",
): Promise<T> {
  const started = performance.now();
  let progress: ReturnType<typeof startProgress> | undefined;
  let kept: number | undefined; // rows that an earlier run has left
  try {
    return await run((done, total) => {
      kept ??= done;
      const fresh = done - kept;
      progress ??= startProgress(title, total - kept);
      const rate = (fresh / (performance.now() - started)) * 1000;
      progress.update(fresh, [`${done} of ${total} ${unit}`, ...(fresh > 0 ? [`${rate.toFixed(1)} ${unit}/s`] : [])]);
    });
  } finally {
    progress?.stop();
  }
}
