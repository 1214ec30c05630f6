/** @file milora tenants, keys and usage: the same in a data directory and by a running server. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type Started, scratch, startServer } from "../../src/serving/http/testing.ts";
import { openStore } from "../../src/serving/index.ts";
import { milora, type Outcome, temporary } from "./milora.ts";

const { directory, remove } = scratch();
let started: Started;
let key: string;

beforeAll(async () => {
  started = await startServer(join(directory, "data"), { auth: "required" });
  key = (await started.server.services.store.keys.create({ admin: true })).secret;
});
afterAll(async () => {
  await started[Symbol.asyncDispose]();
  remove();
});

const json = ({ stdout }: Outcome) => JSON.parse(stdout);

test.each(["--data", "--server"])("tenants and keys with %s", async (where) => {
  const place = where === "--data" ? temporary() : started.url;
  const admin = (...args: string[]) => milora([...args, where, place], { env: { MILORA_ADMIN_KEY: key } });

  const made = await admin("tenants", "create", "acme", "--name", "Acme Ltd", "--tokens-per-day", "1000");
  expect(made).toMatchObject({ code: 0, stderr: "" });
  expect(made.stdout).toContain("acme (Acme Ltd): weight 1, limits: 1,000 tokens/day");
  expect(await admin("tenants", "create", "acme")).toMatchObject({
    code: 2,
    stdout: "",
    stderr: expect.stringContaining("is there already"),
  });
  const updated = await admin(
    "tenants",
    "update",
    "acme",
    "--tokens-per-day",
    "none",
    "--max-concurrent",
    "4",
    "--json",
  );
  expect(json(updated)).toMatchObject({ id: "acme", name: "Acme Ltd", weight: 1, limits: { maxConcurrent: 4 } });
  expect(json(updated).limits).toEqual({ maxConcurrent: 4 });
  expect((await admin("tenants", "disable", "acme")).stdout).toContain("disabled");

  const created = await admin("keys", "create", "--tenant", "acme", "--label", "web", "--expires", "90d");
  expect(created).toMatchObject({ code: 0, stdout: expect.stringMatching(/^mk_[0-9A-Za-z]{43}\n$/) });
  expect(created.stderr).not.toContain(created.stdout.trim().slice(9));
  const [listed] = json(await admin("keys", "list", "--tenant", "acme", "--json"));
  expect(listed).toMatchObject({ tenant: "acme", label: "web", role: "tenant", revokedAt: null });
  const days = (Date.parse(listed.expiresAt) - Date.parse(listed.createdAt)) / 86_400_000;
  expect(days).toBeCloseTo(90, 2);
  expect((await admin("keys", "revoke", listed.id)).stdout).toContain("revoked");
  const table = (await admin("keys", "list", "--tenant", "acme")).stdout;
  expect(table).toContain(listed.id);
  expect(table).toContain("revoked");
  expect(json(await admin("usage", "--by", "tenant,day", "--from", "2026-01-01", "--json"))).toEqual([]);
  expect((await admin("tenants", "remove", "acme")).stdout).toBe("acme: removed\n");
  expect((await admin("tenants", "list")).stdout).toBe("no tenants\n");
});

test("usage is shown as a table with a sum", async () => {
  const directory = temporary();
  {
    await using store = await openStore({ directory }, { now: () => Date.parse("2026-03-01T10:30:00Z") });
    await store.tenants.create({ id: "acme" });
    for (const adapter of ["", "red", "red"]) {
      store.usage.charge({ tenant: "acme", keyId: "k" }, { adapter, promptTokens: 1000, completionTokens: 5 });
    }
  }
  const { stdout } = await milora(["usage", "--by", "adapter,hour", "--data", directory]);
  expect(stdout.split("\n")).toEqual([
    "adapter     hour (UTC)         requests  prompt tokens  completion tokens",
    "(backbone)  2026-03-01T10:00Z         1          1,000                  5",
    "red         2026-03-01T10:00Z         2          2,000                 10",
    "all                                   3          3,000                 15",
    "",
  ]);
  const none = ["usage", "--to", "2026-03-01", "--data", directory];
  expect((await milora(none)).stdout).toBe("nothing was used\n");
  expect(await milora(["keys", "create"])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("--tenant ID or --admin"),
  });
  expect(await milora(["usage", "--by", "colour"])).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("tenant, key"),
  });
});

test("a data directory that is in use, and a server that does not let in, are said in one line", async () => {
  const data = temporary();
  await using _store = await openStore({ directory: data });
  const inUse = await milora(["tenants", "list", "--data", data]);
  expect(inUse).toMatchObject({
    code: 2,
    stdout: "",
    stderr: expect.stringContaining(`in use by process ${process.pid}`),
  });
  expect(inUse.stderr).toContain("--server URL");
  const list = (env: Record<string, string>, url = started.url) =>
    milora(["tenants", "list", "--server", url], { env });
  expect(await list({ MILORA_ADMIN_KEY: "" })).toMatchObject({ code: 2, stderr: expect.stringContaining("milora keys create --admin") }); // biome-ignore format: one line
  expect(await list({ MILORA_ADMIN_KEY: "mk_wrong" })).toMatchObject({
    code: 2,
    stderr: expect.stringMatching(/key|admin/),
  });
  expect(await list({ MILORA_ADMIN_KEY: key }, "http://127.0.0.1:1")).toMatchObject({ code: 2, stderr: expect.stringContaining("does not answer") }); // biome-ignore format: one line
  expect(await milora(["tenants", "list", "--server", started.url, "--data", data])).toMatchObject({ code: 2 });
});

test.each<[string[], number, string]>([
  [["tenants", "list"], 0, "no tenants"],
  [["keys", "list"], 0, "no keys"],
  [["usage"], 0, "nothing was used"],
  [["adapters", "list"], 0, "no adapters"],
  [["tenants", "disable", "acme"], 2, ""],
  [["keys", "revoke", "key_0123456789abcdef"], 2, ""],
  [["adapters", "pin", "a"], 2, ""],
  [["adapters", "revoke", "ann/a", "--from", "bob"], 2, ""],
])("where nothing is, %j says so and leaves nothing", async (args, code, stdout) => {
  const data = join(temporary(), "data");
  const outcome = await milora([...args, "--data", data]);
  expect(outcome).toMatchObject({ code, stdout: stdout && `${stdout}\n` });
  const [said, error] = outcome.stderr.trimEnd().split("\n");
  expect(said).toBe(`${data}: nothing of a server is there yet`);
  if (code === 2) expect(error).toMatch(/^error: /);
  expect(existsSync(data)).toBe(false);
});
