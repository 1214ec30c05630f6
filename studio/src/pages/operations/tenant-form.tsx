/** @file Makes a tenant, or changes one: weight and limits, with what of them is used up. */
import { type FormEvent, useState } from "react";
import type { LimitName, TenantLimits } from "../../../../src/serving/store/types.ts";
import { ask } from "../../api/client.ts";
import { Button, bytes, Dialog, ErrorNote, Loaded, number, TextField } from "../../ui/index.ts";
import { adminPath, type QuotaRow, type TenantRow, useChange, useQuotas } from "./api.ts";
import { Meter } from "./frame.tsx";
import { formProblems } from "./problems.ts";

export const LIMITS: readonly (readonly [name: LimitName, label: string])[] = [
  ["requestsPerMinute", "Requests a minute"],
  ["tokensPerMinute", "Tokens a minute"],
  ["tokensPerDay", "Tokens a day"],
  ["maxConcurrent", "Requests at a time"],
  ["maxAdapters", "Own adapters"],
  ["maxStoredBytes", "Bytes of own adapters"],
];

type Fields = Record<"id" | "name" | "weight" | LimitName, string>;

function fieldsOf(tenant: TenantRow | undefined): Fields {
  const limits = Object.fromEntries(LIMITS.map(([name]) => [name, String(tenant?.limits[name] ?? "")])) as TenantTexts;
  return { id: tenant?.id ?? "", name: tenant?.name ?? "", weight: String(tenant?.weight ?? 1), ...limits };
}

type TenantTexts = Record<LimitName, string>;

/** A number where it is one; what is none the server refuses at its field. */
const numeric = (text: string): number | string => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text); // biome-ignore format: one line

export function TenantForm({ tenant, onClose }: { tenant?: TenantRow; onClose: () => void }) {
  const [fields, setFields] = useState(() => fieldsOf(tenant));
  const change = useChange(() => {
    const { id, name, weight } = fields;
    const given = LIMITS.map(([limit]) => [limit, fields[limit].trim()] as const);
    const limits = given
      .filter(([limit, text]) => text !== "" || tenant?.limits[limit] !== undefined)
      .map(([limit, text]) => [limit, text === "" ? null : numeric(text)]);
    const json = { ...(name.trim() !== "" && { name }), weight: numeric(weight), limits: Object.fromEntries(limits) };
    return tenant
      ? ask(adminPath(`tenants/${encodeURIComponent(tenant.id)}`), { method: "PATCH", json })
      : ask(adminPath("tenants"), { method: "POST", json: { ...json, id } });
  });
  const names = ["id", "name", "weight", ...LIMITS.map(([limit]) => `limits.${limit}`)];
  const { at, rest } = formProblems(change.error, names, { TENANT_EXISTS: "id" });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    change.mutate(undefined, { onSuccess: onClose });
  };
  const field = (name: keyof Fields, label: string, hint?: string, problem = at[name]) => (
    <TextField
      {...{ label, problem }}
      {...(hint !== undefined && { hint })}
      value={fields[name]}
      autoComplete="off"
      {...(name !== "id" && name !== "name" && { inputMode: "numeric" as const })}
      onChange={(event) => setFields({ ...fields, [name]: event.target.value })}
    />
  );
  return (
    <Dialog title={tenant ? `Tenant ${tenant.id}` : "New tenant"} onClose={onClose}>
      {tenant && <Quotas id={tenant.id} />}
      <form className="stack" noValidate onSubmit={submit}>
        {!tenant && field("id", "Id", "a-z, 0-9, '.', '_' and '-'. It never changes.")}
        {field("name", "Name")}
        {field("weight", "Weight", "Share in the machine when it is busy, against the others'. 1 is usual.")}
        <fieldset className="stack">
          <legend>Limits</legend>
          <p className="muted">An empty one does not hold.</p>
          <div className="grid small">
            {LIMITS.map(([name, label]) => (
              <div key={name}>{field(name, label, undefined, at[`limits.${name}`])}</div>
            ))}
          </div>
        </fieldset>
        {rest !== undefined && <ErrorNote error={rest} />}
        <div className="row">
          <Button type="submit" kind="primary" disabled={change.isPending}>
            {tenant ? "Save" : "Make tenant"}
          </Button>
          <Button onClick={onClose}>Cancel</Button>
        </div>
      </form>
    </Dialog>
  );
}

function Quotas({ id }: { id: string }) {
  const quotas = useQuotas(id);
  return <Loaded query={quotas}>{(state) => <Standing state={state} />}</Loaded>;
}

function Standing({ state: { limits, running, reserved, tokensToday } }: { state: QuotaRow }) {
  const { tokensPerDay, maxConcurrent } = limits;
  return (
    <section className="stack" aria-label="Where it stands">
      <Meter label="Tokens today (UTC)" value={tokensToday} most={tokensPerDay} show={number} />
      <Meter label="Requests under way" value={running} most={maxConcurrent} show={number} />
      {reserved > 0 && <p className="muted">They may take {number(reserved)} tokens more.</p>}
    </section>
  );
}

/** Limits in a line. */
export function limitsText(limits: TenantLimits): string {
  const parts = LIMITS.filter(([name]) => limits[name] !== undefined).map(([name, label]) => {
    const value = limits[name]!;
    return `${name === "maxStoredBytes" ? bytes(value) : number(value)} ${label.replace(/^Bytes of /, "of ").toLowerCase()}`; // biome-ignore format: one line
  });
  return parts.length > 0 ? parts.join(", ") : "none";
}
