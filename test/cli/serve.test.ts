/** @file `milora serve` as a process: what it prints, the config's three sources, and how it ends. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { milora, root, temporary, tiny } from "./milora.ts";

interface Announced {
  readonly url: string;
  readonly pid: number;
  readonly model: string;
  readonly auth: string;
  readonly maxBatch: number;
}

interface Running {
  readonly child: ChildProcess;
  readonly stdout: () => string;
  readonly stderr: () => string;
}

function start(args: readonly string[], env: Record<string, string> = {}): Running {
  const child = spawn(process.execPath, [join(root, "dist/cli/main.js"), "serve", ...args], {
    cwd: root,
    env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: undefined, ...env },
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  const texts = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name]?.setEncoding("utf8").on("data", (text: string) => {
      texts[name] += text;
    });
  }
  return { child, stdout: () => texts.stdout, stderr: () => texts.stderr };
}

async function announced({ child, stdout, stderr }: Running): Promise<Announced> {
  while (!stdout().includes("\n")) {
    if (child.exitCode !== null) throw new Error(stderr());
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return JSON.parse(stdout()) as Announced;
}

const long = {
  model: "tiny-llama",
  prompt: "The cell",
  max_tokens: 400,
  temperature: 0,
  ignore_eos: true,
  stream: true,
};

function post(url: string, body: object): Promise<Response> {
  const headers = { "content-type": "application/json" };
  return fetch(`${url}/v1/completions`, { method: "POST", headers, body: JSON.stringify(body) });
}

test("SIGTERM lets a stream end, then the process ends with 0; nothing but the one line is on stdout", async () => {
  const data = join(temporary(), "data");
  const running = start(["--model", tiny, "--data", data, "--port", "0", "--json"]);
  const { url, pid, auth } = await announced(running);
  expect([pid, auth]).toEqual([running.child.pid, "open"]);
  const response = await post(url, long);
  const reader = response.body!.getReader();
  let text = Buffer.from((await reader.read()).value!).toString();
  const ended = once(running.child, "exit");
  running.child.kill("SIGTERM");
  let ready = 200; // until the signal has arrived
  while (ready === 200) ready = (await fetch(`${url}/readyz`)).status;
  expect(ready).toBe(503);
  for (let part = await reader.read(); !part.done; part = await reader.read())
    text += Buffer.from(part.value).toString();
  expect(text.trim().endsWith("data: [DONE]")).toBe(true);
  expect(text.split("\n\n").length).toBeGreaterThan(300);
  expect(await ended).toEqual([0, null]);
  expect(running.stdout().trim().split("\n")).toHaveLength(1);
  const lines = running
    .stderr()
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(lines.some(({ route, status }) => route === "/v1/completions" && status === 200)).toBe(true);
  expect(running.stderr()).not.toContain("The cell");

  // What was there is there again; a second server cannot have the same data directory.
  const second = start(["--model", tiny, "--data", data, "--port", "0", "--json"]);
  const again = await announced(second);
  const third = await milora(["serve", "--model", tiny, "--data", data, "--port", "0"]);
  expect(third.code).toBe(2);
  expect(third.stderr).toContain(`is in use by process ${second.child.pid}`);
  await post(again.url, long);
  const killed = once(second.child, "exit");
  second.child.kill("SIGINT");
  second.child.kill("SIGTERM");
  expect(await killed).toEqual([130, null]);
});

test("flags win over the environment, that over the file; a plain start says where to look", async () => {
  const directory = temporary();
  const file = join(directory, "serve.yaml");
  writeFileSync(
    file,
    `model: ${tiny}\nname: from-file\nport: 0\ndata: ${directory}/data\nlimits:\n  maxBatch: 3\n  maxWaiting: 5\n`,
  );
  const env = { MILORA_SERVE_NAME: "from-environment", MILORA_SERVE_LIMITS__MAX_BATCH: "4" };
  const running = start(["--config", file, "--max-batch", "5", "--json"], env);
  expect(await announced(running)).toMatchObject({ model: "from-environment", maxBatch: 5 });
  running.child.kill("SIGTERM");
  await once(running.child, "exit");
  const plain = start(["--config", file]);
  while (!plain.stdout().includes("try")) await new Promise((resolve) => setTimeout(resolve, 20));
  expect(plain.stdout()).toMatch(/http:\/\/127\.0\.0\.1:\d+ {2}ready after .* up to 3 sequences/);
  expect(plain.stdout()).toContain("curl http://127.0.0.1:");
  expect(plain.stdout()).toContain("from-file");
});

test.each([
  [["--port", "0"], "needs --model"],
  [["--model", "/nowhere", "--data", "DATA"], "/nowhere"],
  [["--model", tiny, "--adapter", "x"], "NAME=DIR"],
  [["--model", tiny, "--set", "limits.maxBatch=0"], "limits.maxBatch"],
  [["--model", tiny, "--set", "limits.maxBatches=2"], "maxBatches"],
  [["--model", tiny, "--data", "DATA", "--host", "0.0.0.0"], "--auth open"],
  [["--model", tiny, "--data", "DATA", "--port", "0", "--adapter", "x=/nowhere"], "/nowhere"],
])("%j is refused with one line and code 2", async (args, text) => {
  const data = join(temporary(), "data");
  const outcome = await milora(["serve", ...args.map((arg) => (arg === "DATA" ? data : arg))]);
  expect(outcome.code).toBe(2);
  expect(outcome.stderr).toContain(text);
  expect(outcome.stdout).toBe("");
});
