/** @file `milora serve` as a process of its own: started, looked at from outside, ended. */
import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync, readFileSync, readlinkSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { benchmarksDirectory } from "./cache.ts";

/** The program `milora`, as `npm run cli` builds it. */
export const COMMAND = join(benchmarksDirectory, "dist", "src", "cli", "main.js");

export interface ServerOptions {
  /** A model directory. */
  readonly model: string;
  /** What clients call it. */
  readonly name: string;
  /** Data directory. */
  readonly data: string;
  readonly threads: number;
  /** Further settings, `key=value`. */
  readonly set?: readonly string[];
  readonly arguments?: readonly string[];
  /** Processors that it may use, as `taskset` takes them. */
  readonly processors?: string;
}

export class ServerProcess {
  readonly url: string;
  readonly pid: number;
  /** From its start until it listened, as it says. */
  readonly startSeconds: number;
  /** Failures that the server itself has written of, as it wrote them. */
  readonly failures: string[] = [];
  readonly #child: ChildProcess;
  readonly #ended: Promise<number>;
  readonly #database: string;

  private constructor(
    child: ChildProcess,
    ended: Promise<number>,
    told: { url: string; pid: number; seconds: number; data: string },
  ) {
    this.#child = child;
    this.#ended = ended;
    this.url = told.url;
    this.pid = told.pid;
    this.startSeconds = told.seconds;
    this.#database = join(realpathSync(told.data), DATABASE);
  }

  /** Resolves when it listens, on a free port of the loopback address. */
  static async start({ model, name, data, threads, ...options }: ServerOptions): Promise<ServerProcess> {
    const flags = {
      ...{ model, name, data, threads: String(threads), port: "0", "log-level": "warn" },
    };
    const args = [
      COMMAND,
      ...["serve", "--json", ...Object.entries(flags).flatMap(([flag, value]) => [`--${flag}`, value])],
      ...(options.set ?? []).flatMap((setting) => ["--set", setting]),
      ...(options.arguments ?? []),
    ];
    const [command, ...before] = on(options.processors);
    const child = spawn(command, [...before, ...args], { stdio: ["ignore", "pipe", "pipe"] });
    const ended = new Promise<number>((resolve) =>
      child.on("close", (code, signal) => resolve(code ?? (signal ? 128 : 1))),
    );
    killedWithThisProcess(child);
    const lines: string[] = [];
    let server: ServerProcess | undefined;
    createInterface({ input: child.stderr! }).on("line", (line) => {
      if (server) server.#hear(line);
      else lines.push(line);
    });
    const told = await new Promise<{ url: string; pid: number; seconds: number }>((resolve, reject) => {
      let text = "";
      child.stdout!.setEncoding("utf8").on("data", (chunk: string) => {
        text += chunk;
        try {
          resolve(JSON.parse(text));
        } catch {} // not whole yet
      });
      void ended.then((code) => reject(new Error(`milora serve ended with ${code}:\n${lines.join("\n")}`)));
    });
    server = new ServerProcess(child, ended, { ...told, data });
    for (const line of lines) server.#hear(line);
    return server;
  }

  /** Resident memory, now and at most, bytes; NaN where the system does not tell. */
  memory(): { readonly rss: number; readonly peakRss: number } {
    if (process.platform !== "linux") return { rss: Number.NaN, peakRss: Number.NaN };
    const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
    const of = (field: string) => 1024 * Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, "m").exec(status)?.[1]);
    return { rss: of("VmRSS"), peakRss: of("VmHWM") };
  }

  /** Open files, sockets included, but for those of the database, which keeps open what it has used. */
  descriptors(): number {
    if (process.platform !== "linux") return Number.NaN;
    const directory = `/proc/${this.pid}/fd`;
    return readdirSync(directory).filter((fd) => !targetOf(join(directory, fd)).startsWith(this.#database)).length;
  }

  /** Calls when it ends, however. */
  onEnd(listener: (exitCode: number) => void): void {
    void this.#ended.then(listener);
  }

  /** Asks it to end, and waits for that. @returns its exit code */
  stop(): Promise<number> {
    this.#child.kill("SIGTERM");
    return this.#ended;
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  #hear(line: string): void {
    const ERROR = 50; // pino's level
    try {
      if ((JSON.parse(line) as { level: number }).level >= ERROR) this.failures.push(line);
    } catch {
      process.stderr.write(`${line}\n`);
      if (line.includes(LEAK)) this.failures.push(line);
    }
  }
}

/** How the runtime warns of native memory that was left to the garbage collector. */
const LEAK = "MILORA_LEAK";

/** A server outlives who started it; this one is not to. */
function killedWithThisProcess(child: ChildProcess): void {
  process.once("exit", () => child.kill("SIGKILL"));
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    if (process.listenerCount(signal) === 0) process.once(signal, () => process.exit(130));
  }
}

/** The command that runs Node on some processors only. */
export function on(processors: string | undefined): [command: string, ...rest: string[]] {
  return processors === undefined ? [process.execPath] : ["taskset", "--cpu-list", processors, process.execPath];
}

/** Values of a server's /metrics by name, those of all labels summed. */
export async function metricsOf(url: string, key?: string): Promise<ReadonlyMap<string, number>> {
  const ask = () => fetch(`${url}/metrics`, key === undefined ? {} : { headers: { authorization: `Bearer ${key}` } });
  // A connection that was kept open may be closed at the moment it is used again.
  const response = await ask().catch(ask);
  if (!response.ok) throw new Error(`/metrics answered ${response.status}`);
  const values = new Map<string, number>();
  for (const line of (await response.text()).split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{.*\})? ([^ ]+)$/.exec(line);
    if (found) values.set(found[1]!, (values.get(found[1]!) ?? 0) + Number(found[2]));
  }
  return values;
}

/** Where a data directory has the database. */
const DATABASE = "database";

/** What a descriptor is of; nothing where it has been closed meanwhile. */
function targetOf(link: string): string {
  try {
    return readlinkSync(link);
  } catch {
    return "";
  }
}
