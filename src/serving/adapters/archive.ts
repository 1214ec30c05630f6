/** @file Reads an adapter out of a .tar or .tar.gz as it arrives: each entry is checked before a byte of it is passed on. */
import { Readable } from "node:stream";
import { createGunzip } from "node:zlib";
import { extract, type Header } from "tar-stream";
import { InputError, MiloraError, reasonOf } from "../../base/index.ts";
import { CONFIG_FILE, WEIGHTS_FILE } from "../../methods/index.ts";

/** The files that an adapter has; no others are taken. */
export const ADAPTER_FILES = [CONFIG_FILE, WEIGHTS_FILE] as const;
export type AdapterFile = (typeof ADAPTER_FILES)[number];

/** adapter_config.json is some kilobytes. */
export const MAX_CONFIG_BYTES = 1024 * 1024;
/** Headers, padding, and the end of an archive. */
const ALLOWANCE = 1024 * 1024;
const MAX_ENTRIES = 256;
const MAX_PATH = 1024;
/** Trained numbers hardly shrink. */
const MAX_RATIO = 100;

const HOW = `pack one with: tar czf adapter.tar.gz -C DIRECTORY ${ADAPTER_FILES.join(" ")}`;

/** Takes the content of one file; what it throws ends the reading. */
export type Receive = (file: AdapterFile, content: AsyncIterable<Uint8Array>) => Promise<void>;

function invalid(problem: string, cause?: unknown): InputError {
  return new InputError("ARCHIVE_INVALID", "the archive", problem, cause === undefined ? {} : { cause });
}

export function tooLarge(what: string, maxBytes: number): InputError {
  return new InputError("PAYLOAD_TOO_LARGE", what, `is larger than the ${maxBytes} bytes allowed`);
}

/**
 * Reads an archive, plain or compressed with gzip, and passes on the two files of an adapter, which lie at its root or
 * in one directory. Other files are skipped.
 *
 * @param source a stream stays the caller's to close; after a failure the rest of it is read and thrown away, so that
 *   a client which is still sending gets to read its answer
 * @param maxBytes of all files together, unpacked
 * @returns paths of the files that were skipped
 * @throws InputError ARCHIVE_INVALID, PAYLOAD_TOO_LARGE; what `source` or `receive` throws
 */
export async function readArchive(
  source: AsyncIterable<Uint8Array>,
  maxBytes: number,
  receive: Receive,
): Promise<string[]> {
  const input = new Input(source, maxBytes);
  const tar = extract();
  const feeding = feed(input.unpacked(), tar);
  const entries = new Entries(maxBytes);
  try {
    for await (const entry of tar) {
      const file = entries.take(entry.header);
      const content = entry as unknown as AsyncIterable<Uint8Array>; // its types do not say so
      if (file) await receive(file, content);
      else if (entry.header.type !== "directory") for await (const _ of content); // what is skipped is read, too
    }
    await feeding;
    return entries.finish();
  } catch (error) {
    feeding.catch(() => {}); // it ends when the source does; the first error is the one to tell
    if (error === input.failure || error instanceof MiloraError || isSystemError(error)) throw error;
    throw invalid(`is neither a .tar nor a .tar.gz, or it is damaged (${reasonOf(error)}); ${HOW}`, error);
  }
}

function isSystemError(error: unknown): boolean {
  return error instanceof Error && "syscall" in error;
}

/** Writes chunks into the tar reader at its pace. A failure of the chunks becomes the reader's. */
async function feed(chunks: AsyncIterable<Uint8Array>, tar: ReturnType<typeof extract>): Promise<void> {
  try {
    for await (const chunk of chunks) {
      if (tar.destroyed) return;
      if (!tar.write(chunk) && !tar.destroyed) {
        await new Promise<void>((resolve) => {
          const goOn = (): void => {
            tar.off("drain", goOn);
            tar.off("close", goOn);
            resolve();
          };
          tar.on("drain", goOn);
          tar.on("close", goOn);
        });
      }
    }
    tar.end(null);
  } catch (error) {
    tar.destroy(error as Error);
  }
}

/** A client that is still sending could not be answered otherwise. */
const UNHARMED = { destroyOnReturn: false };

/** The bytes of an archive before and after decompression, counted. */
class Input {
  /** What the source itself threw: nothing is wrong with the archive. */
  failure: unknown;
  readonly #source: AsyncIterable<Uint8Array>;
  readonly #maxBytes: number;
  #packed = 0;

  constructor(source: AsyncIterable<Uint8Array>, maxBytes: number) {
    this.#source = source;
    this.#maxBytes = maxBytes;
  }

  async *unpacked(): AsyncGenerator<Uint8Array> {
    const packed = this.#read();
    const head: Uint8Array[] = [];
    let length = 0;
    while (length < 4) {
      const { value, done } = await packed.next();
      if (done) break;
      head.push(value);
      length += value.length;
    }
    const start = Buffer.concat(head);
    if (length === 0) throw invalid(`is empty; ${HOW}`);
    if (start.subarray(0, 2).toString("latin1") === "PK") throw invalid(`is a .zip, which is not read; ${HOW}`);
    const whole = prepend(start, packed);
    if (start[0] !== 0x1f || start[1] !== 0x8b) {
      yield* whole;
      return;
    }
    const gunzip = createGunzip({ chunkSize: 64 * 1024 });
    const raw = Readable.from(whole, { objectMode: false });
    raw.on("error", (error) => gunzip.destroy(error));
    gunzip.on("close", () => raw.destroy());
    let unpacked = 0;
    for await (const chunk of raw.pipe(gunzip) as AsyncIterable<Uint8Array>) {
      unpacked += chunk.length;
      if (unpacked > this.#maxBytes + ALLOWANCE) throw tooLarge("the unpacked archive", this.#maxBytes);
      if (unpacked > ALLOWANCE && unpacked > MAX_RATIO * this.#packed) {
        throw new InputError("PAYLOAD_TOO_LARGE", "the archive", `is compressed more than ${MAX_RATIO} times`);
      }
      yield chunk;
    }
  }

  async *#read(): AsyncGenerator<Uint8Array> {
    const source = this.#source;
    const chunks = source instanceof Readable ? source.iterator(UNHARMED) : source[Symbol.asyncIterator]();
    try {
      for (;;) {
        const { value, done } = await chunks.next().catch((error: unknown) => {
          this.failure = error;
          throw error;
        });
        if (done) return;
        this.#packed += value.length;
        if (this.#packed > this.#maxBytes + ALLOWANCE) throw tooLarge("the archive", this.#maxBytes);
        if (value.length > 0) yield value;
      }
    } finally {
      if (this.failure === undefined) await chunks.return?.();
      if (source instanceof Readable) source.on("error", () => {}).resume();
    }
  }
}

async function* prepend(start: Uint8Array, rest: AsyncGenerator<Uint8Array>): AsyncGenerator<Uint8Array> {
  yield start;
  yield* rest;
}

/** What has been seen of an archive's entries. */
class Entries {
  readonly #maxBytes: number;
  readonly #paths = new Set<string>();
  readonly #found = new Set<AdapterFile>();
  readonly #skipped: string[] = [];
  #directory: string | undefined;
  #bytes = 0;

  constructor(maxBytes: number) {
    this.#maxBytes = maxBytes;
  }

  /** Checks an entry by its header. @returns the file it is, or undefined when it is to be skipped */
  take(header: Header): AdapterFile | undefined {
    const path = checkPath(header);
    const size = header.size ?? 0;
    this.#bytes += size;
    if (this.#bytes > this.#maxBytes) throw tooLarge("the unpacked archive", this.#maxBytes);
    if (this.#paths.has(path)) throw invalid(`holds ${JSON.stringify(path)} twice`);
    this.#paths.add(path);
    if (this.#paths.size > MAX_ENTRIES) throw invalid(`has more than ${MAX_ENTRIES} entries`);
    if (header.type === "directory") return undefined;
    const parts = path.split("/");
    const file = ADAPTER_FILES.find((name) => name === parts.at(-1));
    if (!file || parts.length > 2) {
      this.#skipped.push(path);
      return undefined;
    }
    const directory = parts.length === 2 ? parts[0]! : "";
    if (this.#directory !== undefined && directory !== this.#directory) throw invalid("holds more than one adapter");
    this.#directory = directory;
    this.#found.add(file);
    if (file === CONFIG_FILE && size > MAX_CONFIG_BYTES) throw tooLarge(CONFIG_FILE, MAX_CONFIG_BYTES);
    return file;
  }

  finish(): string[] {
    const missing = ADAPTER_FILES.filter((file) => !this.#found.has(file));
    if (missing.length > 0) {
      const pickle = this.#skipped.some((path) => path.endsWith("adapter_model.bin"))
        ? "; adapter_model.bin is a pickle, which is never read: save the adapter as safetensors"
        : "";
      throw invalid(`has no ${missing.join(" and no ")} at its root or in its one directory${pickle}`);
    }
    return this.#skipped;
  }
}

/** The path of an entry without empty parts. @throws InputError for what a file of an adapter never is */
function checkPath(header: Header): string {
  const { name, type } = header;
  const label = JSON.stringify(name.slice(0, 200));
  if (name.length > MAX_PATH) throw invalid(`has a path of ${name.length} characters`);
  if (/[\p{Cc}\\]/u.test(name)) throw invalid(`has a path with a control character or backslash: ${label}`);
  if (name.startsWith("/") || /^[A-Za-z]:/.test(name)) throw invalid(`has an absolute path: ${label}`);
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  if (parts.includes("..")) throw invalid(`has a path that leads out of it: ${label}`);
  if (type !== "file" && type !== "directory") {
    throw invalid(`holds ${label}, which is neither a file nor a directory (${type ?? "unknown kind"})`);
  }
  if (type === "directory" && header.size !== 0) throw invalid(`holds ${label}, a directory with content`);
  if (Object.keys((header.pax as object | null) ?? {}).some((key) => key.startsWith("GNU.sparse"))) {
    throw invalid(`holds ${label} as a sparse file; pack it without --sparse`);
  }
  if (parts.length === 0 && type === "file") throw invalid("has a file without a name");
  return parts.join("/") || ".";
}
