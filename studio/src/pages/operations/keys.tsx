/** @file Keys: made and shown once, listed without their secrets, revoked. */
import { useState } from "react";
import { ask } from "../../api/client.ts";
import { useSession } from "../../api/session.tsx";
import {
  ago,
  Badge,
  Button,
  Checkbox,
  type Column,
  ConfirmDialog,
  DataTable,
  Empty,
  Loaded,
  Note,
  time,
} from "../../ui/index.ts";
import { adminPath, type KeyRow, useKeys, useRefresh } from "./api.ts";
import { Operations } from "./frame.tsx";
import { type MadeKey, NewKey, Secret } from "./new-key.tsx";

const ADMINISTRATORS = "admin";

export function Keys() {
  const { byKey } = useSession();
  const keys = useKeys();
  const [making, setMaking] = useState(false);
  const [made, setMade] = useState<MadeKey>();
  const make = (
    <Button kind="primary" onClick={() => setMaking(true)}>
      {byKey ? "New key" : "Make an administrator's key"}
    </Button>
  );
  return (
    <Operations title="Keys" tools={byKey && make}>
      {made && <Secret made={made} onDone={() => setMade(undefined)} />}
      {!byKey && (
        <Note kind="warn">
          This server answers everybody on this machine, without keys. With its first key it wants one of every request;
          the first must be an administrator's, and you will be signed in with it.
        </Note>
      )}
      <Loaded query={keys} what="Asking for keys">
        {(all) =>
          all.length === 0 ? (
            <Empty title="No keys yet">
              <p>A key says on whose behalf a request is made.</p>
              {make}
            </Empty>
          ) : (
            <KeyTable keys={all} />
          )
        }
      </Loaded>
      {making && <NewKey first={!byKey} onMade={setMade} onClose={() => setMaking(false)} />}
    </Operations>
  );
}

type State = "active" | "expired" | "revoked";

function stateOf({ revokedAt, expiresAt }: KeyRow): State {
  if (revokedAt !== null) return "revoked";
  return expiresAt !== null && Date.parse(expiresAt) <= Date.now() ? "expired" : "active";
}

const ownerOf = ({ role, tenant }: KeyRow): string => (role === "admin" ? ADMINISTRATORS : tenant);
const called = ({ label, prefix }: KeyRow): string => (label === "" ? `${prefix}…` : label);

function KeyTable({ keys }: { keys: readonly KeyRow[] }) {
  const [old, setOld] = useState(false);
  const [revoking, setRevoking] = useState<KeyRow>();
  const refresh = useRefresh();
  const shown = keys.filter((key) => old || stateOf(key) === "active");
  const actions: Column<KeyRow> = {
    key: "actions",
    title: "Actions",
    cell: (key) =>
      stateOf(key) === "active" && (
        <Button small kind="danger" aria-label={`Revoke ${called(key)}`} onClick={() => setRevoking(key)}>
          Revoke
        </Button>
      ),
  };
  return (
    <>
      <Checkbox label="Also those that are over" checked={old} onChange={(event) => setOld(event.target.checked)} />
      <DataTable
        caption="Keys"
        rows={shown}
        columns={[...COLUMNS, actions]}
        keyOf={({ id }) => id}
        initialSort={{ key: "createdAt", down: true }}
      />
      {revoking && (
        <ConfirmDialog
          title={`Revoke the key ${called(revoking)}?`}
          confirm="Revoke"
          onClose={() => setRevoking(undefined)}
          onConfirm={async () => {
            await ask(adminPath(`keys/${encodeURIComponent(revoking.id)}`), { method: "DELETE" });
            void refresh();
          }}
        >
          <p>
            From now on nobody gets in with it. It cannot be brought back. If it is the one that you are signed in with,
            you are signed out.
          </p>
        </ConfirmDialog>
      )}
    </>
  );
}

const COLUMNS: readonly Column<KeyRow>[] = [
  { key: "label", title: "Key", head: true, cell: called, value: called },
  {
    key: "tenant",
    title: "Whose",
    cell: (key) => (key.role === "admin" ? <Badge kind="accent">administrator</Badge> : key.tenant),
    value: ownerOf,
  },
  { key: "prefix", title: "Begins with", cell: ({ prefix }) => <code>{prefix}…</code> },
  {
    key: "state",
    title: "State",
    cell: (key) => {
      const state = stateOf(key);
      return <Badge kind={state === "active" ? "good" : "plain"}>{state}</Badge>;
    },
    value: stateOf,
  },
  {
    key: "expiresAt",
    title: "Expires",
    cell: ({ expiresAt }) => (expiresAt === null ? <span className="muted">never</span> : time(expiresAt)),
    value: ({ expiresAt }) => expiresAt,
  },
  {
    key: "lastUsedAt",
    title: "Last used",
    cell: ({ lastUsedAt }) => (lastUsedAt === null ? <span className="muted">never</span> : ago(lastUsedAt)),
    value: ({ lastUsedAt }) => lastUsedAt,
  },
  {
    key: "createdAt",
    title: "Made",
    cell: ({ createdAt }) => <span className="nowrap">{time(createdAt)}</span>,
    value: ({ createdAt }) => createdAt,
  },
];
