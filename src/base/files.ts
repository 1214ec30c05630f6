/** @file Files that are never seen half-written: a temporary name, fsync, rename. And JSON read through a schema. */
import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { homedir, tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import type { z } from "zod";
import { InputError, reasonOf } from "./errors.ts";
import { isAlive } from "./processes.ts";

function temporaryName(path: string, ending = "tmp"): string {
  return join(dirname(path), `.${basename(path)}.${process.pid}.${randomBytes(4).toString("hex")}.${ending}`);
}

function sync(path: string, flags: string): void {
  const handle = openSync(path, flags);
  try {
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}

/** Makes a rename in `directory` durable. Windows cannot open directories; there the rename alone must do. */
function syncDirectory(directory: string): void {
  if (process.platform !== "win32") sync(directory, "r");
}

/** Makes a directory durable with all that is in it, however it was written. */
function syncTree(directory: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) syncTree(path);
    else if (entry.isFile()) sync(path, process.platform === "win32" ? "r+" : "r");
  }
  syncDirectory(directory);
}

/**
 * Where a user's programs keep what can be had again: `XDG_CACHE_HOME`, else `.cache` at home. Who has no home, such as a
 * number without a name in a container, has it among the temporary files.
 */
export function userCacheDirectory(): string {
  if (process.env.XDG_CACHE_HOME) return process.env.XDG_CACHE_HOME;
  try {
    return join(homedir(), ".cache");
  } catch {
    return join(tmpdir(), `cache-${process.getuid?.() ?? 0}`);
  }
}

/** Makes a directory, with those above it where they are missing; what is made is durable. */
export function makeDirectory(path: string): void {
  const whole = resolve(path);
  const first = mkdirSync(whole, { recursive: true });
  if (first === undefined) return;
  for (let made = whole; made.length >= first.length; made = dirname(made)) syncDirectory(dirname(made));
}

/** A file under a temporary name beside `path`, until it is whole. */
class Draft {
  readonly #path: string;
  readonly #temporary: string;
  readonly #handle: number;

  constructor(path: string) {
    makeDirectory(dirname(path));
    this.#path = path;
    this.#temporary = temporaryName(path);
    this.#handle = openSync(this.#temporary, "wx");
  }

  write(part: Uint8Array): void {
    for (let done = 0; done < part.byteLength; ) done += writeSync(this.#handle, part, done);
  }

  /** Makes it durable and gives it its name; or, when something failed, removes it. */
  close(whole: boolean): void {
    try {
      try {
        if (whole) fsyncSync(this.#handle);
      } finally {
        closeSync(this.#handle);
      }
      if (whole) renameSync(this.#temporary, this.#path);
    } catch (error) {
      rmSync(this.#temporary, { force: true });
      throw error;
    }
    if (whole) syncDirectory(dirname(this.#path));
    else rmSync(this.#temporary, { force: true });
  }
}

/** Writes all of `chunks` to `path`, or nothing: a reader sees the old file or the whole new one. */
export function writeFileAtomic(path: string, chunks: string | Uint8Array | Iterable<Uint8Array>): void {
  const parts = typeof chunks === "string" ? [Buffer.from(chunks)] : chunks instanceof Uint8Array ? [chunks] : chunks;
  const draft = new Draft(path);
  try {
    for (const part of parts) draft.write(part);
  } catch (error) {
    draft.close(false);
    throw error;
  }
  draft.close(true);
}

/** As `writeFileAtomic`, for chunks that are made while the file is written. */
export async function writeStreamAtomic(path: string, chunks: AsyncIterable<Uint8Array>): Promise<void> {
  const draft = new Draft(path);
  try {
    for await (const part of chunks) draft.write(part);
  } catch (error) {
    draft.close(false);
    throw error;
  }
  draft.close(true);
}

/**
 * Puts right what a killed process left of a directory or file that it was writing: gives the old one its name back where
 * neither it nor what was to replace it has the name, and removes drafts.
 */
export function restoreOutput(path: string): void {
  if (!existsSync(dirname(path))) return;
  for (const name of readdirSync(dirname(path))) {
    const [, of, pid, ending] = /^\.(.+)\.(\d+)\.[0-9a-f]{8}\.(old|tmp)$/.exec(name) ?? [];
    if (of !== basename(path) || isAlive(Number(pid))) continue;
    const left = join(dirname(path), name);
    if (ending === "tmp" || existsSync(path)) rmSync(left, { recursive: true, force: true });
    else renameSync(left, path);
  }
}

/**
 * Fills a directory under a temporary name beside `path`, then renames it into place. An existing directory at
 * `path` is replaced as a whole; when `fill` throws, nothing changes.
 */
export async function writeDirectoryAtomic(
  path: string,
  fill: (directory: string) => void | Promise<void>,
): Promise<void> {
  makeDirectory(dirname(path));
  restoreOutput(path);
  const temporary = temporaryName(path);
  mkdirSync(temporary);
  try {
    await fill(temporary);
    syncTree(temporary);
    const old = temporaryName(path, "old");
    let replaced = false;
    try {
      renameSync(path, old);
      replaced = true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
    renameSync(temporary, path);
    if (replaced) rmSync(old, { recursive: true, force: true });
  } catch (error) {
    rmSync(temporary, { recursive: true, force: true });
    throw error;
  }
  syncDirectory(dirname(path));
}

/** A handle for reading a regular file, for the caller to close. @throws InputError FILE_UNREADABLE */
export function openRegularFile(path: string): number {
  try {
    // Looked at before it is opened: opening a pipe would wait for a writer.
    if (!statSync(path).isFile()) throw new Error("not a regular file");
    return openSync(path, "r");
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new InputError("FILE_UNREADABLE", path, missing ? "no such file" : reasonOf(error), { cause: error });
  }
}

/** The text of a file. Throws `InputError` FILE_UNREADABLE. */
export function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw new InputError("FILE_UNREADABLE", path, missing ? "no such file" : reasonOf(error), { cause: error });
  }
}

/** Far more than any file needs; what walks through a value recurses. */
const MAX_DEPTH = 200;

/** What JSON text has more of than it may; undefined where it has neither. */
function excessOf(
  json: string,
  most: { readonly depth: number; readonly values: number },
): "depth" | "values" | undefined {
  let depth = 0;
  let values = 1;
  let inString = false;
  for (let i = 0; i < json.length; i++) {
    const char = json.charCodeAt(i);
    if (inString) {
      if (char === 0x5c) i++;
      else if (char === 0x22) inString = false;
    } else if (char === 0x22) inString = true;
    else if (char === 0x2c || char === 0x7b || char === 0x5b) {
      if (++values > most.values) return "values";
      if (char !== 0x2c && ++depth > most.depth) return "depth";
    } else if (char === 0x7d || char === 0x5d) depth--;
  }
  return undefined;
}

/** Whether JSON text has objects and arrays inside of each other to more than `most` levels. */
export function nestedDeeper(json: string, most: number): boolean {
  return excessOf(json, { depth: most, values: Number.POSITIVE_INFINITY }) !== undefined;
}

/**
 * What JSON text holds, not checked yet; `where` names its origin.
 * @param mostValues about so many values it may have: of text in memory each takes many times its length
 * @throws InputError JSON_INVALID, PAYLOAD_TOO_LARGE
 */
export function parseJson(text: string, where: string, { mostValues = Number.POSITIVE_INFINITY } = {}): unknown {
  const excess = excessOf(text, { depth: MAX_DEPTH, values: mostValues });
  if (excess === "values") throw new InputError("PAYLOAD_TOO_LARGE", where, `has more than ${mostValues} values`);
  if (excess === "depth") throw new InputError("JSON_INVALID", where, `is nested deeper than ${MAX_DEPTH} levels`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new InputError("JSON_INVALID", where, `not valid JSON (${reasonOf(error)})`, { cause: error });
  }
}

/** Reads JSON through a zod schema. Throws `InputError` with every problem and the path of each field. */
export function readJson<S extends z.ZodType>(path: string, schema: S): z.infer<S> {
  return parseWith(schema, parseJson(readText(path), path), path);
}

/** Checks `value` with a zod schema; `where` names its origin in the error. */
export function parseWith<S extends z.ZodType>(schema: S, value: unknown, where: string): z.infer<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const problems = result.error.issues.map((issue) =>
    issue.path.length ? `${issue.path.map(String).join(".")}: ${issue.message}` : issue.message,
  );
  throw new InputError("CONFIG_INVALID", where, problems);
}
