/** @file For tests: an nginx with the configuration of the guide, in a temporary directory on the loopback address. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const BINARY = "/usr/sbin/nginx";
const GUIDE = join(import.meta.dirname, "../../docs/guides/nginx.conf");

/** Why there is none; undefined: there is one. */
export const NO_NGINX: string | undefined = existsSync(BINARY) ? undefined : "no nginx: apt-get install nginx-light";

/** A request as nginx saw it. */
export interface Passed {
  /** As the client named it. */
  readonly id: string;
  /** When it ended, seconds since 1970. */
  readonly at: number;
  readonly status: number;
  /** How each server that it was passed to answered, in order; `-` where it did not. */
  readonly upstream: readonly string[];
  /** Which servers these were, and how many seconds each took. */
  readonly servers: readonly string[];
  readonly seconds: readonly string[];
}

const FORMAT = "$http_x_request_id|$msec|$status|$upstream_status|$upstream_addr|$upstream_response_time";

export class Nginx implements AsyncDisposable {
  readonly url: string;
  readonly #directory: string;
  readonly #child: ChildProcess;
  readonly #onExit = (): void => void this.#child.kill("SIGKILL");

  private constructor(url: string, directory: string, child: ChildProcess) {
    this.url = url;
    this.#directory = directory;
    this.#child = child;
    process.once("exit", this.#onExit);
  }

  /** @param servers `HOST:PORT`, in place of the two of the guide */
  static async start(port: number, servers: readonly [string, string]): Promise<Nginx> {
    const directory = mkdtempSync(join(tmpdir(), "milora-nginx-"));
    const replaced = new Map([["10.0.0.11:8000", servers[0]], ["10.0.0.12:8000", servers[1]], ["listen 80;", `listen 127.0.0.1:${port};`]]); // biome-ignore format: one line
    let site = readFileSync(GUIDE, "utf8");
    for (const [from, to] of replaced) {
      if (site.split(from).length !== 2) throw new Error(`${GUIDE} has not one ${from}`);
      site = site.replace(from, to);
    }
    const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${directory}/${name};`); // biome-ignore format: one line
    const main = [
      ...[`pid ${directory}/pid;`, "daemon off;", `user ${userInfo().username};`, `error_log ${directory}/error.log;`],
      ...["events { worker_connections 512; }", "http {", ...temporary],
      `log_format passed '${FORMAT}'; access_log ${directory}/access.log passed;`,
      ...[site, "}"],
    ];
    const path = join(directory, "nginx.conf");
    writeFileSync(path, main.join("\n"));
    execFileSync(BINARY, ["-t", "-q", "-p", directory, "-c", path]);
    const child = spawn(BINARY, ["-p", directory, "-c", path], { stdio: ["ignore", "ignore", "inherit"] });
    const nginx = new Nginx(`http://127.0.0.1:${port}`, directory, child);
    while (
      !(await fetch(`${nginx.url}/healthz`).then(
        () => true,
        () => false,
      ))
    ) {
      // biome-ignore format: one line
      if (child.exitCode !== null) throw new Error("nginx ended");
      await sleep(20);
    }
    return nginx;
  }

  get passed(): Passed[] {
    const lines = readFileSync(join(this.#directory, "access.log"), "utf8").trim().split("\n");
    return lines.map((line) => {
      const [id = "", at, status, ...lists] = line.split("|");
      const [upstream = [], servers = [], seconds = []] = lists.map((list) => list.split(/, | : /));
      return { id, at: Number(at), status: Number(status), upstream, servers, seconds };
    });
  }

  /** What it had to complain about. */
  get complaints(): string {
    return readFileSync(join(this.#directory, "error.log"), "utf8");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    process.off("exit", this.#onExit);
    this.#child.kill("SIGQUIT");
    if (this.#child.exitCode === null) await once(this.#child, "exit");
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
