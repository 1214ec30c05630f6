/** @file Where the commands that administer a server work: on a data directory or database, or on a running server through its admin API. */
import { Readable } from "node:stream";
import { type Command, Option } from "commander";
import { InputError, MiloraError, reasonOf } from "../base/index.ts";
import type { Store } from "../serving/index.ts";
import { examples, jsonFlag } from "./flags.ts";
import { note } from "./terminal.ts";

export interface AdminFlags {
  readonly data?: string;
  readonly database?: string;
  readonly server?: string;
}

/** `milora serve` has the same default. */
export const DEFAULT_DATA = "milora-data";

/** Of examples. */
export const SERVER = "--server http://127.0.0.1:8000";

/**
 * The store that flags and environment name where they name no server; in a directory or, in a database, with that of
 * its adapters.
 */
export function locationOf(
  { data = DEFAULT_DATA, database }: AdminFlags,
  env: Readonly<Record<string, string | undefined>> = process.env,
): { readonly directory: string; readonly url?: string } {
  const url = database ?? (env.DATABASE_URL || undefined);
  return { directory: data, ...(url !== undefined && { url }) };
}

/**
 * The store that flags and environment name, for a command that looks, or that changes what is there: it makes none, and
 * says where none is.
 */
export async function openThere(flags: AdminFlags): Promise<Store> {
  const { openStoreThere } = await import("../serving/index.ts");
  const { directory, url } = locationOf(flags);
  const { store, missing } = await openStoreThere(url === undefined ? { directory } : { url });
  if (missing !== undefined) note(`${missing}: nothing of a server is there yet`);
  return store;
}

/** A command with --data, --database, --server and --json. */
export function administer(command: Command, description: string, lines: readonly string[]): Command {
  command
    .description(description)
    .addOption(new Option("--data <dir>", `data directory of a server that is not running (default: ${DEFAULT_DATA})`))
    .addOption(
      new Option("--database <url>", "PostgreSQL of servers, running or not (default: the environment's DATABASE_URL)"),
    )
    .addOption(
      new Option("--server <url>", "a running server; the environment's MILORA_ADMIN_KEY opens it").conflicts([
        "data",
        "database",
      ]),
    )
    .addOption(jsonFlag());
  return examples(command, lines);
}

/** A running server's admin API. */
export class AdminClient {
  readonly #base: URL;
  readonly #key: string;

  /** @param server e.g. `http://127.0.0.1:8000` */
  constructor(server: string, env: Readonly<Record<string, string | undefined>> = process.env) {
    const base = URL.canParse(server) ? new URL(server) : undefined;
    if (!base || !/^https?:$/.test(base.protocol)) {
      throw new InputError(
        "FLAG_INVALID",
        "--server",
        `${JSON.stringify(server)} is no URL such as http://127.0.0.1:8000`,
      );
    }
    const key = env.MILORA_ADMIN_KEY;
    if (!key) {
      throw new InputError(
        "FLAG_INVALID",
        "--server",
        "needs an admin's key in the environment as MILORA_ADMIN_KEY; make one with `milora keys create --admin`",
      );
    }
    this.#base = new URL(base.pathname.replace(/\/*$/, "/admin/v1/"), base);
    this.#key = key;
  }

  /**
   * Calls a route below /admin/v1/.
   *
   * @param path its parts, unescaped
   * @param body JSON, or bytes that are sent as they come
   * @throws MiloraError with the server's code and message; SERVER_UNREACHABLE
   */
  async call(
    method: "GET" | "POST" | "PUT" | "PATCH" | "DELETE",
    path: readonly string[],
    {
      query = {},
      json,
      bytes,
    }: {
      query?: Readonly<Record<string, string | undefined>>;
      json?: unknown;
      bytes?: { readonly type: string; readonly content: AsyncIterable<Uint8Array> };
    } = {},
  ): Promise<unknown> {
    const url = new URL(path.map(encodeURIComponent).join("/"), this.#base);
    for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, value);
    const type = bytes?.type ?? (json === undefined ? undefined : "application/json");
    const headers = { authorization: `Bearer ${this.#key}`, ...(type && { "content-type": type }) };
    const body = bytes ? Readable.toWeb(Readable.from(bytes.content, { objectMode: false })) : JSON.stringify(json);
    let response: Response;
    let text: string;
    try {
      // `duplex` is what fetch asks for with a body that is a stream; its types do not know it.
      const init = { method, headers, ...(body !== undefined && { body }), duplex: "half" } as RequestInit;
      response = await fetch(url, init);
      text = await response.text();
    } catch (error) {
      const cause = error instanceof Error && error.cause ? error.cause : error;
      throw new MiloraError("SERVER_UNREACHABLE", `${url.origin} does not answer (${reasonOf(cause)})`, {
        cause: error,
      });
    }
    let answer: unknown;
    try {
      answer = text === "" ? undefined : JSON.parse(text);
    } catch {
      answer = undefined;
    }
    if (response.ok) return answer;
    const { code, message } = (answer as { error?: { code?: unknown; message?: unknown } } | undefined)?.error ?? {};
    throw new MiloraError(
      typeof code === "string" ? code : "SERVER_UNREACHABLE",
      typeof message === "string" ? message : `${url.origin} answers ${response.status} ${response.statusText}`,
      { exitCode: response.status >= 500 ? 1 : 2 },
    );
  }
}
