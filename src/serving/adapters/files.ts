/** @file Adapters on disk: `<data>/adapters/<digest>/`, filled in a draft beside them and renamed into place whole. */
import { createHash, type Hash, randomBytes } from "node:crypto";
import { createReadStream, readFileSync, readlinkSync, statSync } from "node:fs";
import { mkdir, open, readdir, realpath, rename, rm, stat, utimes, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, join, relative, resolve } from "node:path";
import { InputError, isAlive, reasonOf } from "../../base/index.ts";
import { CONFIG_FILE } from "../../methods/index.ts";
import { ADAPTER_FILES, type AdapterFile, MAX_CONFIG_BYTES, type Receive, tooLarge } from "./archive.ts";

const DIGEST = /^[0-9a-f]{64}$/;
const DRAFTS = ".drafts";
/** Containers may have a name in common, and each a process 1: whose numbers these are is a part of it. */
export const HOST = `${hostname().replace(/[^A-Za-z0-9-]/g, "") || "host"}${processSpace()}`;

function processSpace(): string {
  try {
    return `-${readlinkSync("/proc/self/ns/pid").replace(/\D/g, "")}`;
  } catch {
    return ""; // not Linux
  }
}

/** Tells this process from an earlier one of the same number, as in containers. */
const PROCESS = `${HOST}.${process.pid}.${randomBytes(4).toString("hex")}`;
let counter = 0;

/** Drafts of processes that cannot be asked after are taken for abandoned after this time. */
const ABANDONED_MS = 24 * 60 * 60 * 1000;

/**
 * What identifies an adapter: the SHA-256 of what `sha256sum adapter_config.json adapter_model.safetensors` prints. It
 * is of the files as they are, so that it stays the same whatever a later version reads into them.
 */
export function digestOf(sums: ReadonlyMap<AdapterFile, string>): string {
  const lines = ADAPTER_FILES.map((file) => `${sums.get(file)}  ${file}\n`);
  return createHash("sha256").update(lines.join("")).digest("hex");
}

/** What is read and hashed at a time, 2.5 ms. */
const CHUNK = 4 * 1024 * 1024;

/**
 * The digest of the files in a directory, read anew, a chunk at a time.
 * @param weights contents of the file of tensors, where they have been read
 */
export async function digestOfFiles(directory: string, weights?: Uint8Array): Promise<string> {
  const sums = new Map<AdapterFile, string>();
  for (const file of ADAPTER_FILES) {
    const hash = createHash("sha256");
    // The config is small: four turns of the event loop take longer than reading it.
    const contents = file === CONFIG_FILE ? readFileSync(join(directory, file)) : weights;
    if (contents) hash.update(contents);
    else {
      for await (const chunk of createReadStream(join(directory, file), { highWaterMark: CHUNK })) {
        hash.update(chunk as Uint8Array);
      }
    }
    sums.set(file, hash.digest("hex"));
  }
  return digestOf(sums);
}

async function syncDirectory(directory: string): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await open(directory, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Tells a failed write, without the place: whoever uploads an adapter may hear of it. */
function unwritable(error: unknown): unknown {
  if (!(error instanceof Error && "syscall" in error)) return error;
  const reason = reasonOf(error).replace(/ '.*$/s, "");
  return new InputError("OUTPUT_UNWRITABLE", "the directory of adapters", reason, { cause: error });
}

/** Names of drafts of this process that somebody is at work on. */
const underWay = new Set<string>();

/** A name for what is on its way in or out, until `endDraft`. */
export function newDraft(root: string): string {
  const name = `${PROCESS}.${counter++}`;
  underWay.add(name);
  return join(root, DRAFTS, name);
}

/** Removes what is left of a draft. What cannot be, as while the disk is read-only, goes with the next sweep. */
export async function endDraft(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true }).catch(() => {});
  underWay.delete(basename(path));
}

/** One file of a draft. */
export interface DraftFile {
  readonly file: AdapterFile;
  readonly path: string;
  readonly bytes: number;
  /** In hexadecimal. */
  readonly sha256: string;
}

/** A directory of its own for an adapter on its way in. Disposed, it is gone, unless it was published. */
export class Draft implements AsyncDisposable {
  readonly directory: string;
  readonly #maxBytes: number;
  readonly #files = new Map<AdapterFile, DraftFile>();
  #bytes = 0;

  private constructor(directory: string, maxBytes: number) {
    this.directory = directory;
    this.#maxBytes = maxBytes;
  }

  /** @param maxBytes of both files together */
  static async create(root: string, maxBytes: number): Promise<Draft> {
    const directory = newDraft(root);
    try {
      await mkdir(directory, { recursive: true });
    } catch (error) {
      await endDraft(directory);
      throw unwritable(error);
    }
    return new Draft(directory, maxBytes);
  }

  get bytes(): number {
    return this.#bytes;
  }

  get digest(): string {
    return digestOf(new Map([...this.#files].map(([file, { sha256 }]) => [file, sha256])));
  }

  /** In the order of `ADAPTER_FILES`, as far as they are written. */
  get files(): readonly DraftFile[] {
    return ADAPTER_FILES.flatMap((file) => this.#files.get(file) ?? []);
  }

  /** Writes one file, durably. @throws InputError PAYLOAD_TOO_LARGE before the byte too many is written */
  readonly receive: Receive = async (file, content) => {
    const most = file === CONFIG_FILE ? MAX_CONFIG_BYTES : Number.POSITIVE_INFINITY;
    const hash = createHash("sha256");
    const path = join(this.directory, file);
    const handle = await open(path, "wx").catch((error: unknown) => {
      throw unwritable(error);
    });
    let size = 0;
    try {
      for await (const chunk of content) {
        size += chunk.length;
        this.#bytes += chunk.length;
        if (size > most) throw tooLarge(file, most);
        if (this.#bytes > this.#maxBytes) throw tooLarge("the adapter", this.#maxBytes);
        await write(handle, chunk, hash);
      }
      await handle.sync();
    } finally {
      await handle.close();
    }
    this.#files.set(file, { file, path, bytes: size, sha256: hash.digest("hex") });
  };

  /** Gives it its place for good. What is there already has the same content, and is replaced by it file by file. */
  async publish(root: string): Promise<void> {
    const target = adapterDirectory(root, this.digest);
    try {
      await syncDirectory(this.directory);
      try {
        await rename(this.directory, target);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code !== "ENOTEMPTY" && code !== "EEXIST" && code !== "EPERM") throw error;
        for (const file of ADAPTER_FILES) await rename(join(this.directory, file), join(target, file));
        await syncDirectory(target);
      }
      await syncDirectory(root);
    } catch (error) {
      throw unwritable(error);
    }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return endDraft(this.directory);
  }
}

async function write(handle: Awaited<ReturnType<typeof open>>, chunk: Uint8Array, hash: Hash): Promise<void> {
  hash.update(chunk);
  for (let done = 0; done < chunk.length; ) {
    const { bytesWritten } = await handle.write(chunk, done).catch((error: unknown) => {
      throw unwritable(error);
    });
    done += bytesWritten;
  }
}

/**
 * Passes on the files of an adapter in a directory, as `readArchive` does. Links are followed.
 * @param within a directory which neither the adapter nor what its links lead to may lie outside of
 */
export async function readDirectory(directory: string, receive: Receive, within?: string): Promise<void> {
  const missing: string[] = [];
  const paths = new Map<AdapterFile, string>();
  for (const file of ADAPTER_FILES) {
    const path = await realpath(join(directory, file)).catch(() => undefined);
    if (path === undefined || !(await stat(path)).isFile()) missing.push(`${file} is not there, or no file`);
    else if (within !== undefined && !isInside(await realpath(within), path)) {
      throw new InputError("FILE_UNREADABLE", directory, "lies outside of the directory that adapters are loaded from");
    } else paths.set(file, path);
  }
  if (missing.length > 0) throw new InputError("FILE_UNREADABLE", directory, missing);
  for (const [file, path] of paths) {
    const content = createReadStream(path, { highWaterMark: 1024 * 1024 });
    try {
      await receive(file, content);
    } finally {
      content.destroy();
    }
  }
}

function isInside(parent: string, path: string): boolean {
  const way = relative(resolve(parent), path);
  return way !== "" && !way.startsWith("..") && resolve(parent, way) === path;
}

export function adapterDirectory(root: string, digest: string): string {
  if (!DIGEST.test(digest)) throw new Error(`${digest} is no digest`);
  return join(root, digest);
}

/** Lets the time begin anew after which unused files go. */
export async function touch(directory: string): Promise<void> {
  const now = new Date();
  await utimes(directory, now, now).catch(() => {}); // gone already
}

/** What tells whether the files of an adapter are still those that were looked at: any write changes it. */
export function signatureOf(directory: string): string {
  return stateOf(directory).signature;
}

/** @returns also when a file changed last, ms since 1970 */
function stateOf(directory: string): { signature: string; changed: number } {
  let changed = 0;
  const parts = ADAPTER_FILES.map((file) => {
    const found = statSync(join(directory, file), { bigint: true, throwIfNoEntry: false });
    if (!found) return "none";
    changed = Math.max(changed, Number(found.ctimeMs));
    return `${found.ino}.${found.size}.${found.mtimeNs}.${found.ctimeNs}`;
  });
  return { signature: parts.join(), changed };
}

/** Beside an adapter's files: their signature when they were known to be what its digest stands for. */
const CHECKED = "checked";
/** Times of files are whole ticks of the system's clock: a file that was written just now may be so again unnoticed. */
const TICK_MS = 20;

/** Whether the files have not been written to since they were hashed: then they need not be again. */
export function isUnchanged(directory: string): boolean {
  try {
    return readFileSync(join(directory, CHECKED), "utf8") === `${signatureOf(directory)}\n`;
  } catch {
    return false; // never hashed here, or gone
  }
}

/** Remembers that the files are those that were installed. That it cannot is no harm: they are hashed again. */
export async function rememberUnchanged(directory: string, signature = signatureOf(directory)): Promise<void> {
  const state = stateOf(directory);
  if (state.signature !== signature || Date.now() - state.changed < TICK_MS) return;
  const path = join(directory, CHECKED);
  const temporary = `${path}.${PROCESS}.${counter++}`;
  try {
    await writeFile(temporary, `${signature}\n`);
    await rename(temporary, path);
  } catch {
    await rm(temporary, { force: true }).catch(() => {});
  }
}

/** Digests of the adapters in a directory. */
export async function digestsIn(root: string): Promise<string[]> {
  return (await readdir(root)).filter((name) => DIGEST.test(name));
}

/**
 * Removes drafts that nobody works on, and adapters that nothing refers to and that have not changed for `graceMs`.
 * Nothing is ever seen half-removed: a directory becomes a draft first.
 * @returns digests that were removed
 */
export async function sweep(root: string, used: ReadonlySet<string>, graceMs: number, now: number): Promise<string[]> {
  const removed: string[] = [];
  await mkdir(join(root, DRAFTS), { recursive: true });
  for (const digest of await digestsIn(root)) {
    if (used.has(digest)) continue;
    const path = join(root, digest);
    const found = await stat(path).catch(() => undefined);
    if (!found || now - found.mtimeMs < graceMs) continue;
    const doomed = newDraft(root);
    try {
      await rename(path, doomed);
      removed.push(digest);
    } finally {
      await endDraft(doomed);
    }
  }
  await sweepDrafts(root, now);
  return removed;
}

/** Removes drafts whose process has ended, and those of this one that could not be removed. */
export async function sweepDrafts(root: string, now: number): Promise<void> {
  await mkdir(join(root, DRAFTS), { recursive: true });
  for (const name of await readdir(join(root, DRAFTS))) {
    if (underWay.has(name)) continue;
    const path = join(root, DRAFTS, name);
    const [host, pid] = name.split(".");
    const ended = host === HOST && (Number(pid) === process.pid || !isAlive(Number(pid)));
    const found = await stat(path).catch(() => undefined);
    if (found && (ended || now - found.mtimeMs > ABANDONED_MS)) await rm(path, { recursive: true, force: true });
  }
}
