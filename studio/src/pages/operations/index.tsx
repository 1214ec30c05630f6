/** @file Operations: the server as its administrators see it; for tenants their own adapters. */
import { Redirect, Route, Switch } from "wouter";
import { useSession } from "../../api/session.tsx";
import { Adapters } from "./adapters.tsx";
import { Errors } from "./errors.tsx";
import { Keys } from "./keys.tsx";
import { Overview } from "./overview.tsx";
import { OwnAdapters } from "./own-adapters.tsx";
import { Tenants } from "./tenants.tsx";
import { Usage } from "./usage.tsx";

export default function Operations() {
  const { role } = useSession();
  if (role !== "admin") return <OwnAdapters />;
  return (
    <Switch>
      <Route path="/operations" component={Overview} />
      <Route path="/operations/adapters" component={Adapters} />
      <Route path="/operations/tenants" component={Tenants} />
      <Route path="/operations/keys" component={Keys} />
      <Route path="/operations/usage" component={Usage} />
      <Route path="/operations/errors" component={Errors} />
      <Route>
        <Redirect to="/operations" replace />
      </Route>
    </Switch>
  );
}
