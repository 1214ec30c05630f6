/** @file A service of the tests does not outlive them, even if they are killed. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, onTestFinished, test } from "vitest";
import { isAlive } from "../../base/index.ts";
import { serviceDirectory, spawnService } from "./services.ts";

test.runIf(existsSync("/usr/bin/setpriv"))("a service ends with a process that is killed", async () => {
  const [file, args] = await (async () => {
    const child = spawnService("/bin/sleep", ["1000"]);
    const [command, ...rest] = child.spawnargs;
    child.kill("SIGKILL");
    await once(child, "exit");
    return [command!, rest] as const;
  })();
  const script = `const child = require("node:child_process").spawn(${JSON.stringify(file)}, ${JSON.stringify(args)}, { stdio: "ignore" });
    console.log(child.pid); setInterval(() => {}, 1000);`;
  const parent = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
  const [line] = (await once(createInterface({ input: parent.stdout }), "line")) as [string];
  expect(isAlive(Number(line))).toBe(true);
  while (!readFileSync(`/proc/${line}/comm`, "utf8").startsWith("sleep")) await sleep(20); // setpriv has done its part
  parent.kill("SIGKILL");
  while (stateOf(line) !== undefined) await sleep(20);
});

/** Undefined for a process that has ended, also where nobody asks for its end, as in a container without an init. */
function stateOf(pid: string): string | undefined {
  try {
    const state = /\) (\w) /.exec(readFileSync(`/proc/${pid}/stat`, "utf8"))?.[1];
    return state === "Z" ? undefined : state;
  } catch {
    return undefined;
  }
}

test("a directory that a process has left which is gone is removed by the next one", () => {
  const [gone, other] = ["milora-test-999999999-abcdef", "milora-test-x"].map((name) => join(tmpdir(), name)) as [
    string,
    string,
  ];
  for (const path of [gone, other]) mkdirSync(path, { recursive: true });
  const [first, second] = [serviceDirectory("milora-test"), serviceDirectory("milora-test")];
  onTestFinished(() => {
    for (const path of [gone, other, first, second]) rmSync(path, { recursive: true, force: true });
  });
  expect([gone, other, first, second].map((path) => existsSync(path))).toEqual([false, true, true, true]);
});
