/** @file The last answers with an error. */
import type { ServerErrorEntry } from "../../../../src/serving/studio/types.ts";
import { Badge, type Column, CopyButton, DataTable, Empty, Loaded, SelectField, TextField } from "../../ui/index.ts"; // biome-ignore format: one line
import { useErrors } from "./api.ts";
import { useFilters } from "./filters.ts";
import { Operations } from "./frame.tsx";

export function Errors() {
  const errors = useErrors();
  return (
    <Operations title="Errors">
      <p className="muted">
        The last 200 answers with an error. Nothing of what was sent is kept; the server's log has each request by its
        id.
      </p>
      <Loaded query={errors} what="Asking for errors">
        {(all) =>
          all.length === 0 ? (
            <Empty title="No errors">
              <p>Nothing was refused, and nothing has failed, since the server started.</p>
            </Empty>
          ) : (
            <ErrorTable errors={all} />
          )
        }
      </Loaded>
    </Operations>
  );
}

function ErrorTable({ errors }: { errors: readonly ServerErrorEntry[] }) {
  const { get, set } = useFilters();
  const status = get("status");
  const text = get("q");
  const statuses = [...new Set(errors.map((error) => String(error.status)))].sort();
  const shown = errors
    .filter((error) => status === "" || String(error.status) === status)
    .filter((error) => Object.values(error).join(" ").toLowerCase().includes(text.toLowerCase()));
  return (
    <>
      <div className="filters">
        <SelectField
          label="Status"
          options={[["", "all"], ...statuses.map((one) => [one, one] as const)]}
          value={status}
          onChange={(event) => set("status", event.target.value)}
        />
        <TextField
          label="Find"
          hint="A code, route, tenant, adapter or request id."
          type="search"
          value={text}
          onChange={(event) => set("q", event.target.value)}
        />
      </div>
      {shown.length === 0 ? (
        <Empty title="No error fits" />
      ) : (
        <DataTable
          caption="Errors"
          rows={shown}
          columns={COLUMNS}
          keyOf={({ at, requestId }) => `${at} ${requestId}`}
        />
      )}
    </>
  );
}

const toTheSecond = (at: string): string =>
  new Date(at).toLocaleString("en", { dateStyle: "medium", timeStyle: "medium" });

const COLUMNS: readonly Column<ServerErrorEntry>[] = [
  {
    key: "at",
    title: "When",
    cell: ({ at }) => (
      <time dateTime={at} title={at} className="nowrap">
        {toTheSecond(at)}
      </time>
    ),
    value: ({ at }) => at,
  },
  {
    key: "status",
    title: "Status",
    cell: ({ status }) => <Badge kind={status >= 400 && status < 500 ? "warn" : "bad"}>{status}</Badge>,
    value: ({ status }) => status,
  },
  { key: "code", title: "Code", head: true, cell: ({ code }) => <code>{code}</code>, value: ({ code }) => code },
  {
    key: "route",
    title: "Route",
    cell: ({ method, route }) => (
      <code className="nowrap">
        {method} {route}
      </code>
    ),
    value: ({ route }) => route,
  },
  { key: "tenant", title: "Tenant", cell: ({ tenant }) => tenant ?? "–", value: ({ tenant }) => tenant },
  { key: "adapter", title: "Adapter", cell: ({ adapter }) => adapter ?? "–", value: ({ adapter }) => adapter },
  {
    key: "requestId",
    title: "Request",
    cell: ({ requestId }) => (
      <span className="actions">
        <code title={requestId}>{requestId.length > 16 ? `${requestId.slice(0, 16)}…` : requestId}</code>
        <CopyButton text={requestId} />
      </span>
    ),
  },
];
