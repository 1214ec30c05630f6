/** @file Which other tenants may use an adapter. */
import { useState } from "react";
import { ask } from "../../api/client.ts";
import { Button, Dialog, ErrorNote, Loaded, SelectField } from "../../ui/index.ts";
import { adapterPath, useChange, useGrants, useTenants } from "./api.ts";

export function Grants({ owner, name, onClose }: { owner: string; name: string; onClose: () => void }) {
  const grants = useGrants(owner);
  const tenants = useTenants();
  const [chosen, setChosen] = useState("");
  const change = useChange(({ to, method }: { to: string; method: "PUT" | "DELETE" }) =>
    ask(adapterPath({ owner, name }, `/grants/${encodeURIComponent(to)}`), { method }),
  );
  return (
    <Dialog title={`Who may use ${owner}/${name}`} onClose={onClose}>
      <Loaded query={grants}>
        {(all) => {
          const granted = all.filter((grant) => grant.name === name).map(({ tenant }) => tenant);
          const others = (tenants.data ?? []).map(({ id }) => id).filter((id) => id !== owner && !granted.includes(id));
          const to = others.includes(chosen) ? chosen : (others[0] ?? "");
          return (
            <>
              <p>
                {owner} as <code>{name}</code>; the tenants below as{" "}
                <code>
                  {owner}/{name}
                </code>
                .
              </p>
              {granted.length === 0 ? (
                <p className="muted">No other tenant may.</p>
              ) : (
                <ul className="stack">
                  {granted.map((tenant) => (
                    <li key={tenant}>
                      <span className="spread">
                        {tenant}
                        <Button
                          small
                          aria-label={`Take back from ${tenant}`}
                          disabled={change.isPending}
                          onClick={() => change.mutate({ to: tenant, method: "DELETE" })}
                        >
                          Take back
                        </Button>
                      </span>
                    </li>
                  ))}
                </ul>
              )}
              {others.length > 0 && (
                <form
                  className="row end"
                  onSubmit={(event) => {
                    event.preventDefault();
                    change.mutate({ to, method: "PUT" });
                  }}
                >
                  <SelectField
                    label="Tenant"
                    options={others}
                    value={to}
                    onChange={(event) => setChosen(event.target.value)}
                  />
                  <Button type="submit" kind="primary" disabled={change.isPending}>
                    Grant
                  </Button>
                </form>
              )}
              {change.error && <ErrorNote error={change.error} />}
            </>
          );
        }}
      </Loaded>
    </Dialog>
  );
}
