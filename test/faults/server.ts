/** @file A server that is killed, runs out of handles, whose clock jumps and whose clients are slow or vanish. */
import { type ChildProcess, execFileSync } from "node:child_process";
import { mkdirSync, readdirSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { openStore } from "../../src/serving/store/index.ts";
import { count, faultsOf, must, type Outcome, Patience, type Settings, start, until } from "./children.ts";

export interface Running {
  readonly url: string;
  readonly child: ChildProcess;
  readonly ended: Promise<number | null>;
  stderr(): string;
}

const NAMES = ["n0", "n1", "n2"];

/** A data directory with one administrator's key. */
export async function newData(directory: string): Promise<string> {
  mkdirSync(directory, { recursive: true });
  await using store = await openStore({ directory });
  return (await store.keys.create({ admin: true })).secret;
}

export async function serve(
  settings: Settings,
  data: string,
  { more = [], ...options }: Parameters<typeof start>[2] & { readonly more?: readonly string[] } = {},
): Promise<Running> {
  // biome-ignore format: one line
  const args = ["serve", "--model", settings.model, "--data", data, "--port", "0", "--auth", "required", "--json", "--set", "name=tiny", "--set", "residency.graceMs=0", ...more]; // biome-ignore format: one line
  const child = start(settings.dist, args, options);
  let stderr = "";
  child.stderr!.setEncoding("utf8").on("data", (text: string) => {
    stderr = (stderr + text).slice(-20_000);
  });
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  const ready = new Promise<string>((resolve) => createInterface({ input: child.stdout! }).once("line", resolve));
  const line = await Promise.race([ready, ended]);
  must(typeof line === "string", `the server ended with ${line}: ${stderr}`);
  return { url: (JSON.parse(line) as { url: string }).url, child, ended, stderr: () => stderr };
}

interface Answer {
  readonly status: number;
  readonly body: {
    digest?: string;
    data?: { name: string; digest: string; corrupt?: boolean }[];
    error?: { code: string };
  };
}

export async function ask(url: string, key: string, method: string, path: string, body?: unknown): Promise<Answer> {
  const archive = body instanceof Uint8Array;
  const type = archive ? "application/x-tar" : "application/json";
  using patience = new Patience(60);
  const response = await fetch(url + path, {
    method,
    headers: { authorization: `Bearer ${key}`, ...(body !== undefined && { "content-type": type }) },
    ...(body !== undefined && { body: archive ? Buffer.from(body) : JSON.stringify(body) }),
    signal: patience.signal,
  });
  const text = await response.text();
  must(!/\n\s+at |\.[jt]s:\d/.test(text), `a stack in an answer: ${text}`);
  return { status: response.status, body: JSON.parse(text) as Answer["body"] };
}

export const completion = (model: string) => ({ model, prompt: "The cell", max_tokens: 3, temperature: 0 });

/** Archives of adapters that differ, as `tar` packs them. */
export function archivesOf({ adapter, directory }: Settings, some = 3): Uint8Array[] {
  return Array.from({ length: some }, (_, i) => {
    const copy = join(directory, `upload-${i}`);
    execFileSync("cp", ["-r", adapter, copy]);
    // A field that says nothing: another digest.
    execFileSync("sed", ["-i", `s/"r":/"note": ${i}, "r":/`, join(copy, "adapter_config.json")]);
    return execFileSync("tar", ["cf", "-", "-C", copy, "adapter_config.json", "adapter_model.safetensors"]);
  });
}

/** Uploads, removals and completions without end; `kill -9` at any time; then everything that was confirmed is there. */
export async function killServer(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const data = join(settings.directory, "data");
  const key = await newData(data);
  const archives = archivesOf(settings);
  const digests = new Map<number, string>();
  /** What a name may stand for: what was confirmed, and what was begun since. */
  const allowed = new Map<string, Set<string | null>>(NAMES.map((name) => [name, new Set([null])]));
  let [confirmed, most] = [0, 0];
  for (;;) {
    const { url, child, ended } = await serve(settings, data);
    const listed = (await ask(url, key, "GET", "/v1/adapters")).body.data!;
    for (const name of NAMES) {
      const found = listed.find((one) => one.name === name);
      const may = allowed.get(name)!;
      must(may.has(found?.digest ?? null) || (found !== undefined && may.has("unknown")), `${name} is ${found?.digest}, not one of ${[...may].join(", ")}`); // biome-ignore format: one line
      if (found) must((await ask(url, key, "POST", "/v1/completions", completion(name))).status === 200, `${name} cannot be used`); // biome-ignore format: one line
      if (found) most++;
      allowed.set(name, new Set([found?.digest ?? null]));
    }
    await until(() => readdirSync(join(data, "adapters/.drafts")).length === 0, "no drafts");
    const usage = (await ask(url, key, "GET", "/admin/v1/usage?by=tenant")).body as unknown as { usage: { requests: number }[] }; // biome-ignore format: one line
    const requests = usage.usage.reduce((sum, one) => sum + one.requests, 0);
    must(requests >= confirmed && requests <= most, `usage says ${requests} requests, not ${confirmed} to ${most}`);
    confirmed = requests;
    if (!settings.more()) {
      child.kill("SIGTERM");
      must((await ended) === 0, "the server did not end in peace");
      break;
    }
    let [stopped, answers] = [false, 0];
    const worker = async (work: (i: number) => Promise<void>): Promise<void> => {
      for (let i = 0; !stopped; i++) await work(i).then(() => answers++, () => {}); // biome-ignore format: one line
    };
    const workers = [
      ...NAMES.map((name) =>
        worker(async (i) => {
          const may = allowed.get(name)!;
          if (i % 5 === 4) {
            may.add(null);
            const { status } = await ask(url, key, "DELETE", `/v1/adapters/${name}`);
            if (status === 200) allowed.set(name, new Set([null]));
            return;
          }
          const which = Math.floor(settings.random() * archives.length);
          may.add(digests.get(which) ?? "unknown");
          const { status, body } = await ask(url, key, "PUT", `/v1/adapters/${name}`, archives[which]);
          if (status !== 201) return;
          digests.set(which, body.digest!);
          allowed.set(name, new Set([body.digest!]));
          count(seen, "uploads confirmed");
        }),
      ),
      ...["tiny", ...NAMES].map((model) =>
        worker(async () => {
          most++;
          const { status } = await ask(url, key, "POST", "/v1/completions", completion(model)); // biome-ignore format: one line
          count(seen, status === 200 ? "completions" : "completions refused");
        }),
      ),
    ];
    // Busy machines take seconds for their first answers: most kills come among them, some before.
    if (settings.random() < 0.8) await until(() => answers >= 4, "answers");
    await sleep(settings.random() * 1500);
    child.kill("SIGKILL");
    stopped = true;
    await Promise.all([ended, ...workers]);
    settings.done++;
  }
  return { scenario: "serving and uploading, killed and started again", seen };
}

function open(url: string): Promise<Socket | undefined> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    const socket = connect(Number(port), hostname);
    socket.on("error", () => {}).once("close", () => resolve(undefined)).once("connect", () => resolve(socket)); // biome-ignore format: one line
  });
}

/** Too few handles for its connections: it refuses what it cannot hold, and has all of them back afterwards. */
export async function fewHandles(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const data = join(settings.directory, "data");
  const key = await newData(data);
  const [archive] = archivesOf(settings, 1);
  const { url, child, ended, stderr } = await serve(settings, data, { shell: "ulimit -n 300;" });
  for (const _ of faultsOf(settings)) {
    const sockets = await Promise.all(Array.from({ length: 400 }, () => open(url)));
    const answers = await Promise.allSettled([
      ask(url, key, "PUT", "/v1/adapters/n0", archive),
      ask(url, key, "POST", "/v1/completions", completion("tiny")),
    ]);
    for (const [i, answer] of answers.entries()) {
      const what = i === 0 ? "an upload" : "a completion";
      const code = answer.status === "fulfilled" ? `${answer.value.status}` : "no connection";
      must(code !== "500", `${what} was answered with 500: ${stderr()}`);
      count(seen, `${what}: ${code}`);
    }
    for (const socket of sockets) socket?.destroy();
    await until(async () => (await ask(url, key, "GET", "/healthz").catch(() => undefined))?.status === 200, "health");
    must((await ask(url, key, "PUT", "/v1/adapters/n0", archive)).status === 201, "no upload afterwards");
    must((await ask(url, key, "POST", "/v1/completions", completion("n0"))).status === 200, "no answer afterwards");
  }
  child.kill("SIGTERM");
  must((await ended) === 0, "the server did not end in peace");
  return { scenario: "no file handles left (ulimit -n)", seen };
}

/** Clients that send by the byte, leave in the middle of anything, or read nothing. */
export async function badClients(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const data = join(settings.directory, "data");
  const key = await newData(data);
  const { url, child, ended } = await serve(settings, data);
  const body = JSON.stringify({ ...completion("tiny"), max_tokens: 200, ignore_eos: true, stream: true });
  const head = `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${key}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
  const upload = `PUT /v1/adapters/x HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer ${key}\r\ncontent-type: application/x-tar\r\ncontent-length: 1000000\r\n\r\n`;
  const client = async (): Promise<void> => {
    const socket = await open(url);
    if (!socket) return count(seen, "not connected");
    const kind = Math.floor(settings.random() * 4);
    const text = kind === 3 ? upload + "x".repeat(5000) : head + body;
    const end = performance.now() + settings.random() * 600;
    if (kind === 0)
      for (let i = 0; i < text.length && performance.now() < end; i += 7) {
        socket.write(text.slice(i, i + 7));
        await sleep(10);
      }
    else socket.write(text.slice(0, kind === 1 ? Math.floor(settings.random() * text.length) : text.length));
    if (kind === 2) socket.pause();
    await sleep(Math.max(0, end - performance.now()));
    socket.destroy();
    count(seen, ["sent by the byte", "cut", "left a stream", "left an upload"][kind]!);
  };
  while (settings.more()) {
    const some = Math.min(20, settings.times - settings.done);
    await Promise.all(Array.from({ length: some }, client));
    settings.done += some;
    must((await ask(url, key, "POST", "/v1/completions", completion("tiny"))).status === 200, "no answer between them");
  }
  await until(async () => {
    const status = (await ask(url, key, "GET", "/admin/v1/status")).body as unknown as {
      running: number;
      waiting: number;
    };
    return status.running === 0 && status.waiting === 0;
  }, "nothing under way");
  await until(() => readdirSync(join(data, "adapters/.drafts")).length === 0, "no drafts");
  child.kill("SIGTERM");
  must((await ended) === 0, "the server did not end in peace");
  return { scenario: "clients that are slow or vanish", seen };
}
