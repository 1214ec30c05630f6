/** @file What a PostgreSQL costs a request, for docs/serving.md: MILORA_MEASURE=1 npx vitest run test/serving-postgres/cost.test.ts */
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { openStore, type Principal } from "../../src/serving/index.ts";
import { NO_POSTGRES, Servers } from "../../src/serving/store/testing.ts";

const ROUNDS = 1500;

function line(name: string, ms: readonly number[]): string {
  const sorted = ms.toSorted((a, b) => a - b);
  const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))]!.toFixed(3);
  return `| ${name} | ${at(0.5)} ms | ${at(0.95)} ms |`;
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}

describe.skipIf(NO_POSTGRES || !process.env.MILORA_MEASURE)("cost", () => {
  const servers = new Servers();
  servers.use();

  test("of places, keys and changes", async () => {
    const url = await servers.database();
    await using one = await openStore({ url });
    await using two = await openStore({ url });
    const limits = { requestsPerMinute: 1e7, tokensPerMinute: 1e9, tokensPerDay: 1e12, maxConcurrent: 1000 };
    await one.tenants.create({ id: "acme", limits });
    const table = ["", "| | median | 95th percentile |", "|---|---|---|"];
    const principal = { tenant: "acme", limits };
    const enter = (store: typeof one, who: Pick<Principal, "tenant" | "limits">) =>
      timed(async () => (await store.quotas.enter(who, 10)).settle(5));
    for (const [name, who] of [
      ["limited", principal],
      ["without limits", { tenant: "acme", limits: {} }],
    ] as const) {
      const ms: number[] = [];
      for (let i = 0; i < ROUNDS; i++) {
        ms.push(await enter(one, who));
        await one.quotas.told();
      }
      table.push(line(`a place, one at a time, ${name}`, ms));
    }
    for (const many of [8, 64]) {
      const ms: number[] = [];
      const client = async (store: typeof one) => {
        for (let i = 0; i < (2 * ROUNDS) / many; i++) ms.push(await enter(store, principal));
      };
      await Promise.all(Array.from({ length: many }, (_, i) => client(i % 2 ? one : two)));
      table.push(line(`a place, ${many} at once at two servers`, ms));
    }
    const [first, known, heard]: number[][] = [[], [], []];
    for (let i = 0; i < 100; i++) {
      const { key, secret } = await one.keys.create({ tenant: "acme" });
      await sleep(20);
      first!.push(await timed(() => two.authenticate(secret)));
      known!.push(await timed(() => two.authenticate(secret)));
      await one.keys.revoke(key.id);
      heard!.push(
        await timed(async () => {
          while (await two.authenticate(secret)) await turn();
        }),
      );
    }
    table.push(
      line("a key for the first time", first!),
      line("a known key", known!),
      line("revoked elsewhere", heard!),
    );
    process.stdout.write(`${table.join("\n")}\n`);
    expect(table).toHaveLength(10);
  });
});
