/** @file `--database` and DATABASE_URL: the commands on a PostgreSQL, whose password is told nowhere. */
import { readdirSync } from "node:fs";
import { sql } from "drizzle-orm";
import { describe, expect, test } from "vitest";
import { openPostgres } from "../../src/serving/store/postgres.ts";
import { PASSWORD } from "../../src/serving/store/testing/cluster.ts";
import { NO_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { fixture, milora, temporary, tiny } from "./milora.ts";

/** Runs a command; the password is in no form in what it prints. */
async function quiet(...args: Parameters<typeof milora>): ReturnType<typeof milora> {
  const outcome = await milora(...args);
  for (const secret of [PASSWORD, encodeURIComponent(PASSWORD), "wrong-one"]) {
    expect(outcome.stdout + outcome.stderr).not.toContain(secret);
  }
  return outcome;
}

test("a database that is not there, or no URL of one, is input to correct", async () => {
  const url = "postgres://u:wrong-one@127.0.0.1:1/d";
  for (const args of [
    ["tenants", "list"],
    ["usage"],
    ["adapters", "list"],
    ["serve", "--model", tiny, "--port", "0"],
  ]) {
    const { code, stderr } = await quiet([...args, "--database", url, "--json"]);
    expect([code, stderr]).toEqual([2, expect.stringContaining("the database 127.0.0.1:1/d: connect ECONNREFUSED")]);
  }
  const wrong = { DATABASE_URL: "mysql://u:wrong-one@h/d" };
  for (const args of [
    ["keys", "list"],
    ["serve", "--model", tiny],
  ]) {
    const { code, stderr } = await quiet(args, { env: wrong });
    expect([code, stderr]).toEqual([2, expect.stringContaining("postgres://USER:PASSWORD@HOST")]);
  }
  expect((await quiet(["keys", "list", "--database", url, "--server", "http://x"])).code).toBe(2);
});

describe.skipIf(NO_POSTGRES)(`PostgreSQL ${NO_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use();

  test("who looks into an empty database leaves it empty", async () => {
    const env = { DATABASE_URL: await servers.database() };
    for (const args of [
      ["keys", "list"],
      ["adapters", "list"],
      ["sweep", "status"],
    ]) {
      const { code, stdout, stderr } = await quiet(args, { env });
      expect([code, stdout]).toEqual([0, expect.stringMatching(/^no (keys|adapters|sweeps)/)]);
      if (args[0] !== "sweep") expect(stderr).toMatch(/^the database .*: nothing of a server is there yet\n$/);
    }
    await using opened = await openPostgres(env.DATABASE_URL);
    const found = await opened.database.execute(sql`SELECT nspname FROM pg_namespace WHERE nspname LIKE 'milora%'
      UNION ALL SELECT tablename FROM pg_tables WHERE schemaname = 'public'`);
    expect((found as unknown as { rows: unknown[] }).rows).toEqual([]);
  });

  test("tenants, keys, usage and adapters are the database's", async () => {
    const url = await servers.database();
    const env = { DATABASE_URL: url };
    expect((await quiet(["tenants", "create", "acme", "--json"], { env })).code).toBe(0);
    const made = await quiet(["keys", "create", "--tenant", "acme", "--database", url, "--json"]);
    expect(JSON.parse(made.stdout)).toMatchObject({ tenant: "acme" });
    const listed = await quiet(["tenants", "list", "--json"], { env: { DATABASE_URL: "mysql://x" } });
    expect(listed.code).toBe(2);
    expect(JSON.parse((await quiet(["tenants", "list", "--json"], { env })).stdout)).toMatchObject([{ id: "acme" }]);
    expect((await quiet(["usage", "--json"], { env })).code).toBe(0);
    const data = temporary();
    expect((await quiet(["adapters", "list", "--json", "--data", data], { env })).stdout.trim()).toBe("[]");
    expect(readdirSync(data)).toEqual([]); // who looks leaves no note of whose adapters these are
    const install = [
      "adapters",
      "install",
      fixture("lora/qv-suffixes"),
      "--name",
      "a",
      "--model",
      fixture("backbones/llama-gqa"),
    ];
    expect((await quiet([...install, "--data", data], { env })).code).toBe(0);
    const embedded = await quiet(["tenants", "list", "--data", data]);
    expect([embedded.code, embedded.stderr]).toEqual([2, expect.stringContaining("--database or DATABASE_URL")]);
  });
});
