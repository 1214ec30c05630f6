/** @file Tenants: who is served, with which weight and limits. */
import { useState } from "react";
import { Link } from "wouter";
import { ask } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import {
  Badge,
  Button,
  type Column,
  ConfirmDialog,
  DataTable,
  Empty,
  ErrorNote,
  Loaded,
  Note,
  number,
  time,
} from "../../ui/index.ts";
import { adminPath, type TenantRow, useChange, useRefresh, useStatus, useTenants, useUsage } from "./api.ts";
import { Operations } from "./frame.tsx";
import { limitsText, TenantForm } from "./tenant-form.tsx";

interface Row extends TenantRow {
  readonly running: number;
  readonly waiting: number;
  readonly tokens: number;
}

const pathOf = (id: string): string => adminPath(`tenants/${encodeURIComponent(id)}`);
/** The start of the day that quotas are of. */
const today = (): string => new Date(new Date().setUTCHours(0, 0, 0, 0)).toISOString();

export function Tenants() {
  const { byKey } = useSession();
  const tenants = useTenants();
  const [making, setMaking] = useState(false);
  const make = (
    <Button kind="primary" onClick={() => setMaking(true)}>
      New tenant
    </Button>
  );
  return (
    <Operations title="Tenants" tools={byKey && make}>
      {!byKey && (
        <Note kind="warn">
          This server answers without keys. With its first tenant it would want them:{" "}
          <Link href="/operations/keys">make an administrator's key</Link> first.
        </Note>
      )}
      <Loaded query={tenants} what="Asking for tenants">
        {(all) =>
          all.length === 0 ? (
            <Empty title="No tenants yet">
              <p>A tenant has keys, limits and adapters of its own, which nobody else sees.</p>
              {byKey && make}
            </Empty>
          ) : (
            <TenantTable tenants={all} />
          )
        }
      </Loaded>
      {making && <TenantForm onClose={() => setMaking(false)} />}
    </Operations>
  );
}

function TenantTable({ tenants }: { tenants: readonly TenantRow[] }) {
  const status = useStatus();
  const [from] = useState(today);
  const usage = useUsage(["tenant"], from);
  const refresh = useRefresh();
  const [editing, setEditing] = useState<TenantRow>();
  const [removing, setRemoving] = useState<TenantRow>();
  const change = useChange(({ id, disabled }: { id: string; disabled: boolean }) =>
    ask(pathOf(id), { method: "PATCH", json: { disabled } }),
  );
  const now = new Map(status.data?.tenants.map((one) => [one.tenant, one]));
  const used = new Map(usage.data?.map((one) => [one.tenant, one.promptTokens + one.completionTokens]));
  const rows = tenants.map((tenant) => {
    const { running = 0, waiting = 0 } = now.get(tenant.id) ?? {};
    return { ...tenant, running, waiting, tokens: used.get(tenant.id) ?? 0 };
  });
  const actions: Column<Row> = {
    key: "actions",
    title: "Actions",
    cell: (tenant) => (
      <span className="actions">
        <Button small aria-label={`Change ${tenant.id}`} onClick={() => setEditing(tenant)}>
          Change
        </Button>
        <Button
          small
          aria-label={`${tenant.disabled ? "Enable" : "Disable"} ${tenant.id}`}
          disabled={change.isPending}
          onClick={() => change.mutate({ id: tenant.id, disabled: !tenant.disabled })}
        >
          {tenant.disabled ? "Enable" : "Disable"}
        </Button>
        <Button small kind="danger" aria-label={`Remove ${tenant.id}`} onClick={() => setRemoving(tenant)}>
          Remove
        </Button>
      </span>
    ),
  };
  return (
    <>
      {change.error && <ErrorNote error={change.error} />}
      <DataTable
        caption="Tenants"
        rows={rows}
        columns={[...COLUMNS, actions]}
        keyOf={({ id }) => id}
        initialSort={{ key: "id", down: false }}
      />
      {editing && <TenantForm tenant={editing} onClose={() => setEditing(undefined)} />}
      {removing && (
        <ConfirmDialog
          title={`Remove tenant ${removing.id}?`}
          confirm="Remove"
          typed={removing.id}
          onClose={() => setRemoving(undefined)}
          onConfirm={async () => {
            await ask(pathOf(removing.id), { method: "DELETE" });
            void refresh();
          }}
        >
          <p>
            Its keys, grants and usage go with it and cannot be brought back. Its adapters have to be removed first. To
            keep it out for a while, disable it instead.
          </p>
        </ConfirmDialog>
      )}
    </>
  );
}

const COLUMNS: readonly Column<Row>[] = [
  { key: "id", title: "Tenant", head: true, cell: ({ id }) => id, value: ({ id }) => id },
  { key: "name", title: "Name", cell: ({ name }) => name, value: ({ name }) => name },
  {
    key: "state",
    title: "State",
    cell: ({ disabled }) => (disabled ? <Badge kind="bad">disabled</Badge> : <Badge kind="good">served</Badge>),
    value: ({ disabled }) => Number(disabled),
  },
  { key: "weight", title: "Weight", numeric: true, cell: (row) => number(row.weight), value: (row) => row.weight },
  { key: "limits", title: "Limits", cell: ({ limits }) => limitsText(limits) },
  {
    key: "running",
    title: "Under way",
    numeric: true,
    cell: ({ running, waiting }) => number(running + waiting),
    value: ({ running, waiting }) => running + waiting,
  },
  {
    key: "tokens",
    title: "Tokens today",
    numeric: true,
    cell: ({ tokens }) => number(tokens),
    value: ({ tokens }) => tokens,
  },
  {
    key: "createdAt",
    title: "Made",
    cell: ({ createdAt }) => <span className="nowrap">{time(createdAt)}</span>,
    value: ({ createdAt }) => createdAt,
  },
];
