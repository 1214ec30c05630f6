/** @file What the server does now and did in the last minutes, as it happens. */
import { useMemo } from "react";
import { Link } from "wouter";
import type { ServerHistory, ServerStatus } from "../../../../src/serving/studio/types.ts";
import { Badge, bytes, Card, DataTable, duration, Loaded, number, SelectField, Stats } from "../../ui/index.ts";
import { modelName, useAdapters, useStatus } from "./api.ts";
import { useFilters } from "./filters.ts";
import { Meter, Operations } from "./frame.tsx";
import { pointsOf, useHistory } from "./history.ts";
import { type Line, LiveChart } from "./live-chart.tsx";

const SPANS = [
  ["300", "5 minutes"],
  ["900", "15 minutes"],
  ["3600", "1 hour"],
] as const;

export function Overview() {
  const { get, set } = useFilters();
  const span = SPANS.find(([seconds]) => seconds === get("span"))?.[0] ?? "900";
  const status = useStatus();
  const history = useHistory(Number(span));
  return (
    <Operations title="Overview">
      <Loaded query={status} what="Asking the server">
        {(now) => <Now status={now} />}
      </Loaded>
      <div className="narrow">
        <SelectField
          label="Charts show the last"
          options={SPANS}
          value={span}
          onChange={(event) => set("span", event.target.value)}
        />
      </div>
      <Loaded query={history} what="Reading the last minutes">
        {(last) => <Charts history={last} />}
      </Loaded>
      <Loaded query={status}>{(now) => <Details status={now} />}</Loaded>
      <Residents />
    </Operations>
  );
}

function Now({ status }: { status: ServerStatus }) {
  const { draining, uptimeSeconds, running, waiting, rows, adapters, limits } = status;
  return (
    <Card>
      {draining && <Badge kind="warn">ending: no new requests are taken</Badge>}
      <Stats
        of={[
          ["Requests running", number(running)],
          ["Requests waiting", `${number(waiting)} of ${number(limits.maxWaiting)}`],
          ["Sequences decoding", `${number(rows)} of ${number(limits.maxBatch)}`],
          ["Adapters decoding", number(adapters)],
          ["Adapters in memory", number(status.residentAdapters)],
          ["Up for", duration(uptimeSeconds)],
        ]}
      />
    </Card>
  );
}

function Details({ status }: { status: ServerStatus }) {
  const { residentBytes, residentLimitBytes, kvBytes, kvTokens, prefixCacheBytes, rssBytes, tenants } = status;
  return (
    <div className="grid">
      <Card title="Memory">
        <Meter label="Adapters" value={residentBytes} most={residentLimitBytes} show={bytes} />
        <Stats
          of={[
            ["Process", bytes(rssBytes)],
            ["Keys and values", bytes(kvBytes)],
            ["Positions in use", number(kvTokens)],
            ["Prefix cache", bytes(prefixCacheBytes)],
          ]}
        />
      </Card>
      <Card title="By tenant">
        {tenants.length === 0 ? (
          <p className="muted">Nobody has a request under way.</p>
        ) : (
          <DataTable
            caption="Requests by tenant"
            rows={tenants}
            keyOf={({ tenant }) => tenant}
            columns={[
              { key: "tenant", title: "Tenant", head: true, cell: ({ tenant }) => tenant },
              { key: "running", title: "Running", numeric: true, cell: ({ running }) => number(running) },
              { key: "waiting", title: "Waiting", numeric: true, cell: ({ waiting }) => number(waiting) },
            ]}
          />
        )}
      </Card>
    </div>
  );
}

const TOKENS: readonly Line[] = [{ label: "tokens", of: ({ tokens }) => tokens, series: 1 }];
const QUEUE: readonly Line[] = [
  { label: "running", of: ({ running }) => running, series: 1 },
  { label: "waiting", of: ({ waiting }) => waiting, series: 2 },
];
const FIRST: readonly Line[] = [
  { label: "p50", of: ({ firstTokenP50 }) => firstTokenP50, series: 1 },
  { label: "p95", of: ({ firstTokenP95 }) => firstTokenP95, series: 2 },
];
const BETWEEN: readonly Line[] = [
  { label: "p50", of: ({ betweenTokensP50 }) => betweenTokensP50, series: 1 },
  { label: "p95", of: ({ betweenTokensP95 }) => betweenTokensP95, series: 2 },
];
const ANSWERS: readonly Line[] = [
  { label: "requests", of: ({ requests }) => requests, series: 1 },
  { label: "errors", of: ({ errors }) => errors, series: 2 },
];

function Charts({ history }: { history: ServerHistory }) {
  const points = useMemo(() => pointsOf(history), [history]);
  return (
    <div className="grid">
      <LiveChart title="Tokens a second" unit="tokens/s" points={points} lines={TOKENS} />
      <LiveChart title="Requests running and waiting" unit="requests" points={points} lines={QUEUE} />
      <LiveChart title="Time to first token" unit="ms" points={points} lines={FIRST} />
      <LiveChart title="Time between tokens" unit="ms" points={points} lines={BETWEEN} />
      <LiveChart title="Answers and errors a second" unit="answers/s" points={points} lines={ANSWERS} />
    </div>
  );
}

function Residents() {
  const adapters = useAdapters({ resident: "1" });
  return (
    <Card title="Adapters in memory" tools={<Link href="/operations/adapters">All adapters</Link>}>
      <Loaded query={adapters} what="Asking for adapters">
        {({ adapters: resident, total }) => {
          if (resident.length === 0) return <p className="muted">None: each is loaded by the first request for it.</p>;
          return (
            <>
              <DataTable
                caption="Memory of each adapter"
                rows={resident}
                keyOf={modelName}
                initialSort={{ key: "bytes", down: true }}
                columns={[
                  { key: "name", title: "Adapter", head: true, cell: modelName, value: modelName },
                  { key: "method", title: "Method", cell: ({ method }) => method, value: ({ method }) => method },
                  {
                    key: "bytes",
                    title: "Memory",
                    numeric: true,
                    cell: (adapter) => bytes(adapter.residentBytes),
                    value: (adapter) => adapter.residentBytes,
                  },
                  {
                    key: "inFlight",
                    title: "Under way",
                    numeric: true,
                    cell: (adapter) => number(adapter.inFlight),
                    value: (adapter) => adapter.inFlight,
                  },
                  {
                    key: "pinned",
                    title: "Pinned",
                    cell: ({ pinned }) => (pinned ? <Badge kind="accent">pinned</Badge> : "no"),
                  },
                ]}
              />
              {total > resident.length && (
                <p className="muted">
                  {resident.length} of {total}; all of them are under{" "}
                  <Link href="/operations/adapters?memory=1">adapters</Link>.
                </p>
              )}
            </>
          );
        }}
      </Loaded>
    </Card>
  );
}
