/** @file `milora database move` as a process: a server with the same keys afterwards, and kill -9 at any point. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { makeAdapter } from "../../src/serving/http/testing.ts";
import { openStore } from "../../src/serving/index.ts";
import { moveDatabase } from "../../src/serving/store/move.ts";
import { PASSWORD } from "../../src/serving/store/testing/cluster.ts";
import { NO_POSTGRES, Servers } from "../../src/serving/store/testing.ts";
import { Replica } from "../serving-postgres/replicas.ts";
import { milora, root, temporary } from "./milora.ts";

/** `MILORA_KILLS=100 npx vitest run test/cli/database-move.test.ts` looks longer. */
const KILLS = Number(process.env.MILORA_KILLS) || 2;

test("what is missing or wrong is one line", async () => {
  const cases: [string[], string][] = [
    [[], "--from or --to"],
    [["--from", "x"], "needs --to, or DATABASE_URL"],
    [["--from", join(temporary(), "none"), "--to", "mysql://u:hidden@h/d"], "holds no database"],
    [["--from", "mysql://u:hidden@h/d", "--to", temporary()], "postgres://USER:PASSWORD@HOST"],
  ];
  for (const [args, said] of cases) {
    const { code, stderr } = await milora(["database", "move", ...args], { env: { DATABASE_URL: "" } });
    expect([code, stderr]).toEqual([2, expect.stringContaining(said)]);
    expect(stderr).not.toContain("hidden");
  }
});

describe.skipIf(NO_POSTGRES)(`PostgreSQL ${NO_POSTGRES ?? ""}`, () => {
  const servers = new Servers();
  servers.use();

  test("a server is moved to a PostgreSQL and back: keys, adapters and usage are there", async () => {
    const data = join(temporary(), "data");
    let admin = "";
    let key = "";
    {
      await using store = await openStore({ directory: data });
      admin = (await store.keys.create({ admin: true })).secret;
      await store.tenants.create({ id: "acme" });
      key = (await store.keys.create({ tenant: "acme" })).secret;
    }
    const adapter = await makeAdapter(temporary(), "milora", 3);
    const url = await servers.database();
    const env = { DATABASE_URL: url };
    const texts: unknown[] = [];
    const serve = async (database: string | undefined, work: (replica: Replica) => Promise<void>): Promise<void> => {
      const replica = await Replica.start(database, data, admin, ["--threads", "1"]);
      await work(replica);
      const { status, body } = await replica.ask(key, "own");
      expect(status).toBe(200);
      texts.push((body.choices as { text: string }[])[0]!.text);
      expect(await replica.end("SIGTERM")).toBe(0);
    };
    await serve(undefined, async (replica) => {
      expect((await replica.install("own", adapter, "acme")).status).toBe(201);
      const refused = await milora(["database", "move", "--from", data], { env });
      expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining("is in use by process")]);
    });
    const there = await milora(["database", "move", "--from", data], { env });
    expect([there.code, there.stderr]).toEqual([0, ""]);
    expect(there.stdout).toMatch(/usage +1\n(.|\n)*all is there, and the same: [0-9a-f]{64}\n.*database\.moved; start servers with DATABASE_URL/); // biome-ignore format: one line
    await serve(url, async () => {
      const refused = await milora(["database", "move", "--to", temporary()], { env });
      expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining("in use by milora")]);
      for (const secret of [PASSWORD, encodeURIComponent(PASSWORD)]) expect(refused.stderr).not.toContain(secret);
    });
    const back = await milora(["database", "move", "--to", data, "--json"], { env });
    expect(JSON.parse(back.stdout)).toMatchObject({ rows: { tenants: 2, keys: 2, adapters: 1 }, missing: [] });
    await serve(undefined, async () => {});
    expect(new Set(texts).size).toBe(1);
    const usage = await milora(["usage", "--tenant", "acme", "--data", data, "--json"], { env: { DATABASE_URL: "" } });
    expect(usage.stdout).toContain('"requests":3');
  });

  test(`${KILLS} kills each way`, { timeout: 120_000 + KILLS * 30_000 }, async () => {
    const home = temporary();
    const original = join(home, "original");
    {
      await using store = await openStore({ directory: original });
      await store.id(); // or each of its copies gets one
      for (let i = 0; i < 40; i++) await store.tenants.create({ id: `t${i}` });
      for (let i = 0; i < 8000; i++) store.usage.charge({ tenant: `t${i % 40}`, keyId: `k${i}` }, { adapter: "", promptTokens: 1, completionTokens: 1 }); // biome-ignore format: one line
    }
    /** Runs the command and kills it so long after it began. @returns whether it had ended before */
    const killed = async (from: string, to: string, after: number): Promise<boolean> => {
      const args = ["dist/cli/main.js", "database", "move", "--from", from, "--to", to, "--json"];
      const child = spawn(process.execPath, args, { cwd: root, stdio: "ignore" });
      const ended = once(child, "exit");
      await Promise.race([sleep(after), ended]);
      child.kill("SIGKILL");
      const [code] = (await ended) as [number | null];
      return code === 0;
    };
    const copyOf = (name: string): string => {
      const copy = join(home, name);
      cpSync(original, copy, { recursive: true });
      return copy;
    };
    // How long a whole one takes, and what it gives.
    const whole = await servers.database();
    const began = performance.now();
    expect(await killed(copyOf("first"), whole, 60_000)).toBe(true);
    const took = performance.now() - began;
    const { digest } = await moveDatabase({ url: whole }, { directory: join(home, "whole") });
    let [empty, full] = [0, 0];
    for (let i = 0; i < KILLS; i++) {
      const at = ((i + 0.5) / KILLS) * took;
      // To PostgreSQL.
      const source = copyOf(`source${i}`);
      const url = await servers.database();
      const done = await killed(source, url, at);
      const moved = existsSync(join(source, "database.moved"));
      const [found] = await servers.cluster.query("SELECT to_regclass('usage') IS NOT NULL AS there", url);
      const there = found!.there ? Number((await servers.cluster.query("SELECT count(*) AS n FROM usage", url))[0]!.n) : 0; // biome-ignore format: one line
      expect([0, 8000]).toContain(there);
      if (done || moved) expect(there).toBe(8000);
      if (there === 0) {
        empty++;
        expect((await moveDatabase({ directory: source }, { url })).digest).toBe(digest);
      } else full++;
      // And back.
      const target = join(home, `target${i}`);
      await killed(whole, target, at);
      if (existsSync(join(target, "database"))) {
        await using store = await openStore({ directory: target });
        expect((await store.usage.report({ by: [] }))[0]!.requests).toBe(8000);
        full++;
      } else {
        empty++;
        expect((await moveDatabase({ url: whole }, { directory: target })).digest).toBe(digest);
      }
      for (const path of [source, target]) rmSync(path, { recursive: true });
    }
    expect(empty).toBeGreaterThan(0);
    expect(empty + full).toBe(2 * KILLS);
  });
});
