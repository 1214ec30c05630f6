/** @file How sweeps and workers stand, for people. */
import type { CellStatus, SweepPace, SweepStatus, WorkerStatus } from "../../serving/index.ts";
import { duration, paint, table } from "../terminal.ts";

const since = (at: Date): string => duration((Date.now() - at.getTime()) / 1000);

export function sweepText(status: SweepStatus): string {
  const { id, directory, trainings, cells, waiting, retrying, running, dead } = status;
  const left = waiting + running.length;
  const state = left > 0 ? "" : dead.length > 0 ? ", nothing is left to do but what failed" : ", finished";
  const lines = [
    `${paint("bold", id)}  ${directory}`,
    `  trainings ${trainings.done} of ${trainings.total}, cells ${cells.done} of ${cells.total}${state}`,
  ];
  const again = retrying > 0 ? `, ${retrying} of them again` : "";
  if (left > 0) lines.push(`  jobs: ${running.length} running, ${waiting} waiting${again}, ${dead.length} failed`);
  if (running.length > 0) {
    const rows = running.map(({ label, host, attempt, begun, progress }) => [
      `  ${progress?.text || label}`,
      host,
      since(begun),
      progress ? `${progress.done} of ${progress.total}` : "",
      attempt > 1 ? `attempt ${attempt}` : "",
    ]);
    lines.push("", table(["  running", "on", "for", "", ""], rows));
  }
  if (dead.length > 0) lines.push("", paint("yellow", `  failed; milora sweep retry ${id} tries again:`));
  for (const { label, reason, attempts } of dead) lines.push(`  ${label}: ${reason} (attempts: ${attempts})`);
  return lines.join("\n");
}

export function workersText(workers: readonly WorkerStatus[]): string {
  if (workers.length === 0) return "no worker is there; milora worker starts one";
  const rows = workers.map(({ host, pid, slots, version, begun }) => [
    ...[host, String(pid), String(slots), version, since(begun)],
  ]);
  const left = workers.flatMap(({ host, shunned }) =>
    Object.entries(shunned).map(([sweep, why]) => `${host} leaves ${sweep} to others: ${why}`),
  );
  return [table(["worker", "process", "jobs at a time", "version", "for"], rows), ...left].join("\n");
}

/** Cells of one sweep that are shown; `--json` has all. */
const MOST_CELLS = 200;

/** How fast it goes, behind `sweepText`. */
export function paceText({ perHour, secondsLeft, slots }: SweepPace): string {
  if (slots === 0 || secondsLeft === 0) return "";
  const left = secondsLeft === null ? "" : `, about ${duration(secondsLeft)} left`;
  return `\n  ${Math.round(perHour)} finished an hour${left}`;
}

export function cellsText(cells: readonly CellStatus[]): string {
  const rows = cells.slice(0, MOST_CELLS).map(({ label, state, worker, progress, metric, score, attempts, reason }) => {
    const number = score === null ? "" : `${Number(score.toPrecision(4))}${metric ? ` ${metric}` : ""}`;
    const far = progress ? `${progress.done} of ${progress.total}` : number;
    const who = state === "running" && worker ? `${worker.host}${worker.pid === null ? "" : ` ${worker.pid}`}` : "";
    return [state, label, far, who, reason ?? (attempts > 1 ? `attempts: ${attempts}` : "")];
  });
  const rest = cells.length - rows.length;
  return `${table(["", "", "", "", ""], rows)}${rest > 0 ? `\nand ${rest} more; --json has all` : ""}`;
}
