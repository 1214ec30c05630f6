/** @file All runs: which there are, how they stand, and which to compare. */
import { useMemo } from "react";
import { Link } from "wouter";
import type { RunSummary } from "../../../../src/serving/studio/types.ts";
import {
  ago,
  Button,
  type Column,
  DataTable,
  duration,
  Empty,
  Loaded,
  number,
  percent,
  SelectField,
  TextField,
  time,
} from "../../ui/index.ts";
import { compareLink, runLink, useAddress } from "./address.ts";
import { useRuns } from "./api.ts";
import { StateBadge, Steps } from "./state.tsx";

/** More lines in one chart are not told apart. */
const MOST_COMPARED = 6;

export function RunList() {
  return (
    <Loaded query={useRuns()} what="Looking for runs">
      {(runs) => (runs.length === 0 ? <NoRuns /> : <Listed runs={runs} />)}
    </Loaded>
  );
}

function NoRuns() {
  return (
    <Empty title="There are no runs yet">
      <p>A run appears here as soon as its training has begun:</p>
      <pre>
        milora train --model assets/tiny-llama --train assets/data/subjects/train.jsonl \{"\n"}
        {"  "}--method milora --output runs/subjects
      </pre>
    </Empty>
  );
}

function Listed({ runs }: { runs: readonly RunSummary[] }) {
  const address = useAddress();
  const { get, all, set } = address;
  const [text, state, method] = [get("q") ?? "", get("state") ?? "", get("method") ?? ""];
  const known = new Set(runs.map(({ id }) => id));
  const picked = all("pick").filter((id) => known.has(id));
  const found = runs.filter(
    (run) =>
      run.id.toLowerCase().includes(text.toLowerCase()) &&
      (state === "" || state === (run.problem === null ? run.state : "broken")) &&
      (method === "" || method === run.method),
  );
  const methods = [...new Set(runs.map((run) => run.method))].filter((name) => name !== "").sort();
  const sort = get("sort");
  const columns = useColumns(picked, (pick) => set({ pick }));
  return (
    <div className="stack">
      <div className="row end filters">
        <TextField label="Name" type="search" value={text} onChange={({ target }) => set({ q: target.value })} />
        <SelectField
          label="State"
          value={state}
          options={[["", "all"], "running", "finished", "stopped", "broken"]}
          onChange={({ target }) => set({ state: target.value })}
        />
        <SelectField
          label="Method"
          value={method}
          options={[["", "all"], ...methods]}
          onChange={({ target }) => set({ method: target.value })}
        />
        <Compare picked={picked} onClear={() => set({ pick: [] })} />
      </div>
      <p className="muted" role="status">
        {found.length === runs.length ? `${runs.length} runs` : `${found.length} of ${runs.length} runs`}
      </p>
      {found.length === 0 ? (
        <Empty title="No run is like that">
          <Button onClick={() => set({ q: undefined, state: undefined, method: undefined })}>Show all</Button>
        </Empty>
      ) : (
        <DataTable
          caption="Runs"
          columns={columns}
          rows={found}
          keyOf={({ id }) => id}
          sort={{ key: sort ?? "updated", down: sort === undefined ? true : get("down") === "1" }}
          onSort={({ key, down }) => set({ sort: key, down: down ? "1" : undefined })}
        />
      )}
    </div>
  );
}

function Compare({ picked, onClear }: { picked: readonly string[]; onClear: () => void }) {
  if (picked.length === 0) return <span className="muted">Check runs to compare up to {MOST_COMPARED} of them.</span>;
  return (
    <>
      {picked.length > 1 ? (
        <Link className="button primary" href={compareLink(picked)}>
          Compare {picked.length} runs
        </Link>
      ) : (
        <span className="muted">Check another to compare them.</span>
      )}
      <Button onClick={onClear}>Uncheck</Button>
    </>
  );
}

function useColumns(picked: readonly string[], pick: (ids: readonly string[]) => void): readonly Column<RunSummary>[] {
  const key = picked.join("\n");
  // biome-ignore lint/correctness/useExhaustiveDependencies: `pick` only sets the address, `key` is what is picked
  return useMemo(
    () => [
      {
        key: "pick",
        title: "Compare",
        cell: ({ id, problem }) => (
          <input
            type="checkbox"
            aria-label={`Compare ${id}`}
            checked={picked.includes(id)}
            disabled={problem !== null || (picked.length === MOST_COMPARED && !picked.includes(id))}
            onChange={({ target }) => pick(target.checked ? [...picked, id] : picked.filter((one) => one !== id))}
          />
        ),
      },
      {
        ...{ key: "name", title: "Name", head: true, value: ({ id }) => id },
        cell: (run) => (
          <>
            <Link href={runLink(run.id)}>{run.id}</Link>
            {run.problem !== null && <p className="problem">{run.problem}</p>}
            {run.problem === null && run.indexed < 1 && (
              <p className="muted">{percent(run.indexed)} of its metrics have been read so far</p>
            )}
          </>
        ),
      },
      {
        ...{ key: "state", title: "State", value: ({ state, problem }) => (problem === null ? state : "") },
        cell: (run) => <StateBadge run={run} />,
      },
      { key: "method", title: "Method", value: ({ method }) => method, cell: ({ method }) => method },
      { key: "steps", title: "Steps", value: ({ step }) => step, cell: (run) => <Steps run={run} /> },
      figure("loss", "Loss", ({ loss }) => loss),
      figure("perplexity", "Best perplexity", ({ bestPerplexity }) => bestPerplexity),
      figure("speed", "Tokens/s", ({ tokensPerSecond }) => tokensPerSecond && Math.round(tokensPerSecond)),
      {
        ...{ key: "time", title: "Time", numeric: true, value: ({ seconds }) => seconds },
        cell: ({ seconds }) => <span className="nowrap">{duration(seconds)}</span>,
      },
      {
        ...{ key: "updated", title: "Updated", value: ({ updatedAt }) => updatedAt },
        cell: ({ updatedAt }) => (
          <time className="nowrap" dateTime={updatedAt} title={time(updatedAt)}>
            {ago(updatedAt)}
          </time>
        ),
      },
    ],
    [key],
  );
}

function figure(key: string, title: string, value: (run: RunSummary) => number | null): Column<RunSummary> {
  return { key, title, value, numeric: true, cell: (run) => number(value(run), 4) };
}
