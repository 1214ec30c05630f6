/** @file Follows a reproduction: a bar for what runs, a line on stderr for what is finished. */
import { openCells, openRuns, type RunEvent, type Work } from "../../evaluation/index.ts";
import { type Progress, startProgress } from "../progress.ts";
import { duration, note, percent } from "../terminal.ts";

interface Follower extends Disposable {
  readonly onEvent: (event: RunEvent) => void;
}

export function follow(plan: Work): Follower {
  const total = openRuns(plan).length + openCells(plan).length;
  let done = 0;
  let bar: Progress | undefined;
  let title = "";
  const stop = () => {
    bar?.stop();
    bar = undefined;
  };
  const begin = (text: string) => {
    stop();
    title = text;
  };
  const move = (at: number, of: number, facts: readonly string[]) => {
    bar ??= startProgress(title, of);
    bar.update(at, facts);
  };
  const finished = (text: string) => {
    stop();
    done++;
    note(`[${done}/${total}] ${text}`);
  };
  const onEvent = (event: RunEvent): void => {
    if (event.type === "training") {
      const [first, ...rest] = event.runs;
      begin(rest.length ? `${first!.label} and ${rest.length} more` : first!.label);
    } else if (event.type === "measuring") begin(event.cell.label);
    else if (event.type === "step") move(event.step, event.totalSteps, [`loss ${event.loss.toFixed(2)}`]);
    else if (event.type === "row") move(event.done, event.total, [`${event.done} of ${event.total} rows`]);
    else if (event.type === "trained") finished(`trained ${event.run.label}: ${duration(event.seconds)}`);
    else if (event.type === "measured") finished(`${event.cell.label}${measuredText(event)}`);
    else finished(`failed ${event.label}: ${event.reason}`);
  };
  return { onEvent, [Symbol.dispose]: stop };
}

function measuredText({ cell, value }: Extract<RunEvent, { type: "measured" }>): string {
  if (cell.cell.kind === "score") {
    const { metric, value: score } = value as { metric: string; value: number };
    return `: ${metric === "perplexity" ? score.toFixed(3) : percent(score)}`;
  }
  if (cell.cell.kind === "accuracy") return `: ${percent((value as { value: number }).value)}`;
  if (cell.cell.kind === "judged") return `: ${(value as { value: number | null }).value?.toFixed(2) ?? "no rating"}`;
  if (cell.cell.kind === "speed")
    return `: ${Math.round((value as { tokensPerSecond: number }).tokensPerSecond)} tokens/s`;
  return "";
}
