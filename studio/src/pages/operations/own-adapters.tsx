/** @file A tenant's adapters: its own, those granted to it, and everybody's. */
import { keepPreviousData, useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { ask, withQuery } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import { ago, Badge, Button, bytes, type Column, ConfirmDialog, DataTable, Empty, Loaded, number, Page, TextField } from "../../ui/index.ts"; // biome-ignore format: one line
import { ADAPTERS } from "./api.ts";
import { useFilters } from "./filters.ts";
import { Pager, usePages } from "./pager.tsx";
import { Upload } from "./upload.tsx";
import "./operations.css";

interface OwnRow {
  readonly id: string;
  readonly owner: string | null;
  readonly name: string;
  readonly method: string;
  readonly rank: number | null;
  readonly bytes: number;
  /** Seconds since 1970. */
  readonly created: number;
  readonly resident?: boolean;
  readonly in_flight?: number;
  readonly last_used?: number | null;
}

interface OwnList {
  readonly data: readonly OwnRow[];
  readonly total: number;
  readonly next: string | null;
}

const PATH = "/v1/adapters";
const pathOf = (name: string): string => `${PATH}/${encodeURIComponent(name)}`;

export function OwnAdapters() {
  const { tenant } = useSession();
  const [removing, setRemoving] = useState<OwnRow>();
  const queries = useQueryClient();
  const { get, set } = useFilters();
  const text = get("q");
  const pages = usePages(text);
  const path = withQuery(PATH, { q: text === "" ? undefined : text, cursor: pages.cursor, limit: ADAPTERS });
  const queryKey = ["adapters"];
  const adapters = useQuery({
    queryKey: [...queryKey, path],
    queryFn: ({ signal }) => ask<OwnList>(path, { signal }),
    placeholderData: keepPreviousData,
    refetchInterval: 5000,
  });
  const actions: Column<OwnRow> = {
    key: "actions",
    title: "Actions",
    cell: (adapter) =>
      adapter.owner === tenant && (
        <Button small kind="danger" aria-label={`Remove ${adapter.name}`} onClick={() => setRemoving(adapter)}>
          Remove
        </Button>
      ),
  };
  return (
    <Page title="Adapters">
      <Upload owners={undefined} useExists={useOwnExists} pathOf={(_, name) => pathOf(name)} />
      <Loaded query={adapters} what="Asking for adapters">
        {({ data, total, next }) =>
          total === 0 && text === "" ? (
            <Empty title="You have no adapter yet">
              <p>Drop one above. Until then requests can ask for the backbone.</p>
            </Empty>
          ) : (
            <>
              <div className="filters">
                <TextField label="Find" value={text} type="search" onChange={({ target }) => set("q", target.value)} />
              </div>
              <DataTable
                caption="Adapters"
                rows={data}
                columns={[...columnsFor(tenant, next === null && pages.before === 0), actions]}
                keyOf={({ id }) => id}
                {...(next === null && pages.before === 0 && { initialSort: { key: "id", down: false } })}
              />
              <Pager {...{ pages, size: ADAPTERS, shown: data.length, total, next, what: "adapters" }} />
            </>
          )
        }
      </Loaded>
      {removing && (
        <ConfirmDialog
          title={`Remove ${removing.name}?`}
          confirm="Remove"
          onClose={() => setRemoving(undefined)}
          onConfirm={async () => {
            await ask(pathOf(removing.name), { method: "DELETE" });
            void queries.invalidateQueries({ queryKey });
          }}
        >
          <p>
            Requests for it are refused from now on; those under way end in peace. To have it back it must be uploaded
            again.
          </p>
        </ConfirmDialog>
      )}
    </Page>
  );
}

/** Whether the caller has one of this name. */
function useOwnExists(_owner: string | null, name: string): boolean {
  const path = withQuery(PATH, { own: "1", name, limit: 1 });
  const { data } = useQuery({
    queryKey: ["adapters", path],
    queryFn: ({ signal }) => ask<OwnList>(path, { signal }),
    enabled: name !== "",
  });
  return (data?.total ?? 0) > 0;
}

/** What requests call it: its own by the bare name. */
const calledBy = (tenant: string | null, { id, owner, name }: OwnRow): string => (owner === tenant ? name : id);

/** @param whole whether these are all that fit: of a page nothing can be sorted */
function columnsFor(tenant: string | null, whole: boolean): readonly Column<OwnRow>[] {
  const columns = allColumns(tenant);
  return whole ? columns : columns.map(({ value: _, ...column }) => column);
}

const allColumns = (tenant: string | null): readonly Column<OwnRow>[] => [
  {
    key: "id",
    title: "Adapter",
    head: true,
    cell: (row) => calledBy(tenant, row),
    value: (row) => calledBy(tenant, row),
  },
  {
    key: "owner",
    title: "Whose",
    cell: ({ owner }) =>
      owner === tenant ? (
        <Badge kind="accent">yours</Badge>
      ) : owner === null ? (
        <span className="muted">everybody's</span>
      ) : (
        `granted by ${owner}`
      ),
    value: ({ owner }) => owner ?? "",
  },
  { key: "method", title: "Method", cell: ({ method }) => method, value: ({ method }) => method },
  { key: "rank", title: "Rank", numeric: true, cell: ({ rank }) => number(rank), value: ({ rank }) => rank },
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
    cell: ({ resident }) => (resident ? <Badge kind="good">in memory</Badge> : <Badge>on disk</Badge>),
    value: ({ resident }) => Number(resident ?? false),
  },
  {
    key: "inFlight",
    title: "Running",
    numeric: true,
    cell: ({ in_flight }) => number(in_flight),
    value: ({ in_flight = 0 }) => in_flight,
  },
  {
    key: "lastUsed",
    title: "Last used",
    cell: ({ last_used }) => <span className="nowrap">{ago(last_used ? last_used * 1000 : null)}</span>,
    value: ({ last_used = null }) => last_used,
  },
];
