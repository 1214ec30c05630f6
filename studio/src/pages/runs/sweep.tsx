/** @file One sweep while it goes on: each cell with its state, who does it, its score or why it failed, and another try. */
import { Link } from "wouter";
import type { SweepCell, SweepCellState, SweepDetail } from "../../../../src/serving/studio/types.ts";
import {
  ago,
  Badge,
  Button,
  type Column,
  DataTable,
  duration,
  Empty,
  ErrorNote,
  Loaded,
  number,
  Page,
  percent,
  SelectField,
  Stats,
  TextField,
} from "../../ui/index.ts";
import { type Address, runLink, useAddress } from "./address.ts";
import { CELLS, useRetry, useSweep } from "./sweep-api.ts";
import { Share, SweepBadge } from "./sweeps.tsx";

const STATES: readonly SweepCellState[] = ["running", "waiting", "retrying", "failed", "done"];
const KINDS = { running: "accent", waiting: "plain", retrying: "warn", failed: "bad", done: "good" } as const;

export function SweepPage({ id }: { id: string }) {
  const address = useAddress();
  const { get } = address;
  const state = STATES.find((known) => known === get("state"));
  const from = Math.max(0, Math.trunc(Number(get("from") ?? 0)) || 0);
  const query = useSweep(id, { state, text: get("q"), from });
  return (
    <Page title={query.data?.name ?? id} tools={<Link href="/runs/sweeps">All sweeps</Link>}>
      <Loaded query={query} what="Reading the sweep">
        {(sweep) => <Shown sweep={sweep} address={address} state={state} />}
      </Loaded>
    </Page>
  );
}

function Shown({
  sweep,
  address: { get, set },
  state,
}: {
  sweep: SweepDetail;
  address: Address;
  state: SweepCellState | undefined;
}) {
  const retry = useRetry(sweep.id);
  const { states, jobs, list, matching } = sweep;
  const options = STATES.map((name) => [name, `${name}: ${states[name]}`] as const);
  return (
    <div className="stack">
      <Facts sweep={sweep} />
      {retry.error && <ErrorNote error={retry.error} />}
      <div className="row end filters">
        <TextField
          label="Name"
          type="search"
          value={get("q") ?? ""}
          onChange={({ target }) => set({ q: target.value, from: undefined })}
        />
        <SelectField
          label="State"
          value={state ?? ""}
          options={[["", "all"], ...options]}
          onChange={({ target }) => set({ state: target.value, from: undefined })}
        />
        {jobs.failed > 0 && (
          <Button disabled={retry.isPending} onClick={() => retry.mutate(undefined)}>
            Try again all {jobs.failed === 1 ? "that failed" : `${jobs.failed} jobs that failed`}
          </Button>
        )}
      </div>
      <p className="muted" role="status">
        <span>{matching === 1 ? "1 cell" : `${matching} cells`}</span>
        {retry.data && (
          <span> · {retry.data.jobs === 1 ? "1 job waits again" : `${retry.data.jobs} jobs wait again`}</span>
        )}
      </p>
      {list.length === 0 ? (
        <Empty title="No cell is like that">
          <Button onClick={() => set({ q: undefined, state: undefined, from: undefined })}>Show all</Button>
        </Empty>
      ) : (
        <DataTable
          caption="Cells"
          columns={columnsOf((job) => retry.mutate([job]), retry.isPending)}
          rows={list}
          keyOf={({ id }) => id}
        />
      )}
      <Pages sweep={sweep} set={set} />
    </div>
  );
}

function Pages({ sweep: { from, matching, list }, set }: { sweep: SweepDetail; set: Address["set"] }) {
  if (from === 0 && matching <= CELLS) return null;
  return (
    <nav className="row" aria-label="Pages of cells">
      <Button small disabled={from === 0} onClick={() => set({ from: Math.max(0, from - CELLS) || undefined })}>
        Before
      </Button>
      <span className="muted">
        {list.length === 0 ? "none" : `${from + 1} to ${from + list.length}`} of {matching}
      </span>
      <Button small disabled={from + list.length >= matching} onClick={() => set({ from: from + CELLS })}>
        After
      </Button>
    </nav>
  );
}

function Facts({ sweep }: { sweep: SweepDetail }) {
  const { trainings, cells, jobs, slots, perHour, secondsLeft, directory } = sweep;
  const open = jobs.waiting + jobs.retrying + jobs.running > 0;
  return (
    <div className="card stack">
      <div className="row">
        <SweepBadge sweep={sweep} />
        <span className="value">{directory}</span>
      </div>
      <Stats
        of={[
          ["Trainings", <Share key="trainings" of={trainings} what="Trainings" />],
          ["Measured", <Share key="cells" of={cells} what="Measured cells" />],
          ["Jobs running", number(jobs.running)],
          ["Jobs waiting", number(jobs.waiting + jobs.retrying)],
          ["Jobs failed", number(jobs.failed)],
          ["Jobs at a time", slots === 0 ? "no worker is there" : number(slots)],
          ["Finished an hour", number(Math.round(perHour))],
          ...(open
            ? [["Left", secondsLeft === null ? "not known yet" : `about ${duration(secondsLeft)}`] as const]
            : []),
        ]}
      />
    </div>
  );
}

/** Shares in percent, as tables show them. */
function scoreText({ metric, score }: SweepCell): string {
  if (score === null) return "";
  if (metric === null || /perplexity|tokens|rating/.test(metric)) return number(score, 4);
  return percent(score, 1);
}

function columnsOf(retry: (job: string) => void, busy: boolean): readonly Column<SweepCell>[] {
  return [
    { key: "state", title: "State", cell: ({ state }) => <Badge kind={KINDS[state]}>{state}</Badge> },
    {
      ...{ key: "label", title: "Cell", head: true },
      cell: ({ label, run, kind, state, reason, code, retryAt, job }) => (
        <>
          {run === null ? label : <Link href={runLink(run)}>{label}</Link>}
          {kind === "training" && <span className="muted"> training</span>}
          {reason !== null && (
            <p className="problem">
              {reason}
              {code !== null && ` (${code})`}
              {retryAt !== null &&
                new Date(retryAt) > new Date() &&
                `; again after ${new Date(retryAt).toLocaleTimeString("en")}`}
            </p>
          )}
          {state === "failed" && (
            <Button small disabled={busy} onClick={() => retry(job)}>
              Try again<span className="unseen"> {label}</span>
            </Button>
          )}
        </>
      ),
    },
    {
      ...{ key: "far", title: "Score" },
      cell: (cell) =>
        cell.progress ? (
          <Share of={cell.progress} what={`Progress of ${cell.label}`} />
        ) : (
          <span className="nowrap">
            {scoreText(cell)}{" "}
            {cell.score !== null && cell.metric !== null && <span className="muted">{cell.metric}</span>}
          </span>
        ),
    },
    {
      ...{ key: "worker", title: "Worker" },
      cell: ({ worker, state }) =>
        worker && state !== "waiting" ? (
          <>
            <span className="nowrap">
              {worker.host} {worker.pid ?? ""}
            </span>
            {state === "running" && <p className="muted nowrap">heard of {ago(worker.heardAt)}</p>}
          </>
        ) : null,
    },
    { key: "attempts", title: "Attempts", numeric: true, cell: ({ attempts }) => (attempts === 0 ? "" : attempts) },
    {
      ...{ key: "seconds", title: "Time", numeric: true },
      cell: ({ seconds }) => (seconds === null ? "" : <span className="nowrap">{duration(seconds)}</span>),
    },
  ];
}
