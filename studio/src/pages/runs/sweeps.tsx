/** @file Grids that workers do: which there are, how far they are, and who works. */
import { Link } from "wouter";
import type { SweepList as Listed, SweepSummary, SweepWorker } from "../../../../src/serving/studio/types.ts";
import { ago, Badge, Card, type Column, DataTable, Empty, Loaded, time } from "../../ui/index.ts";
import { link } from "./address.ts";
import { useSweeps } from "./sweep-api.ts";

export const sweepLink = (id: string): string => link("/runs/sweep", { id });

export function Share({ of: { done, total }, what }: { of: { done: number; total: number }; what: string }) {
  return (
    <span className="steps">
      <progress max={Math.max(1, total)} value={done} aria-label={what} />
      <span className="nowrap">
        {done} of {total}
      </span>
    </span>
  );
}

/** How it stands with all of it. */
export function SweepBadge({ sweep: { jobs } }: { sweep: SweepSummary }) {
  if (jobs.running > 0) return <Badge kind="accent">running</Badge>;
  if (jobs.waiting + jobs.retrying > 0) return <Badge>waiting</Badge>;
  return jobs.failed > 0 ? <Badge kind="bad">failed in part</Badge> : <Badge kind="good">finished</Badge>;
}

const COLUMNS: readonly Column<SweepSummary>[] = [
  {
    ...{ key: "name", title: "Name", head: true, value: ({ directory }) => directory },
    cell: ({ id, name, directory }) => (
      <>
        <Link href={sweepLink(id)}>{name}</Link>
        <p className="muted value">{directory}</p>
      </>
    ),
  },
  { key: "state", title: "State", cell: (sweep) => <SweepBadge sweep={sweep} /> },
  {
    ...{ key: "trainings", title: "Trainings", value: ({ trainings }) => trainings.total },
    cell: ({ trainings, name }) => <Share of={trainings} what={`Trainings of ${name}`} />,
  },
  {
    ...{ key: "cells", title: "Measured", value: ({ cells }) => cells.total },
    cell: ({ cells, name }) => <Share of={cells} what={`Measured cells of ${name}`} />,
  },
  count("running", "Running", ({ jobs }) => jobs.running),
  count("waiting", "Waiting", ({ jobs }) => jobs.waiting + jobs.retrying),
  count("failed", "Failed", ({ jobs }) => jobs.failed),
  {
    ...{ key: "created", title: "Made", value: ({ createdAt }) => createdAt },
    cell: ({ createdAt }) => <span className="nowrap">{time(createdAt)}</span>,
  },
];

function count(key: string, title: string, value: (sweep: SweepSummary) => number): Column<SweepSummary> {
  return { key, title, value, numeric: true, cell: value };
}

export function SweepList() {
  return (
    <Loaded query={useSweeps()} what="Looking for sweeps">
      {({ sweeps, workers }) => (
        <div className="stack">
          {sweeps.length === 0 ? (
            <Empty title="There are no sweeps yet">
              <p>A grid appears here as soon as its jobs are in this database:</p>
              <pre>milora sweep start grid.yaml --output /shared/grid --database URL</pre>
            </Empty>
          ) : (
            <DataTable
              caption="Sweeps"
              columns={COLUMNS}
              rows={sweeps}
              keyOf={({ id }) => id}
              initialSort={{ key: "created", down: true }}
            />
          )}
          <Workers workers={workers} sweeps={sweeps} />
        </div>
      )}
    </Loaded>
  );
}

const WORKERS: readonly Column<SweepWorker>[] = [
  { key: "host", title: "Machine", head: true, value: ({ host }) => host, cell: ({ host }) => host },
  { key: "pid", title: "Process", numeric: true, cell: ({ pid }) => pid },
  { key: "slots", title: "Jobs at a time", numeric: true, value: ({ slots }) => slots, cell: ({ slots }) => slots },
  { key: "version", title: "Version", cell: ({ version }) => version },
  { key: "heard", title: "Heard of", cell: ({ heardAt }) => <span className="nowrap">{ago(heardAt)}</span> },
  { key: "since", title: "Since", cell: ({ startedAt }) => <span className="nowrap">{time(startedAt)}</span> },
];

function Workers({ workers, sweeps }: { workers: readonly SweepWorker[]; sweeps: Listed["sweeps"] }) {
  const nameOf = (id: string) => sweeps.find((sweep) => sweep.id === id)?.name ?? id;
  const left = workers.flatMap(({ host, pid, shunned }) =>
    shunned.map(({ sweep, reason }) => `${host} ${pid} leaves ${nameOf(sweep)} to others: ${reason}`),
  );
  return (
    <Card title="Workers">
      {workers.length === 0 ? (
        <p>
          No worker is there. <code>milora worker --database URL</code> starts one.
        </p>
      ) : (
        <DataTable caption="Workers" columns={WORKERS} rows={workers} keyOf={({ host, pid }) => `${host} ${pid}`} />
      )}
      {left.map((line) => (
        <p key={line} className="problem">
          {line}
        </p>
      ))}
    </Card>
  );
}
