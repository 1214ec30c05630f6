/** @file Downloads one file of the hub: goes on where an earlier attempt broke off, and keeps only what its checksum confirms. */
import { createHash, type Hash } from "node:crypto";
import { closeSync, createReadStream, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, statSync, truncateSync, writeSync } from "node:fs"; // biome-ignore format: one line
import { dirname } from "node:path";
import { InputError } from "../base/index.ts";
import { type HubFile, type HubRepo, hubEndpoint, hubFetch, hubToken, isPassing, pauseBefore } from "./hub.ts";

/** A connection that has given nothing for so long is given up, and tried again. */
const STALL_MS = 60_000;

/** Thrown for an HTTP status that is no file. */
export class HubStatusError extends Error {
  readonly status: number;

  constructor(status: number, url: string) {
    super(`HTTP ${status} for ${url}`);
    this.status = status;
  }
}

/** sha256 of the content, or git's own sha1 over a header and the content. */
function hasher({ size, algorithm }: HubFile): Hash {
  return algorithm === "git" ? createHash("sha1").update(`blob ${size}\0`) : createHash("sha256");
}

async function hashed(path: string, file: HubFile): Promise<Hash> {
  const hash = hasher(file);
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash;
}

/** Whether a file on this machine is the hub's. */
export async function isWhole(path: string, file: HubFile): Promise<boolean> {
  if (!existsSync(path) || statSync(path).size !== file.size) return false;
  return (await hashed(path, file)).digest("hex") === file.digest;
}

/** Where the beginning of a file lies until it is whole. */
export const partOf = (path: string): string => `${path}.part`;

/** Bytes of a file that an earlier attempt has left. */
export function bytesThere(path: string): number {
  if (existsSync(path)) return statSync(path).size;
  return existsSync(partOf(path)) ? statSync(partOf(path)).size : 0;
}

function urlOf({ type, name }: HubRepo, commit: string, path: string): string {
  const encoded = path.split("/").map(encodeURIComponent).join("/");
  return `${hubEndpoint()}/${type === "dataset" ? "datasets/" : ""}${name}/resolve/${commit}/${encoded}`;
}

/** One attempt: asks for what is missing, and appends it. */
async function attempt(
  url: string,
  part: string,
  file: HubFile,
  onBytes: (there: number) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const there = existsSync(part) ? statSync(part).size : 0;
  if (there === file.size && there > 0) return;
  const token = hubToken();
  const stall = new AbortController();
  const signals = signal ? AbortSignal.any([signal, stall.signal]) : stall.signal;
  let timer: NodeJS.Timeout | undefined;
  const alive = (): void => {
    clearTimeout(timer);
    const stalled = new Error(`terminated: nothing has arrived for ${STALL_MS / 1000} seconds`);
    timer = setTimeout(() => stall.abort(stalled), STALL_MS);
  };
  alive();
  let handle: number | undefined;
  try {
    const headers: Record<string, string> = { "accept-encoding": "identity" };
    if (token !== undefined) headers.authorization = `Bearer ${token}`;
    if (there > 0) headers.range = `bytes=${there}-`;
    const response = await hubFetch(url, { headers }, signals);
    if (!response.ok || !response.body) throw new HubStatusError(response.status, url);
    // A server may send the whole file all the same, or another part than was asked for.
    const from = response.status === 206 ? Number(/^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "")?.[1]) : 0; // biome-ignore format: one line
    handle = openSync(part, "a");
    if (from !== there) {
      if (from !== 0) throw new Error(`terminated: the hub sent from byte ${from}, not from ${there}`);
      truncateSync(part, 0);
    }
    let position = from;
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      alive();
      for (let done = 0; done < chunk.length; ) done += writeSync(handle, chunk, done);
      position += chunk.length;
      onBytes(position);
      if (position > file.size) break; // not this file; the checksum says so
    }
    if (position < file.size) throw new Error(`terminated: the connection ended after ${position} bytes`);
    fsyncSync(handle);
  } catch (error) {
    signal?.throwIfAborted();
    throw stall.signal.aborted ? stall.signal.reason : error;
  } finally {
    clearTimeout(timer);
    if (handle !== undefined) closeSync(handle);
  }
}

/**
 * Brings a file of the hub to `path`; what has arrived before it breaks off stays beside it for the next time.
 * @param onBytes told how many bytes of the file are there
 * @throws InputError MODEL_UNAVAILABLE for a wrong checksum; HubStatusError, or what `fetch` throws
 */
export async function download(
  repo: HubRepo,
  commit: string,
  file: HubFile,
  path: string,
  onBytes: (there: number) => void,
  signal?: AbortSignal,
): Promise<void> {
  mkdirSync(dirname(path), { recursive: true });
  const part = partOf(path);
  const url = urlOf(repo, commit, file.path);
  for (let tries = 1; ; tries++) {
    const before = bytesThere(path);
    try {
      await attempt(url, part, file, onBytes, signal);
      break;
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof HubStatusError && error.status === 416) rmSync(part, { force: true });
      else if (!isPassing(error)) throw error;
      // As long as something arrives, the connection is worth another attempt.
      if (bytesThere(path) > before) tries = 0;
      if (!(await pauseBefore(Math.max(tries, 1), signal))) throw error;
    }
  }
  if (file.size === 0 && !existsSync(part)) closeSync(openSync(part, "a"));
  if ((await hashed(part, file)).digest("hex") !== file.digest) {
    rmSync(part, { force: true });
    const where = `${repo.name} (${file.path})`;
    throw new InputError("MODEL_UNAVAILABLE", where, "arrived damaged (its checksum is not the hub's); try again");
  }
  renameSync(part, path);
}
