/** @file For tests: a PostgreSQL of one's own in a temporary directory, or databases in one that the environment names. */
import { type ChildProcess, execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { chownSync, existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { serviceDirectory, spawnService } from "../../testing/services.ts";

const ROOT = "/usr/lib/postgresql";
const USER = "milora";
/** Special characters that a URL escapes: it must be told nowhere, in neither form. */
export const PASSWORD = "s3cret/p@ss";

/** Directory of initdb and postgres, the newest there is. */
function binaries(): string | undefined {
  const versions = existsSync(ROOT) ? readdirSync(ROOT).sort((a, b) => Number(b) - Number(a)) : [];
  return versions.map((version) => join(ROOT, version, "bin")).find((bin) => existsSync(join(bin, "initdb")));
}

const GIVEN = process.env.MILORA_TEST_DATABASE_URL;

const MISSING = "no PostgreSQL: apt-get install postgresql";

/** Why there is no PostgreSQL that tests may stop; undefined: there is one. */
export const NO_OWN_POSTGRES: string | undefined = binaries() ? undefined : MISSING;

/** Why there is no PostgreSQL to test with; undefined: there is one. */
export const NO_POSTGRES: string | undefined = GIVEN
  ? undefined
  : NO_OWN_POSTGRES && `${MISSING}, or name a server in MILORA_TEST_DATABASE_URL`;

/** PostgreSQL does not run as root. */
function owner(): { uid: number; gid: number } | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const id = (flag: string) => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
  return { uid: id("-u"), gid: id("-g") };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, "close");
  return port;
}

/** A server with databases that tests make and drop. */
export class Cluster implements AsyncDisposable {
  readonly #admin: string;
  readonly #own: { readonly directory: string; readonly port: number } | undefined;
  #process: ChildProcess | undefined;
  readonly #onExit = (): void => void this.#process?.kill("SIGKILL");

  private constructor(admin: string, own?: { readonly directory: string; readonly port: number }) {
    this.#admin = admin;
    this.#own = own;
    process.once("exit", this.#onExit);
  }

  /** Starts one, or takes the one that the environment names. */
  static async start(): Promise<Cluster> {
    if (GIVEN) return new Cluster(GIVEN);
    return Cluster.startOwn();
  }

  /** One that may be stopped. */
  static async startOwn(): Promise<Cluster> {
    const bin = binaries();
    if (!bin) throw new Error(NO_OWN_POSTGRES);
    const directory = serviceDirectory("milora-postgres");
    const user = owner();
    const password = join(directory, "password");
    writeFileSync(password, PASSWORD);
    if (user) for (const path of [directory, password]) chownSync(path, user.uid, user.gid);
    const flags = ["--no-sync", "--no-locale", "-E", "UTF8", "-U", USER, "-A", "scram-sha-256", `--pwfile=${password}`];
    execFileSync(join(bin, "initdb"), ["-D", join(directory, "data"), ...flags], {
      ...user,
      stdio: "ignore",
      cwd: "/",
    });
    const port = await freePort();
    const admin = `postgres://${USER}:${encodeURIComponent(PASSWORD)}@127.0.0.1:${port}/postgres`;
    const cluster = new Cluster(admin, { directory, port });
    await cluster.resume();
    return cluster;
  }

  /** Starts it again after `stop`. */
  async resume(): Promise<void> {
    const { directory, port } = this.#own!;
    const settings = [
      "fsync=off",
      "max_connections=200",
      "shared_buffers=16MB",
      "timezone=Asia/Kathmandu",
      "datestyle=German",
    ];
    const flags = [`listen_addresses=127.0.0.1`, `unix_socket_directories=`, ...settings].flatMap((s) => ["-c", s]);
    const args = ["-D", join(directory, "data"), "-p", String(port), ...flags];
    this.#process = spawnService(join(binaries()!, "postgres"), args, { signal: "QUIT", ...owner() });
    for (;;) {
      if (await this.query("SELECT 1").then(() => true, () => false)) return; // biome-ignore format: one line
      if (this.#process.exitCode !== null) throw new Error("PostgreSQL ended");
      await sleep(50);
    }
  }

  /** Ends it at once, open connections too. */
  async stop(): Promise<void> {
    const child = this.#process;
    if (!child) return;
    this.#process = undefined;
    child.kill("SIGQUIT");
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
  }

  /** As administrator; in a database, if one is named. */
  async query(text: string, url = this.#admin): Promise<Record<string, unknown>[]> {
    const client = new pg.Client({ connectionString: url });
    client.on("error", () => {});
    try {
      await client.connect();
      return (await client.query<Record<string, unknown>>(text)).rows;
    } finally {
      await client.end();
    }
  }

  /** A database that is empty. @returns its URL */
  async create(): Promise<string> {
    const name = `milora_test_${randomBytes(6).toString("hex")}`;
    await this.query(`CREATE DATABASE ${name}`);
    const url = new URL(this.#admin);
    url.pathname = `/${name}`;
    return url.href;
  }

  async drop(url: string): Promise<void> {
    await this.query(`DROP DATABASE ${new URL(url).pathname.slice(1)} WITH (FORCE)`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    process.off("exit", this.#onExit);
    await this.stop();
    if (this.#own) rmSync(this.#own.directory, { recursive: true, force: true });
  }
}
