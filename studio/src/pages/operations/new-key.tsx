/** @file Makes a key and shows its secret, once. */
import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useEffect, useRef, useState } from "react";
import type { StudioSession } from "../../../../src/serving/studio/types.ts";
import { ask } from "../../api/client.ts";
import { Button, CopyButton, Dialog, ErrorNote, Note, SelectField, TextField } from "../../ui/index.ts";
import { adminPath, type KeyRow, useChange, useTenants } from "./api.ts";
import { formProblems } from "./problems.ts";

export interface MadeKey {
  readonly key: KeyRow;
  readonly secret: string;
}

/** No tenant can have this name. */
const ADMINISTRATOR = "admin";
const DATE = "date";
const DAYS = [
  ["", "never"],
  ["1", "in a day"],
  ["7", "in a week"],
  ["30", "in 30 days"],
  ["90", "in 90 days"],
  ["365", "in a year"],
  [DATE, "on a day that you choose"],
] as const;

/** @param first of a server that was open: it must be an administrator's, who is signed in with it at once */
export function NewKey({
  first,
  onMade,
  onClose,
}: {
  first: boolean;
  onMade: (made: MadeKey) => void;
  onClose: () => void;
}) {
  const queries = useQueryClient();
  const tenants = useTenants();
  const [whose, setWhose] = useState("");
  const [label, setLabel] = useState("");
  const [days, setDays] = useState("");
  const [date, setDate] = useState("");
  const owners = [...(first ? [] : (tenants.data ?? []).map(({ id }) => id)), ADMINISTRATOR];
  const owner = owners.includes(whose) ? whose : owners[0]!;
  const change = useChange(async () => {
    const made = await ask<MadeKey>(adminPath("keys"), {
      method: "POST",
      json: {
        ...(owner === ADMINISTRATOR ? { admin: true } : { tenant: owner }),
        label,
        ...(days === DATE ? { expiresAt: date } : days !== "" && { expiresAt: afterDays(Number(days)) }),
      },
    });
    // Nothing is asked in between: without the key it would be refused.
    if (first) {
      const json = { key: made.secret };
      queries.setQueryData(["session"], await ask<StudioSession>("/studio/v1/session", { method: "POST", json }));
    }
    onMade(made);
    onClose();
  });
  const { at, rest } = formProblems(change.error, ["tenant", "label", "expiresAt"], { TENANT_NOT_FOUND: "tenant" });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    change.mutate(undefined);
  };
  return (
    <Dialog title={first ? "The first key" : "New key"} onClose={onClose}>
      <form className="stack" noValidate onSubmit={submit}>
        <SelectField
          label="Whose"
          problem={at.tenant}
          options={owners.map((id) => [id, id === ADMINISTRATOR ? "administrator: may do everything" : id] as const)}
          value={owner}
          onChange={(event) => setWhose(event.target.value)}
        />
        <TextField
          label="What it is for"
          hint="To tell it from others."
          problem={at.label}
          value={label}
          autoComplete="off"
          onChange={(event) => setLabel(event.target.value)}
        />
        <SelectField
          label="Expires"
          options={DAYS}
          value={days}
          problem={days === DATE ? undefined : at.expiresAt}
          onChange={(event) => setDays(event.target.value)}
        />
        {days === DATE && (
          <TextField
            label="First day without it (UTC)"
            type="date"
            value={date}
            problem={at.expiresAt}
            onChange={(event) => setDate(event.target.value)}
          />
        )}
        {rest !== undefined && <ErrorNote error={rest} />}
        <div className="row">
          <Button type="submit" kind="primary" disabled={change.isPending}>
            Make key
          </Button>
          <Button onClick={onClose}>Cancel</Button>
        </div>
      </form>
    </Dialog>
  );
}

const afterDays = (days: number): string => new Date(Date.now() + days * 86_400_000).toISOString();

export function Secret({ made: { key, secret }, onDone }: { made: MadeKey; onDone: () => void }) {
  const box = useRef<HTMLElement>(null);
  useEffect(() => box.current?.focus(), []);
  return (
    <section ref={box} tabIndex={-1} aria-label="The new key">
      <Note kind="warn">
        <div className="stack">
          <p>
            The key of <strong>{key.role === "admin" ? "an administrator" : key.tenant}</strong>. It is shown only now
            and kept nowhere: copy it to where it is needed.
          </p>
          <code className="secret">{secret}</code>
          <div className="row">
            <CopyButton text={secret} label="Copy the key" />
            <Button small onClick={onDone}>
              I have it
            </Button>
          </div>
        </div>
      </Note>
    </section>
  );
}
