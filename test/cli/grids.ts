/** @file For tests of grids: a few rows, commands that go on meanwhile, their processes, and what a grid has made. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { onTestFailed, onTestFinished } from "vitest";
import { root, temporary } from "./milora.ts";

/** A few rows of the bundled tasks. */
export function fewRows(): string {
  const directory = temporary();
  for (const split of ["train", "dev", "test"]) {
    for (const task of ["subjects", "authors"]) {
      mkdirSync(join(directory, task), { recursive: true });
      const lines = readFileSync(join(root, "assets/data", task, `${split}.jsonl`), "utf8").split("\n");
      writeFileSync(join(directory, task, `${split}.jsonl`), `${lines.slice(0, 12).join("\n")}\n`);
    }
  }
  return directory;
}

export interface Running {
  readonly child: ChildProcess;
  /** Until stderr holds this text. */
  said(text: string): Promise<void>;
  readonly ended: Promise<number | null>;
  stderr(): string;
}

/** A command that goes on while the test does other things. */
export function start(args: readonly string[], env: Record<string, string>): Running {
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), ...args], {
    ...{ cwd: root, env: { ...process.env, NO_COLOR: "1", ...env }, stdio: ["ignore", "ignore", "pipe"] },
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  let seen = "";
  onTestFailed(() => console.error(`milora ${args[0]} (${child.exitCode ?? child.signalCode ?? "runs"}): ${seen}`));
  const waiting = new Set<() => void>();
  child.stderr!.on("data", (text) => {
    seen += text;
    for (const look of waiting) look();
  });
  const ended = once(child, "exit").then(([code]) => code as number | null);
  return {
    ...{ child, ended, stderr: () => seen },
    said: async (text) => {
      const there = new Promise<void>((resolve) => {
        const look = () => {
          if (seen.includes(text)) resolve();
        };
        waiting.add(look);
        look();
      });
      await Promise.race([
        there,
        ended.then(() => {
          if (!seen.includes(text)) throw new Error(`ended without ${JSON.stringify(text)}: ${seen}`);
        }),
      ]);
    },
  };
}

export const childrenOf = (pid: number): number[] => {
  try {
    return execFileSync("pgrep", ["-P", String(pid)], { encoding: "utf8" })
      .trim()
      .split("\n")
      .map(Number);
  } catch {
    return []; // none
  }
};

/** Cells and adapters in a grid's directory, but for clocks and machines. */
export function madeIn(output: string): (readonly [string, unknown])[] {
  const finished = readdirSync(join(output, "cells")).filter((name) => name.endsWith(".json")); // no drafts of who was killed
  const cells = finished.map((name) => {
    const { seconds: _, made: __, ...rest } = JSON.parse(readFileSync(join(output, "cells", name), "utf8"));
    return [name, rest] as const;
  });
  const adapters = readdirSync(join(output, "runs")).map((id) => {
    const weights = readFileSync(join(output, "runs", id, "best/adapter_model.safetensors"));
    return [`adapter ${id}`, weights.toString("base64")] as const;
  });
  return [...cells, ...adapters];
}
