/** @file Readers that go away before a command has ended: `milora … | head`, a terminal's window that is closed. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { expect, test } from "vitest";
import { root, temporary, tiny } from "./milora.ts";

const MAIN = join(root, "dist/cli/main.js");
const rows = join(root, "assets/data/subjects/dev.jsonl");

/** Reads one of the streams up to its first words, then closes it. */
async function left(stream: "stdout" | "stderr", args: readonly string[]) {
  const env = { ...process.env, NO_COLOR: "1", MILORA_DEBUG: undefined };
  const child = spawn(process.execPath, [MAIN, ...args], { cwd: root, env, stdio: ["ignore", "pipe", "pipe"] });
  const rest = text(stream === "stdout" ? child.stderr : child.stdout);
  child[stream].once("data", () => child[stream].destroy());
  const [code] = (await once(child, "exit")) as [number | null];
  return { code, rest: await rest };
}

test("of a result: that is no error", async () => {
  expect(await left("stdout", ["methods", "--model", tiny])).toEqual({ code: 0, rest: "" });
});

test("of the notes: the work goes on to its end", async () => {
  const output = join(temporary(), "run");
  const flags = ["--quick", "--method", "lora", "--model", tiny, "--train", rows, "--output", output];
  const { code, rest } = await left("stderr", ["train", ...flags]);
  expect([code, rest]).toEqual([0, expect.stringContaining("finished after 4 of 4 steps")]);
  expect(existsSync(join(output, "report.html"))).toBe(true);
});

test("of work that is not done: it is stopped as by Ctrl-C, and not said to be finished", async () => {
  const { code, rest } = await left("stdout", ["demo", "--quick", "--output", join(temporary(), "demo")]);
  expect([code, rest]).toEqual([130, expect.stringContaining("the same command goes on from here")]);
});
