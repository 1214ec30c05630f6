/** @file What gets its name is on the disk before: files, however they were written, the directories they are in, and those made for them. */
import fs from "node:fs";
import { syncBuiltinESMExports } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeEach, test as every, expect } from "vitest";
import { makeDirectory, writeDirectoryAtomic, writeFileAtomic } from "./files.ts";

/** Windows cannot open directories. */
const test = every.skipIf(process.platform === "win32");
const directory = fs.mkdtempSync(join(tmpdir(), "milora-durable-"));
const { closeSync, fsyncSync, openSync, renameSync } = fs;
const open = new Map<number, string>();
let events: string[] = [];
const shown = (path: string): string =>
  path.slice(directory.length + 1).replace(/\.\d+\.[0-9a-f]{8}\.(tmp|old)/, ".$1") || ".";
fs.openSync = (path, ...rest) => {
  const handle = openSync(path, ...rest);
  open.set(handle, String(path));
  return handle;
};
fs.closeSync = (handle) => {
  open.delete(handle);
  closeSync(handle);
};
fs.fsyncSync = (handle) => {
  fsyncSync(handle);
  events.push(`sync ${shown(open.get(handle)!)}`);
};
fs.renameSync = (from, to) => {
  renameSync(from, to);
  events.push(`rename ${shown(String(to))}`);
};
syncBuiltinESMExports();
afterAll(() => {
  Object.assign(fs, { closeSync, fsyncSync, openSync, renameSync });
  syncBuiltinESMExports();
  fs.rmSync(directory, { recursive: true, force: true });
});
beforeEach(() => {
  events = [];
});

test("a file", () => {
  writeFileAtomic(join(directory, "file"), "text");
  expect(events).toEqual(["sync .file.tmp", "rename file", "sync ."]);
});

test("a directory, with files that were copied, and what is above it", async () => {
  fs.writeFileSync(join(directory, "source"), "text");
  await writeDirectoryAtomic(join(directory, "a/b/output"), (draft) => {
    fs.mkdirSync(join(draft, "deep"));
    fs.copyFileSync(join(directory, "source"), join(draft, "deep/copy"));
  });
  expect(events).toEqual([
    ...["sync a", "sync ."],
    ...["sync a/b/.output.tmp/deep/copy", "sync a/b/.output.tmp/deep", "sync a/b/.output.tmp"],
    ...["rename a/b/output", "sync a/b"],
  ]);
});

test("directories that are there are left alone", () => {
  makeDirectory(join(directory, "c/d"));
  expect(events).toEqual(["sync c", "sync ."]);
  events = [];
  makeDirectory(join(directory, "c/d"));
  expect(events).toEqual([]);
});
