/** @file Drafts that cannot be removed when they end go with the next sweep; those under way stay. */
import { mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Draft, sweep } from "./files.ts";
import { drafts, temporary } from "./testing.ts";

async function* bytes(): AsyncGenerator<Uint8Array> {
  yield Buffer.from("{}");
}

test("a draft that could not be removed, as on a disk that is read-only for a while, is no failure and goes later", async () => {
  const root = temporary();
  const other = await Draft.create(root, 100);
  const draft = await Draft.create(root, 100);
  await draft.receive("adapter_config.json", bytes());
  // Nothing below a file can be reached.
  renameSync(join(root, ".drafts"), join(root, "aside"));
  writeFileSync(join(root, ".drafts"), "");
  await draft[Symbol.asyncDispose]();
  rmSync(join(root, ".drafts"));
  renameSync(join(root, "aside"), join(root, ".drafts"));
  expect(drafts(root)).toHaveLength(2);
  mkdirSync(join(root, "0".repeat(64)));
  expect(await sweep(root, new Set(), 0, Date.now() + 1000)).toEqual(["0".repeat(64)]);
  expect(drafts(root)).toHaveLength(1);
  expect(readdirSync(root)).toEqual([".drafts"]);
  await other[Symbol.asyncDispose]();
  expect(drafts(root)).toEqual([]);
});
