/** @file A progress bar on stderr for work that takes more than two seconds; silent where nobody watches. */
import { Presets, SingleBar } from "cli-progress";
import { duration, hasColours, note, paint } from "./terminal.ts";

const DELAY_MS = 2000;

export interface Progress extends Disposable {
  /** @param facts short and already formatted, e.g. `loss 0.81`; shown in this order */
  update(done: number, facts?: readonly string[]): void;
  /** A line above the bar. */
  note(text: string): void;
  /** Removes the bar. A second call does nothing. */
  stop(): void;
}

/**
 * A bar that appears once two seconds have passed with work left to do.
 *
 * @param total in the unit that `update` counts
 */
export function startProgress(title: string, total: number): Progress {
  if (!process.stderr.isTTY) return { update() {}, note, stop() {}, [Symbol.dispose]() {} };
  const started = Date.now();
  let bar: SingleBar | undefined;
  let stopped = false;
  const stop = () => {
    stopped = true;
    bar?.stop();
    bar = undefined;
  };
  return {
    update(done, facts = []) {
      const elapsed = (Date.now() - started) / 1000;
      if (stopped || (!bar && (elapsed * 1000 < DELAY_MS || done >= total))) return;
      if (!bar) {
        const format = `${title} {bar} {percentage}% {facts}`;
        const options = { format, hideCursor: true, clearOnComplete: true, barsize: 24, gracefulExit: false };
        bar = new SingleBar({ ...options, linewrap: false, formatBar: drawBar }, Presets.rect);
        bar.start(total, done, { facts: "" });
      }
      const left = done > 0 ? [`${duration((elapsed / done) * (total - done))} left`] : [];
      bar.update(done, { facts: [...facts, ...left].join(" · ") });
    },
    note(text) {
      if (bar) process.stderr.write("\r\x1b[K"); // the bar is drawn again at its next update
      note(text);
    },
    stop,
    [Symbol.dispose]: stop,
  };
}

function drawBar(progress: number): string {
  const size = 24;
  const full = Math.round(progress * size);
  const [done, open] = ["━".repeat(full), "─".repeat(size - full)];
  return hasColours(process.stderr)
    ? paint("cyan", done, process.stderr) + paint("dim", open, process.stderr)
    : done + open;
}
