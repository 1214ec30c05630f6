/** @file What the embedded database has confirmed is on the disk: each commit waits until its log is synchronised. */
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { openStore } from "./store.ts";

const directory = fs.mkdtempSync(join(tmpdir(), "milora-durable-"));
const { fsyncSync } = fs;
let synchronised = 0;
fs.fsyncSync = (handle) => {
  fsyncSync(handle);
  synchronised++;
};
syncBuiltinESMExports();
afterAll(() => {
  fs.fsyncSync = fsyncSync;
  syncBuiltinESMExports();
  fs.rmSync(directory, { recursive: true, force: true });
});

test("tenants, keys and their end are synchronised before they are confirmed", async () => {
  {
    await using store = await openStore({ directory });
    const times = async (change: () => Promise<unknown>): Promise<number> => {
      const before = synchronised;
      await change();
      return synchronised - before;
    };
    expect(await times(() => store.tenants.list())).toBe(0);
    expect(await times(() => store.tenants.create({ id: "acme" }))).toBeGreaterThan(0);
    let id = "";
    expect(
      await times(async () => {
        id = (await store.keys.create({ tenant: "acme" })).key.id;
      }),
    ).toBeGreaterThan(0);
    expect(await times(() => store.keys.revoke(id))).toBeGreaterThan(0);
  }
  await using again = await openStore({ directory });
  expect(await again.keys.list()).toMatchObject([{ revokedAt: expect.any(Date) }]);
});
