/** @file Who may write into a run's directory. */
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { isTraining, RunDirectory } from "./run-directory.ts";

const root = mkdtempSync(join(tmpdir(), "milora-runs-"));
afterAll(() => rmSync(root, { recursive: true }));

const exists = expect.objectContaining({ code: "RUN_EXISTS" });

describe("RunDirectory", () => {
  it("is held by one run at a time", () => {
    const path = join(root, "a");
    const lock = join(path, "training.lock");
    {
      using first = RunDirectory.open(path, false);
      expect(first.checkpoint).toBeUndefined();
      expect(() => RunDirectory.open(path, false)).toThrow(exists);
      expect(existsSync(lock)).toBe(true);
    }
    expect(existsSync(lock)).toBe(false);
  });

  it("respects a living process's lock and takes over a dead one's", () => {
    const path = join(root, "b");
    mkdirSync(path);
    const lock = join(path, "training.lock");
    writeFileSync(lock, `${process.ppid}\n`);
    expect(() => RunDirectory.open(path, false)).toThrow(exists);
    const dead = spawnSync(process.execPath, ["-e", ""]).pid;
    writeFileSync(lock, `${dead}\n`);
    RunDirectory.open(path, false)[Symbol.dispose]();
    writeFileSync(lock, ""); // a power cut came before its content
    RunDirectory.open(path, false)[Symbol.dispose]();
    writeFileSync(lock, `${process.pid}\n`); // a process of the same number died here, before a restart of the machine
    RunDirectory.open(path, false)[Symbol.dispose]();
    expect(existsSync(lock)).toBe(false);
  });

  it("respects another machine's lock as long as that beats, which is told as training; its own beats", async () => {
    const path = join(root, "far");
    mkdirSync(path);
    const lock = join(path, "training.lock");
    writeFileSync(lock, `${process.pid} elsewhere\n`);
    expect(isTraining(path)).toBe(true);
    expect(() => RunDirectory.open(path, false)).toThrow(exists);
    const old = new Date(Date.now() - 120_000);
    utimesSync(lock, old, old);
    expect(isTraining(path)).toBe(false);
    {
      using _ = RunDirectory.open(path, false);
      expect(readFileSync(lock, "utf8")).toBe(`${process.pid} ${hostname()}\n`);
      utimesSync(lock, old, old);
      while (statSync(lock).mtimeMs < Date.now() - 60_000) await new Promise((resolve) => setTimeout(resolve, 50));
    }
    expect(existsSync(lock)).toBe(false);
  });

  it("goes on from the newest complete checkpoint", () => {
    const path = join(root, "c");
    for (const name of ["step-9", "step-10", ".step-12.1.ab.tmp", "other"]) {
      mkdirSync(join(path, "checkpoints", name), { recursive: true });
    }
    using run = RunDirectory.open(path, true);
    expect(run.checkpoint).toBe(10);
    expect(existsSync(join(path, "checkpoints/.step-12.1.ab.tmp"))).toBe(false);
  });

  it("has its best adapter back that was being replaced when a process was killed", () => {
    const path = join(root, "d");
    const dead = spawnSync(process.execPath, ["-e", ""]).pid;
    mkdirSync(join(path, "checkpoints/step-1"), { recursive: true });
    mkdirSync(join(path, `.best.${dead}.00ff00ff.old`));
    writeFileSync(join(path, `.best.${dead}.00ff00ff.old`, "adapter_config.json"), "{}");
    mkdirSync(join(path, `.best.${dead}.0123abcd.tmp`));
    RunDirectory.open(path, true)[Symbol.dispose]();
    expect(readdirSync(path).sort()).toEqual(["best", "checkpoints"]);
    expect(readdirSync(join(path, "best"))).toEqual(["adapter_config.json"]);
    // Once it was replaced, the old one only goes.
    mkdirSync(join(path, `.best.${dead}.00ff00ff.old`));
    RunDirectory.open(path, true)[Symbol.dispose]();
    expect(readdirSync(join(path, "best"))).toEqual(["adapter_config.json"]);
    expect(readdirSync(path).sort()).toEqual(["best", "checkpoints"]);
  });

  it("says when the directory cannot be made", () => {
    writeFileSync(join(root, "file"), "");
    const unwritable = expect.objectContaining({ code: "OUTPUT_UNWRITABLE" });
    expect(() => RunDirectory.open(join(root, "file", "run"), false)).toThrow(unwritable);
    expect(() => RunDirectory.open(join(root, "file"), false)).toThrow(unwritable);
  });
});
