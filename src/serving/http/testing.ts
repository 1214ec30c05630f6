/** @file For tests: a real server on the bundled model, with adapters whose answers differ. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { expect } from "vitest";
import { Adapter, methodOf } from "../../methods/index.ts";
import { readBackboneConfig } from "../../models/index.ts";
import { parseServerConfig, type ServerConfigInput } from "./config.ts";
import { createLog } from "./logs.ts";
import { Server } from "./server.ts";

export const MODEL = "assets/tiny-llama";

/** A directory for one file's tests; remove it with `rm` when they are done. */
export function scratch(): { readonly directory: string; remove(): void } {
  const directory = mkdtempSync(join(tmpdir(), "serving-"));
  return { directory, remove: () => rmSync(directory, { recursive: true, force: true }) };
}

/** Saves an adapter of the bundled model whose numbers, drawn from `seed`, are large enough to change its answers. */
export async function makeAdapter(directory: string, method: string, seed: number): Promise<string> {
  const path = join(directory, `${method}-${seed}`);
  using adapter = Adapter.create(methodOf(method), { r: 4 }, readBackboneConfig(MODEL), seed);
  for (const key of adapter.tensors.keys()) {
    if (!key.includes("lora_B")) continue;
    const values = adapter.values(key);
    for (let i = 0; i < values.length; i++) values[i] = 0.08 * Math.sin(seed * 7919 + i * 12.9898);
  }
  await adapter.save(path);
  return path;
}

/** Lines of the server's log. */
export interface LogLine extends Record<string, unknown> {
  readonly msg: string;
}

export interface Started extends AsyncDisposable {
  readonly server: Server;
  readonly url: string;
  readonly lines: readonly LogLine[];
  /** The real client; `key` as its bearer key. */
  client(key?: string): OpenAI;
}

/** A server on a free port, its store in memory. */
export async function startServer(data: string, settings: Partial<ServerConfigInput> = {}): Promise<Started> {
  const lines: LogLine[] = [];
  const config = parseServerConfig({ model: MODEL, data, port: 0, ...settings });
  const log = createLog(config, { write: (line) => lines.push(JSON.parse(line) as LogLine) });
  const server = await Server.start(config, { log, memory: true });
  return {
    server,
    url: server.url,
    lines,
    client: (apiKey = "none") => new OpenAI({ apiKey, baseURL: `${server.url}/v1`, maxRetries: 0 }),
    [Symbol.asyncDispose]: () => server.stop(),
  };
}

/** Waits until something holds. */
export async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 10));
}

export async function post(url: string, body: unknown, headers: Record<string, string> = {}): Promise<Response> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return fetch(url, { method: "POST", body: text, headers: { "content-type": "application/json", ...headers } });
}

/** A request that is quick, and answered the same each time. */
export const ask = { model: "tiny-llama", prompt: "The cell", max_tokens: 4, temperature: 0 };

/** The error's code and status. */
export async function refusal(response: Response): Promise<[number, string]> {
  const { error } = (await response.json()) as { error: { code: string; message: string; type: string } };
  expect(error.message).not.toBe("");
  return [response.status, error.code];
}
