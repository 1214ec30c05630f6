/** @file A tenant's adapters: its own, those granted to it, and everybody's. */
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { ask } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import { ago, Badge, Button, bytes, type Column, ConfirmDialog, DataTable, Empty, Loaded, number, Page } from "../../ui/index.ts"; // biome-ignore format: one line
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

const PATH = "/v1/adapters";
const pathOf = (name: string): string => `${PATH}/${encodeURIComponent(name)}`;

export function OwnAdapters() {
  const { tenant } = useSession();
  const [removing, setRemoving] = useState<OwnRow>();
  const queries = useQueryClient();
  const queryKey = ["adapters"];
  const adapters = useQuery({
    queryKey,
    queryFn: async ({ signal }) => (await ask<{ data: OwnRow[] }>(PATH, { signal })).data,
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
      <Upload
        owners={undefined}
        exists={(_, name) => adapters.data?.some((one) => one.owner === tenant && one.name === name) ?? false}
        pathOf={(_, name) => pathOf(name)}
      />
      <Loaded query={adapters} what="Asking for adapters">
        {(all) =>
          all.length === 0 ? (
            <Empty title="You have no adapter yet">
              <p>Drop one above. Until then requests can ask for the backbone.</p>
            </Empty>
          ) : (
            <DataTable
              caption="Adapters"
              rows={all}
              columns={[...columnsFor(tenant), actions]}
              keyOf={({ id }) => id}
              initialSort={{ key: "id", down: false }}
            />
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

/** What requests call it: its own by the bare name. */
const calledBy = (tenant: string | null, { id, owner, name }: OwnRow): string => (owner === tenant ? name : id);

const columnsFor = (tenant: string | null): readonly Column<OwnRow>[] => [
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
