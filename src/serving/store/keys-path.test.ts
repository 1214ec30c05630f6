/** @file A key that is refused takes one way, whatever of it is right: the database is asked for its hash and hears nothing else of it. */
import { createHash } from "node:crypto";
import { expect, test } from "vitest";
import { openDatabase } from "./database.ts";
import { Keys } from "./keys.ts";
import { migrate } from "./migrations/index.ts";
import { Tenants } from "./tenants.ts";

test("the database is asked the same of every refused key, by its hash", async () => {
  const asked: { readonly query: string; readonly params: readonly unknown[] }[] = [];
  await using opened = await openDatabase(undefined, {
    logQuery: (query, params) => void asked.push({ query, params }),
  });
  const { database } = opened;
  await migrate(database, "the database");
  let time = Date.UTC(2026, 0, 1);
  const now = () => time;
  const tenants = new Tenants(database, now, () => {});
  const keys = new Keys(database, now, () => {});
  await tenants.create({ id: "acme" });
  await tenants.create({ id: "banned" });
  const { secret } = await keys.create({ tenant: "acme" });
  const revoked = await keys.create({ tenant: "acme" });
  await keys.revoke(revoked.key.id);
  const expired = await keys.create({ tenant: "acme" }, { expiresAt: new Date(time + 1000) });
  const banned = await keys.create({ tenant: "banned" });
  await tenants.update("banned", { disabled: true });
  time += 2000;
  const other = (text: string) => text.replace(/./g, (digit) => (digit === "a" ? "b" : "a"));
  const guesses = {
    "nothing right": `mk_${other(secret.slice(3))}`,
    "what lists show right": secret.slice(0, 9) + other(secret.slice(9)),
    "all but the last right": secret.slice(0, -1) + other(secret.slice(-1)),
    "all but the first right": `mk_${other(secret.slice(3, 4))}${secret.slice(4)}`,
    revoked: revoked.secret,
    expired: expired.secret,
    "of a banned tenant": banned.secret,
  };
  const queries = new Set<string>();
  for (const [kind, key] of Object.entries(guesses)) {
    keys.forget();
    asked.length = 0;
    expect(await keys.authenticate(key), kind).toBeUndefined();
    expect(asked, kind).toHaveLength(1);
    expect(asked[0]!.params, kind).toEqual([createHash("sha256").update(key).digest("hex")]);
    queries.add(asked[0]!.query);
  }
  expect(queries.size).toBe(1);
  asked.length = 0;
  expect(await keys.authenticate(secret)).toMatchObject({ tenant: "acme" });
  expect(asked.map(({ query }) => query)).toEqual([...queries]);

  asked.length = 0;
  for (const key of ["", "mk_", secret.slice(0, -1), `${secret}a`, `${secret.toUpperCase()}é`]) {
    expect(await keys.authenticate(key), key).toBeUndefined();
  }
  expect(asked).toEqual([]);
});
