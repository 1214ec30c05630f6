/** @file Adapters of all tenants: what they take, who uses them; upload, load, pin, grant, remove. */
import { useState } from "react";
import { ask } from "../../api/client.ts";
import {
  ago,
  Badge,
  Button,
  bytes,
  Checkbox,
  type Column,
  ConfirmDialog,
  DataTable,
  Empty,
  ErrorNote,
  Loaded,
  number,
  SelectField,
  TextField,
} from "../../ui/index.ts";
import {
  ADAPTERS,
  type AdapterRow,
  adapterPath,
  hoursAgo,
  modelName,
  useAdapterExists,
  useAdapters,
  useChange,
  useRefresh,
  useTenants,
  useUsage,
} from "./api.ts";
import { useFilters } from "./filters.ts";
import { Operations } from "./frame.tsx";
import { Grants } from "./grants.tsx";
import { Pager, usePages } from "./pager.tsx";
import { Upload } from "./upload.tsx";

const EVERYBODY = "shared";

interface Used {
  readonly requests: number;
  readonly tokens: number;
}

interface Row extends AdapterRow, Used {}

const UNUSED: Used = { requests: 0, tokens: 0 };

type Action = "load" | "unload" | "pin" | "unpin";
const CHANGES: Record<Action, readonly [method: "PUT" | "DELETE", below: string, done: string]> = {
  load: ["PUT", "/resident", "is in memory"],
  unload: ["DELETE", "/resident", "is no longer in memory"],
  pin: ["PUT", "/pin", "is pinned"],
  unpin: ["DELETE", "/pin", "is no longer pinned"],
};

export function Adapters() {
  const tenants = useTenants();
  const owners = tenants.data?.map(({ id }) => id) ?? [];
  return (
    <Operations title="Adapters">
      <Upload owners={owners} useExists={useAdapterExists} pathOf={(owner, name) => adapterPath({ owner, name })} />
      <Installed owners={owners} />
    </Operations>
  );
}

function NoAdapters() {
  return (
    <Empty title="No adapter is installed">
      <p>Drop one above, or install it at the command line:</p>
      <pre>milora adapters install runs/my-run/best --name my-adapter</pre>
    </Empty>
  );
}

function Installed({ owners }: { owners: readonly string[] }) {
  const { get, set } = useFilters();
  const [text, owner, inMemory] = [get("q"), get("owner"), get("memory") !== ""];
  const whose = owner === EVERYBODY ? ({ shared: "1" } as const) : { owner: owner === "" ? undefined : owner };
  const filter = { q: text === "" ? undefined : text, ...whose, ...(inMemory && { resident: "1" as const }) };
  const pages = usePages(JSON.stringify(filter));
  const query = useAdapters({ ...filter, cursor: pages.cursor });
  const filtered = text !== "" || owner !== "" || inMemory;
  if (query.data?.total === 0 && !filtered) return <NoAdapters />;
  return (
    <>
      <div className="filters">
        <TextField label="Find" value={text} type="search" onChange={(event) => set("q", event.target.value)} />
        <SelectField
          label="Whose"
          options={[["", "all"], [EVERYBODY, "everybody"], ...owners.map((id) => [id, id] as const)]}
          value={owner}
          onChange={(event) => set("owner", event.target.value)}
        />
        <Checkbox
          label="Only those in memory"
          checked={inMemory}
          onChange={(event) => set("memory", event.target.checked ? "1" : "")}
        />
      </div>
      <Loaded query={query} what="Asking for adapters">
        {({ adapters, total, next }) =>
          adapters.length === 0 && pages.before === 0 ? (
            <Empty title="No adapter fits">
              <p>Take something off the filters.</p>
            </Empty>
          ) : (
            <>
              <Listed adapters={adapters} whole={next === null && pages.before === 0} />
              <Pager {...{ pages, size: ADAPTERS, shown: adapters.length, total, next, what: "adapters" }} />
            </>
          )
        }
      </Loaded>
    </>
  );
}

/** @param whole whether these are all that fit: of a page nothing can be sorted */
function Listed({ adapters, whole }: { adapters: readonly AdapterRow[]; whole: boolean }) {
  const [from] = useState(() => hoursAgo(24));
  const usage = useUsage(["adapter"], from);
  const [removing, setRemoving] = useState<AdapterRow>();
  const [granting, setGranting] = useState<AdapterRow>();
  const [told, setTold] = useState("");
  const refresh = useRefresh();
  const change = useChange(async ({ adapter, action }: { adapter: AdapterRow; action: Action }) => {
    const [method, below, done] = CHANGES[action];
    setTold("");
    await ask(adapterPath(adapter, below), { method });
    setTold(`${modelName(adapter)} ${done}.`);
  });

  const used = new Map<string, Used>();
  for (const { adapter = "", requests, promptTokens, completionTokens } of usage.data ?? []) {
    used.set(adapter, { requests, tokens: promptTokens + completionTokens });
  }
  const rows = adapters.map((adapter): Row => ({ ...adapter, ...(used.get(modelName(adapter)) ?? UNUSED) }));

  const act = (adapter: Row, action: Action, label: string) => (
    <Button
      small
      aria-label={`${label} ${modelName(adapter)}`}
      disabled={change.isPending && change.variables?.adapter.digest === adapter.digest}
      onClick={() => change.mutate({ adapter, action })}
    >
      {label}
    </Button>
  );
  const columns: Column<Row>[] = [
    ...(whole ? COLUMNS : COLUMNS.map(({ value: _, ...column }) => column)),
    {
      key: "actions",
      title: "Actions",
      cell: (adapter) => (
        <span className="actions">
          {adapter.resident ? act(adapter, "unload", "Unload") : act(adapter, "load", "Load")}
          {adapter.pinned ? act(adapter, "unpin", "Unpin") : act(adapter, "pin", "Pin")}
          {adapter.owner !== null && (
            <Button small aria-label={`Grants of ${modelName(adapter)}`} onClick={() => setGranting(adapter)}>
              Grants
            </Button>
          )}
          <Button small kind="danger" aria-label={`Remove ${modelName(adapter)}`} onClick={() => setRemoving(adapter)}>
            Remove
          </Button>
        </span>
      ),
    },
  ];
  return (
    <>
      {change.error && <ErrorNote error={change.error} />}
      <p role="status" className={told === "" ? "unseen" : "muted"}>
        {told}
      </p>
      <DataTable
        caption="Adapters"
        rows={rows}
        columns={columns}
        keyOf={modelName}
        {...(whole && { initialSort: { key: "name", down: false } })}
      />
      {removing && (
        <ConfirmDialog
          title={`Remove ${modelName(removing)}?`}
          confirm="Remove"
          onClose={() => setRemoving(undefined)}
          onConfirm={async () => {
            await ask(adapterPath(removing), { method: "DELETE" });
            setTold(`${modelName(removing)} was removed.`);
            change.reset();
            void refresh();
          }}
        >
          <p>
            Requests for it are refused from now on
            {removing.inFlight > 0 ? `; the ${removing.inFlight} under way end in peace` : ""}. To have it back it must
            be uploaded again.
          </p>
        </ConfirmDialog>
      )}
      {granting && granting.owner !== null && (
        <Grants owner={granting.owner} name={granting.name} onClose={() => setGranting(undefined)} />
      )}
    </>
  );
}

const COLUMNS: readonly Column<Row>[] = [
  { key: "name", title: "Adapter", head: true, cell: ({ name }) => name, value: ({ name }) => name },
  {
    key: "owner",
    title: "Owner",
    cell: ({ owner }) => owner ?? <span className="muted">everybody</span>,
    value: ({ owner }) => owner ?? "",
  },
  {
    key: "method",
    title: "Method, rank",
    cell: ({ method, rank }) => (rank === null ? method : `${method}, ${rank}`),
    value: ({ method }) => method,
  },
  {
    key: "bytes",
    title: "Size",
    numeric: true,
    cell: (row) => <span className="nowrap">{bytes(row.bytes)}</span>,
    value: (row) => row.bytes,
  },
  {
    key: "state",
    title: "State",
    cell: ({ resident, pinned, corrupt }) => (
      <span className="actions">
        {corrupt ? (
          <Badge kind="bad">damaged</Badge>
        ) : resident ? (
          <Badge kind="good">in memory</Badge>
        ) : (
          <Badge>on disk</Badge>
        )}
        {pinned && <Badge kind="accent">pinned</Badge>}
      </span>
    ),
    value: ({ resident, pinned }) => Number(resident) + 2 * Number(pinned),
  },
  {
    key: "inFlight",
    title: "Running",
    numeric: true,
    cell: ({ inFlight }) => number(inFlight),
    value: ({ inFlight }) => inFlight,
  },
  {
    key: "lastUsed",
    title: "Last used",
    cell: ({ lastUsed }) => <span className="nowrap">{ago(lastUsed)}</span>,
    value: ({ lastUsed }) => lastUsed,
  },
  {
    key: "requests",
    title: "Requests 24 h",
    numeric: true,
    cell: ({ requests }) => number(requests),
    value: ({ requests }) => requests,
  },
  {
    key: "tokens",
    title: "Tokens 24 h",
    numeric: true,
    cell: ({ tokens }) => number(tokens),
    value: ({ tokens }) => tokens,
  },
];
