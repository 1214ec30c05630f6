/** @file How it stands with a run, in few signs. */
import type { RunSummary } from "../../../../src/serving/studio/types.ts";
import { Badge, percent } from "../../ui/index.ts";

export function StateBadge({ run: { problem, state } }: { run: RunSummary }) {
  if (problem !== null) return <Badge kind="bad">broken</Badge>;
  return <Badge kind={state === "running" ? "accent" : state === "finished" ? "good" : "plain"}>{state}</Badge>;
}

/** Steps are told one by one, however many there are. */
export const counted = (steps: number): string => steps.toLocaleString("en");

export function Steps({ run: { step, plannedSteps, name } }: { run: RunSummary }) {
  if (plannedSteps === null) return counted(step);
  return (
    <span className="steps">
      <progress max={plannedSteps} value={Math.min(step, plannedSteps)} aria-label={`Steps of ${name}`} />
      <span className="nowrap">
        {counted(step)} of {counted(plannedSteps)}
      </span>
    </span>
  );
}

/** Says that numbers are of a part of the file; nothing otherwise. */
export function Reading({ indexed }: { indexed: number }) {
  if (indexed === 1) return null;
  return (
    <div className="note" role="status">
      <p>A long run: {percent(indexed)} of its metrics have been read so far.</p>
      <progress max={1} value={indexed} aria-label="Metrics that have been read" />
    </div>
  );
}
