/**
 * @file A power cut takes what was not synchronised. Every write, rename and fsync of a command is watched (strace): nothing may
 * get its name, and no change may be confirmed, before it is on the disk.
 */
import { execFileSync } from "node:child_process";
import { createReadStream, mkdirSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { count, must, type Outcome, type Settings, start } from "./children.ts";
import { trainArgs, WRITERS } from "./kills.ts";
import { archivesOf, ask, newData, serve } from "./server.ts";

/** Why nothing can be watched here. */
export function noStrace(): string | undefined {
  try {
    execFileSync("strace", ["-qq", "-o", "/dev/null", "true"], { stdio: "ignore" });
    return undefined;
  } catch {
    return "needs Linux and strace";
  }
}

const CALLS = "openat,creat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate,copy_file_range,sendfile,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,link,linkat,sendto,sendmsg"; // biome-ignore format: one line
const watched = (log: string): string => `exec strace -f -y -qq -s 40 -e trace=${CALLS} -e signal=none -o '${log}'`;

/** Notes that are made again when they are missing or wrong: of files that were hashed, and PostgreSQL's of its catalogue. */
const NOTE = /\/(checked|pg_internal\.init)(\.[^/]*)?$/;
/** What has a hidden name, or lies in such a place, is on its way in or out. */
const HIDDEN = /\/\.[^/]*(\/|$)/;

/** What of a directory a power cut would take at this moment. */
class Volatile {
  readonly #root: string;
  /** Files with bytes that are not synchronised. */
  readonly #dirty = new Set<string>();
  /** Directories whose entries are not, and what these are. */
  readonly #entries = new Map<string, Set<string>>();
  readonly problems: string[] = [];
  renames = 0;
  syncs = 0;

  constructor(root: string) {
    this.#root = root;
  }

  #mine = (path: string | undefined): path is string => path?.startsWith(`${this.#root}/`) === true && !NOTE.test(path);

  wrote(path: string | undefined): void {
    if (this.#mine(path)) this.#dirty.add(path);
  }

  entered(path: string): void {
    if (!this.#mine(path)) return;
    const directory = dirname(path);
    this.#entries.set(directory, (this.#entries.get(directory) ?? new Set()).add(path));
  }

  synced(path: string | undefined): void {
    if (path === undefined) return;
    this.syncs++;
    this.#dirty.delete(path);
    this.#entries.delete(path);
  }

  renamed(from: string, to: string): void {
    if (!this.#mine(to)) return;
    this.renames++;
    const inside = (path: string): boolean => path === from || path.startsWith(`${from}/`);
    // What makes room is left as it is; only what gets a name that is looked for has to be whole.
    if (!HIDDEN.test(to.slice(this.#root.length))) {
      for (const path of this.#dirty) if (inside(path)) this.#problem(`${this.#short(to)} got its name before ${this.#short(path)} was synchronised`); // biome-ignore format: one line
      for (const [path, names] of this.#entries) if (inside(path)) this.#problem(`${this.#short(to)} got its name before its directory with ${[...names].map((name) => this.#short(name))} was synchronised`); // biome-ignore format: one line
    }
    const moved = (path: string): string => to + path.slice(from.length);
    for (const path of [...this.#dirty]) if (inside(path)) { this.#dirty.delete(path); this.#dirty.add(moved(path)); } // biome-ignore format: one line
    for (const [path, names] of [...this.#entries]) {
      if (inside(path)) {
        this.#entries.delete(path);
        this.#entries.set(moved(path), new Set([...names].map(moved)));
      } else names.delete(from);
    }
    this.entered(to);
  }

  /** Something was confirmed. @param counts which paths matter to it */
  confirmed(what: string, counts: (path: string) => boolean = () => true): void {
    for (const path of this.#dirty)
      if (counts(path)) this.#problem(`${what}: ${this.#short(path)} is not synchronised`);
    for (const names of this.#entries.values())
      for (const path of names) if (counts(path)) this.#problem(`${what}: the name of ${this.#short(path)} is not synchronised`); // biome-ignore format: one line
  }

  #problem(text: string): void {
    if (!this.problems.includes(text)) this.problems.push(text);
  }

  #short(path: string): string {
    return path.slice(this.#root.length + 1).replace(/\.\d+\.[0-9a-f]{8}\./, ".PID.");
  }
}

const unquote = (text: string): string => text.replace(/^"|"(\.\.\.)?$/g, "");

/** Goes through what strace wrote. @param sent told of the first bytes of what is sent or written to sockets */
async function replay(log: string, state: Volatile, cwd: string, sent: (bytes: string) => void): Promise<void> {
  const open = new Map<string, string>();
  const absolute = (path: string): string => (path.startsWith("/") ? path : join(cwd, path));
  for await (const raw of createInterface({ input: createReadStream(log) })) {
    const [, pid = "", rest = ""] = /^(\d+) +(.*)$/.exec(raw) ?? [];
    const unfinished = /^(.*) <unfinished \.\.\.>$/.exec(rest);
    if (unfinished) {
      open.set(pid, unfinished[1]!);
      continue;
    }
    const resumed = /^<\.\.\. \w+ resumed>(.*)$/.exec(rest);
    const line = resumed ? (open.get(pid) ?? "") + resumed[1]! : rest;
    const [, call, given = "", result = ""] = /^(\w+)\((.*)\) += (.*)$/.exec(line) ?? [];
    if (call === undefined || result.startsWith("-1")) continue;
    const file = /^\d+<([^>]*)>/.exec(given)?.[1];
    const names = [...given.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map((match) => absolute(unquote(match[1]!)));
    if (call === "openat") {
      const path = /<([^>]*)>$/.exec(result)?.[1];
      if (/O_TRUNC/.test(given)) state.wrote(path);
      if (/O_CREAT/.test(given) && path !== undefined) state.entered(path);
    } else if (call.startsWith("rename")) state.renamed(names[0]!, names[1]!);
    else if (call.startsWith("mkdir")) state.entered(names[0]!);
    else if (call.startsWith("link")) state.entered(names[1]!);
    else if (call === "fsync" || call === "fdatasync") state.synced(file);
    else if (file?.startsWith("/")) state.wrote(call === "copy_file_range" ? /, \d+<([^>]*)>/.exec(given)?.[1] : file);
    else sent(given);
  }
}

const ended = (child: ReturnType<typeof start>): Promise<number | null> => new Promise((resolve) => child.on("close", resolve)); // biome-ignore format: one line

/** Commands that write: at their end all is on the disk, and nothing had its name before. */
async function watchCommand(
  settings: Settings,
  name: string,
  args: readonly string[],
  output: string,
): Promise<Volatile> {
  // biome-ignore format: one line
  const log = join(settings.directory, "strace.log");
  const child = start(settings.dist, args, { shell: `${watched(log)} "$0" "$@"; ` });
  let said = "";
  child.stderr!.on("data", (text) => {
    said += text;
  });
  must((await ended(child)) === 0, `${name} failed while it was watched: ${said}`);
  const state = new Volatile(settings.directory);
  await replay(log, state, process.cwd(), () => {});
  state.confirmed(name, (path) => path.startsWith(output) && !/\/(training\.lock|report\.html)/.test(path));
  return state;
}

/** A server: when it answers that something is done, that is on the disk. */
async function watchServer(settings: Settings, seen: Record<string, number>): Promise<Volatile> {
  const data = join(settings.directory, "data");
  const key = await newData(data);
  const log = join(settings.directory, "strace-server.log");
  const { url, child, ended: over } = await serve(settings, data, { shell: `${watched(log)} "$0" "$@"; ` });
  const archives = archivesOf(settings);
  for (let i = 0; i < 10; i++) {
    must((await ask(url, key, "POST", "/admin/v1/tenants", { id: `t${i}` })).status === 201, "no tenant");
    const made = (await ask(url, key, "POST", "/admin/v1/keys", { tenant: `t${i}` })).body as unknown as { key: { id: string } }; // biome-ignore format: one line
    must((await ask(url, key, "PUT", `/v1/adapters/n${i % 3}`, archives[i % 3])).status === 201, "no upload");
    must((await ask(url, key, "DELETE", `/admin/v1/keys/${made.key.id}`)).status === 200, "no revocation");
    if (i % 4 === 3) await ask(url, key, "DELETE", `/v1/adapters/n${i % 3}`);
  }
  // strace keeps signals to itself.
  const watchedPid = Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, "utf8").trim().split(" ")[0]);
  process.kill(watchedPid, "SIGTERM");
  must((await over) === 0, "the server did not end in peace");
  const state = new Volatile(data);
  await replay(log, state, process.cwd(), (bytes) => {
    if (!/HTTP\/1\.1 20[01]/.test(bytes)) return;
    count(seen, "answers of a server");
    // The log of the database holds what it confirms; its tables follow.
    state.confirmed("an answer", (path) => path.includes("/pg_wal/") || /\/adapters\/[^.]/.test(path));
  });
  return state;
}

export async function powerCuts(settings: Settings): Promise<Outcome> {
  const seen: Record<string, number> = {};
  const place = join(settings.directory, "written");
  mkdirSync(place);
  const commands: readonly (readonly [string, (output: string) => readonly string[]])[] = [
    ["training", (output) => trainArgs(settings, output)],
    ...Object.entries(WRITERS).map(([name, args]) => [name, (output: string) => args(settings, output)] as const),
  ];
  const problems: string[] = [];
  let renames = 0;
  const tell = (name: string, state: Volatile): void => {
    seen[`renames, ${name}`] = state.renames;
    seen[`fsyncs, ${name}`] = state.syncs;
  };
  for (const [i, [name, args]] of commands.entries()) {
    const output = join(place, String(i), "deep", "output");
    const state = await watchCommand(settings, name, args(output), join(place, String(i)));
    must(state.renames > 0, `${name}: nothing was renamed, or not seen`);
    renames += state.renames;
    tell(name, state);
    problems.push(...state.problems.map((problem) => `${name}: ${problem}`));
  }
  const state = await watchServer(settings, seen);
  must(seen["answers of a server"]! >= 40, "the server's answers were not seen");
  tell("serving", state);
  problems.push(...state.problems);
  must(problems.length === 0, `a power cut would take what was promised: ${problems.slice(0, 40).join("; ")}`);
  settings.done = renames + state.renames;
  return { scenario: "writes, renames and fsyncs in their order (strace)", seen };
}
