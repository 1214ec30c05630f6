/** @file Asks for a key. */
import { useState } from "react";
import { useSignIn } from "./api/session.tsx";
import logo from "./milora.svg";
import { Button, ErrorNote, Page, TextField } from "./ui/index.ts";

export function SignIn() {
  const [key, setKey] = useState("");
  const signIn = useSignIn();
  return (
    <main>
      <form
        className="card sign-in"
        onSubmit={(event) => {
          event.preventDefault();
          signIn.mutate(key.trim());
        }}
      >
        <Page title="Sign in" tools={<img src={logo} alt="" width="32" height="32" />}>
          <TextField
            label="Key"
            hint="An administrator's key shows everything, a tenant's key what is the tenant's."
            type="password"
            autoComplete="current-password"
            required
            value={key}
            onChange={(event) => setKey(event.target.value)}
          />
          {signIn.error && <ErrorNote error={signIn.error} />}
          <div className="row">
            <Button type="submit" kind="primary" disabled={signIn.isPending || key.trim() === ""}>
              Sign in
            </Button>
          </div>
          <p className="muted">
            No key yet? On the server: <code>milora keys create --admin</code>
          </p>
        </Page>
      </form>
    </main>
  );
}
