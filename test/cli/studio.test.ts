/** @file `milora studio` as a process: where it is, whom it answers, and how it ends. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { milora, root, temporary } from "./milora.ts";

interface Announced {
  readonly url: string;
  readonly pid: number;
  readonly folders: readonly string[];
}

async function start(args: readonly string[], cwd = root, database?: string): Promise<[ChildProcess, Announced]> {
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), "studio", ...args], {
    cwd,
    env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: undefined, DATABASE_URL: database },
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  let text = "";
  child.stdout.setEncoding("utf8");
  for await (const part of child.stdout) {
    text += part;
    if (text.includes("\n")) break;
  }
  return [child, JSON.parse(text) as Announced];
}

test("it shows runs to this machine, without a model, a database or keys, until Ctrl-C", async () => {
  const directory = temporary();
  mkdirSync(join(directory, "runs"));
  const [child, { url, pid, folders }] = await start(["--port", "0", "--json"], directory);
  expect([pid, folders]).toEqual([child.pid, ["runs"]]);
  expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/studio\/$/);
  const session = await fetch(`${url}v1/session`);
  expect(await session.json()).toMatchObject({ signedIn: true, byKey: false, role: "admin", server: null, runs: true });
  const runs = await fetch(`${url}v1/runs`);
  expect([runs.status, await runs.json()]).toEqual([200, { runs: [] }]);
  // What needs a server is not here, and other sites' pages are not answered.
  expect((await fetch(new URL("/v1/models", url))).status).toBe(404);
  expect((await fetch(`${url}v1/runs`, { headers: { origin: "https://evil.example" } })).status).toBe(403);
  const ended = once(child, "exit");
  child.kill("SIGINT");
  expect(await ended).toEqual([0, null]);
});

test("sweeps are those of a PostgreSQL; what another program's environment names is not asked", async () => {
  const directory = temporary();
  const sessionOf = async (database?: string, ...more: string[]) => {
    const [child, { url }] = await start([directory, "--port", "0", "--json", ...more], root, database);
    const session = (await (await fetch(`${url}v1/session`)).json()) as { sweeps: boolean };
    const { status } = await fetch(`${url}v1/sweeps`);
    child.kill("SIGINT");
    return [session.sweeps, status];
  };
  expect(await sessionOf()).toEqual([false, 404]);
  expect(await sessionOf("mysql://other/app")).toEqual([false, 404]);
  const nowhere = "postgres://nobody@127.0.0.1:1/none";
  expect(await sessionOf(nowhere)).toEqual([true, 503]); // and tells so, as long as it does not answer
  expect(await sessionOf(undefined, "--database", nowhere)).toEqual([true, 503]);
});

test.each([
  [["DIR", "--database", "mysql://other/app"], "postgres"],
  [["DIR/none"], "none is not there"],
  [["DIR/file"], "file is no folder"],
  [["DIR", "--host", "0.0.0.0"], "reached by others"],
  [["DIR", "--port", "70000"], "70000"],
])("%j is refused with one line and code 2", async (args, text) => {
  const directory = temporary();
  writeFileSync(join(directory, "file"), "");
  const { code, stdout, stderr } = await milora(["studio", ...args.map((arg) => arg.replace("DIR", directory))]);
  expect([code, stdout]).toEqual([2, ""]);
  expect(stderr).toContain(text);
  expect(stderr.trimEnd()).not.toContain("\n");
});

test("a server is given folders of runs by flag", async () => {
  const { code, stderr } = await milora(["serve", "--model", "assets/tiny-llama", "--runs", "/nowhere/runs"]);
  expect([code, stderr]).toEqual([2, expect.stringContaining("/nowhere/runs is not there")]);
});
