/** @file A data directory has one owner at a time, and a dead one keeps nobody out. */
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { LOCK_FILE, lockDirectory } from "./lock.ts";
import { temporary } from "./testing.ts";

const inUse = (by: string | number) =>
  expect.objectContaining({ code: "DATA_IN_USE", message: expect.stringContaining(String(by)) });

test("is held until disposed, and leaves nothing behind", () => {
  const directory = join(temporary(), "new");
  {
    using _lock = lockDirectory(directory);
    expect(() => lockDirectory(directory)).toThrow(inUse(process.pid));
    expect(readdirSync(directory)).toEqual([LOCK_FILE]);
  }
  expect(readdirSync(directory)).toEqual([]);
  lockDirectory(directory)[Symbol.dispose]();
});

test("a living process is respected, a dead one's lock taken over", async () => {
  const directory = temporary();
  const path = join(directory, LOCK_FILE);
  const other = spawn(process.execPath, ["-e", "setInterval(() => {}, 1000)"]);
  const started = () => (JSON.parse(readFileSync(path, "utf8")) as { started: string | null }).started;
  {
    using _lock = lockDirectory(directory);
    if (process.platform === "linux") expect(started()).toMatch(/^[0-9a-f-]{36} \d+$/);
  }
  writeFileSync(path, JSON.stringify({ pid: other.pid, started: null }));
  expect(() => lockDirectory(directory)).toThrow(inUse(other.pid!));
  other.kill("SIGKILL");
  await once(other, "exit");
  lockDirectory(directory)[Symbol.dispose]();
  writeFileSync(path, JSON.stringify({ pid: process.pid, started: "before" })); // this number, before a restart
  lockDirectory(directory)[Symbol.dispose]();
  expect(existsSync(path)).toBe(false);
});

test.runIf(process.platform === "linux")("a number that another process has now is no owner", () => {
  const directory = temporary();
  writeFileSync(join(directory, LOCK_FILE), JSON.stringify({ pid: process.ppid, started: "long ago 1" }));
  using _lock = lockDirectory(directory);
});

test("damaged locks and guards of killed processes are no obstacles", () => {
  const directory = temporary();
  for (const text of [
    "",
    "{",
    '{"pid":"x"}',
    '{"pid":0}',
    '{"pid":-1}',
    '{"pid":1e15}',
    "null",
    JSON.stringify({ pid: spawnSync("true").pid, started: null }),
  ]) {
    writeFileSync(join(directory, LOCK_FILE), text);
    mkdirSync(join(directory, `${LOCK_FILE}.takeover`));
    lockDirectory(directory)[Symbol.dispose]();
    expect(readdirSync(directory)).toEqual([]);
  }
});
