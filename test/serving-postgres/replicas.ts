/** @file For tests: servers in processes of their own, on one database and one directory of adapters. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { entriesOf, tar } from "../../src/serving/adapters/testing.ts";

export const ROOT = join(import.meta.dirname, "../..");
export const MODEL = "tiny-llama";

export interface Answer {
  readonly status: number;
  readonly code: string | undefined;
  readonly retryAfter: number | undefined;
  readonly body: Record<string, unknown>;
}

/** One server; its admin's key opens the admin API. */
export class Replica {
  readonly url: string;
  readonly #child: ChildProcess;
  readonly #admin: string;
  readonly #output: () => string;

  private constructor(url: string, child: ChildProcess, admin: string, output: () => string) {
    this.url = url;
    this.#child = child;
    this.#admin = admin;
    this.#output = output;
  }

  /** @param database its URL; undefined: one of its own in `data` */
  static async start(
    database: string | undefined,
    data: string,
    admin: string,
    args: readonly string[] = [],
    environment: Readonly<Record<string, string>> = {},
  ): Promise<Replica> {
    const flags = ["--model", "assets/tiny-llama", "--data", data, "--port", "0", "--json", "--auth", "required"];
    const child = spawn(process.execPath, ["dist/cli/main.js", "serve", ...flags, ...args], {
      cwd: ROOT,
      env: { ...process.env, NO_COLOR: "1", FORCE_COLOR: undefined, DATABASE_URL: database, ...environment },
    });
    let [stdout, output] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
      output += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
    while (!stdout.includes("\n")) {
      if (child.exitCode !== null) throw new Error(output);
      await sleep(20);
    }
    return new Replica((JSON.parse(stdout) as { url: string }).url, child, admin, () => output);
  }

  /** All that it has printed. */
  get output(): string {
    return this.#output();
  }

  async ask(key: string, model = MODEL, more: object = {}): Promise<Answer> {
    return this.#send("POST", "/v1/completions", key, { model, prompt: "The cell", max_tokens: 4, temperature: 0, ...more }); // biome-ignore format: one line
  }

  /** @param path below /admin/v1 */
  async admin(method: string, path: string, body?: unknown): Promise<Answer> {
    return this.#send(method, `/admin/v1${path}`, this.#admin, body);
  }

  /** Installs an adapter for a tenant, or for everybody. */
  async install(name: string, directory: string, tenant?: string): Promise<Answer> {
    const body = new Uint8Array(await tar(entriesOf(directory)));
    const query = tenant === undefined ? "" : `?tenant=${tenant}`;
    return this.#send("PUT", `/admin/v1/adapters/${name}${query}`, this.#admin, body);
  }

  async ready(): Promise<number> {
    return (await fetch(`${this.url}/readyz`)).status;
  }

  async #send(method: string, path: string, key: string, body: unknown): Promise<Answer> {
    const raw = body instanceof Uint8Array;
    const response = await fetch(this.url + path, {
      method,
      headers: {
        authorization: `Bearer ${key}`,
        ...(body !== undefined && { "content-type": raw ? "application/x-tar" : "application/json" }),
      },
      ...(body !== undefined && { body: raw ? (body as Uint8Array<ArrayBuffer>) : JSON.stringify(body) }),
    });
    const answer = (await response.json()) as Record<string, unknown>;
    const retryAfter = response.headers.get("retry-after");
    return {
      ...{ status: response.status, body: answer, code: (answer.error as { code?: string } | undefined)?.code },
      retryAfter: retryAfter === null ? undefined : Number(retryAfter),
    };
  }

  async end(signal: "SIGTERM" | "SIGKILL"): Promise<number | null> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill(signal);
      await once(this.#child, "exit");
    }
    return this.#child.exitCode;
  }
}

const PATIENCE_MS = 60_000;

/** Waits until something holds. */
export async function until(holds: () => Promise<boolean>): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (!(await holds())) {
    if (performance.now() > end) throw new Error(`never held: ${holds}`);
    await sleep(20);
  }
}
