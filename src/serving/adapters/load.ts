/** @file Reads an adapter off its files bit by bit, so that the event loop goes on serving, and checks that they are whole. */
import { createHash } from "node:crypto";
import { closeSync, fstatSync, read, readFileSync, statSync } from "node:fs";
import { join, sep } from "node:path";
import { setImmediate } from "node:timers/promises";
import { promisify } from "node:util";
import { InputError, MiloraError, openRegularFile, reasonOf } from "../../base/index.ts";
import { Adapter, WEIGHTS_FILE } from "../../methods/index.ts";
import { type BackboneConfig, SafetensorsFile } from "../../models/index.ts";
import { ADAPTER_FILES, type AdapterFile } from "./archive.ts";
import { digestOf, digestOfFiles, isUnchanged, rememberUnchanged, signatureOf } from "./files.ts";
import { passing, systemCode } from "./memory-errors.ts";

/**
 * Work goes on for this long before others have their turn, in milliseconds. About as long as a step of many sequences: the
 * more turns there are, the more steps whoever waits for the adapter waits for.
 */
export const TURN_MS = 16;

/** Loads whose reading goes on at the same time: one waits for the disk while the other one's numbers are checked. */
export const PARALLEL_LOADS = 2;

/** How much has been served to whom a request is of: of several who wait the least goes first. */
export type Claim = () => number;

/** Lets at most `places` in at a time; of those who wait who was served least, and of these who came first. */
export class Gate {
  #places: number;
  readonly #waiting: { readonly claim: Claim; readonly enter: () => void }[] = [];

  constructor(places: number) {
    this.#places = places;
  }

  async enter(claim: Claim = () => 0): Promise<Disposable> {
    if (this.#places > 0) this.#places--;
    else await new Promise<void>((enter) => this.#waiting.push({ claim, enter }));
    return {
      [Symbol.dispose]: () => {
        const next = leastServed(this.#waiting, ({ claim }) => claim());
        if (next === undefined) this.#places++;
        else {
          this.#waiting.splice(this.#waiting.indexOf(next), 1);
          next.enter();
        }
      },
    };
  }
}

/** The first of those who were served least. */
export function leastServed<T>(waiting: readonly T[], served: (one: T) => number): T | undefined {
  let least = Number.POSITIVE_INFINITY;
  let found = waiting[0];
  for (const one of waiting) {
    const now = served(one);
    if (now >= least) continue;
    [found, least] = [one, now];
  }
  return found;
}

export interface LoadOptions {
  /** Called once the size of the tensors is known, before they are allocated; what it throws ends the loading. */
  readonly reserve: (bytes: number) => void | Promise<void>;
  /** Of the loads that go on at the same time. */
  readonly gate: Gate;
  readonly claim?: Claim | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface InstalledOptions extends LoadOptions {
  /** What the files should be. */
  readonly digest: string;
  /** Bytes of a file of tensors that is read as a whole; larger ones are piece by piece. Default 64 MiB. */
  readonly whole?: number;
  /** Takes what it needs of the numbers, while they are at hand. What it throws ends the loading. */
  readonly prepare: (adapter: Adapter) => Promise<void>;
}

export function corrupt(digest: string, reason: string): MiloraError {
  return new MiloraError(
    "ADAPTER_CORRUPT",
    `the files of adapter ${digest.slice(0, 12)} are damaged (${reason}); install it again`,
    { exitCode: 1 },
  );
}

/** Loads an adapter strictly, in steps. @throws as `Adapter.load` */
export async function loadStrictly(
  directory: string,
  backbone: BackboneConfig,
  { reserve, gate, claim, signal }: LoadOptions,
): Promise<Adapter> {
  using _place = await gate.enter(claim);
  signal?.throwIfAborted();
  const steps = Adapter.loading(directory, backbone);
  try {
    let step = steps.next();
    if (!step.done) await reserve(step.value);
    let began = performance.now();
    while (!step.done) {
      signal?.throwIfAborted();
      if (performance.now() - began > TURN_MS) {
        await setImmediate();
        began = performance.now();
      }
      step = steps.next();
    }
    return step.value;
  } catch (error) {
    throw passing(error) ?? withoutPath(error, directory);
  } finally {
    steps.return(undefined as never);
  }
}

/**
 * Loads an adapter that was loaded strictly when it was installed. Of a small one the numbers are not copied: as a rule
 * what `prepare` makes of them is all that is needed.
 * @throws MiloraError ADAPTER_CORRUPT when the files are not those that `digest` stands for; else as `Adapter.load`
 */
export async function loadInstalled(
  directory: string,
  backbone: BackboneConfig,
  options: InstalledOptions,
): Promise<Adapter> {
  const { digest, whole = WHOLE, prepare } = options;
  const bytes = await orCorrupt(directory, digest, async () => statSync(join(directory, WEIGHTS_FILE)).size);
  if (bytes <= whole) return loadWhole(directory, backbone, bytes, options);
  await verified(directory, digest);
  const large = await loadStrictly(directory, backbone, options);
  return prepared(large, prepare);
}

async function loadWhole(
  directory: string,
  backbone: BackboneConfig,
  bytes: number,
  { digest, reserve, gate, claim, signal, prepare }: InstalledOptions,
): Promise<Adapter> {
  using _place = await gate.enter(claim);
  signal?.throwIfAborted();
  using taken = takeMemory(bytes);
  const path = join(directory, WEIGHTS_FILE);
  const contents = await orCorrupt(directory, digest, () => readWhole(path, taken.memory));
  await verified(directory, digest, contents);
  let open = (): SafetensorsFile => {
    open = () => SafetensorsFile.open(path, verifiedNow(directory, digest)); // `contents` are another's by then
    return SafetensorsFile.open(path, contents);
  };
  try {
    const adapter = Adapter.lazily(directory, backbone, () => open());
    await reserve(adapter.byteLength);
    signal?.throwIfAborted();
    return await prepared(adapter, prepare);
  } catch (error) {
    throw passing(error) ?? withoutPath(error, directory);
  }
}

async function prepared(adapter: Adapter, prepare: InstalledOptions["prepare"]): Promise<Adapter> {
  try {
    await prepare(adapter);
    adapter.closeFile();
    return adapter;
  } catch (error) {
    adapter.dispose();
    throw error;
  }
}

/** The error without the place where the files lie, which is nobody's business. */
function withoutPath(error: unknown, directory: string): unknown {
  if (!(error instanceof InputError)) return error;
  const { code, problems, message } = error;
  const listed = new InputError(code, "", problems).message.length; // ": " and the problems
  const strip = (text: string): string => text.replaceAll(join(directory, sep), "");
  return new InputError(code, strip(message.slice(0, message.length - listed)), problems.map(strip), { cause: error });
}

/**
 * Makes sure that the files are those that were installed: by their times as long as nobody wrote to them, else by hashing
 * them. Hashing is on this thread: where sequences decode every core is busy, and another thread takes ten times as long and
 * makes them wait, too.
 * @param contents of the file of tensors, where they have been read
 * @throws MiloraError ADAPTER_CORRUPT
 */
async function verified(directory: string, digest: string, contents?: Uint8Array): Promise<void> {
  if (isUnchanged(directory)) return;
  const signature = signatureOf(directory);
  const found = await orCorrupt(directory, digest, () => digestOfFiles(directory, contents));
  if (found !== digest) throw corrupt(digest, CHANGED);
  await rememberUnchanged(directory, signature);
}

/** The file of tensors, read and hashed at once: for what is seldom asked of an adapter. @throws as `verified` */
function verifiedNow(directory: string, digest: string): Uint8Array {
  const contents = readBoth(directory);
  const sums = [...contents].map(([file, bytes]) => [file, createHash("sha256").update(bytes).digest("hex")] as const);
  if (digestOf(new Map(sums)) !== digest) throw corrupt(digest, CHANGED);
  return contents.get(WEIGHTS_FILE)!;
}

function readBoth(directory: string): Map<AdapterFile, Uint8Array> {
  try {
    return new Map(ADAPTER_FILES.map((file) => [file, readFileSync(join(directory, file))]));
  } catch (error) {
    throw passing(error) ?? error;
  }
}

const CHANGED = "they are not what was installed";

async function orCorrupt<T>(directory: string, digest: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    throw passing(error) ?? corrupt(digest, unreadable(error, directory));
  }
}

/** Why a file cannot be read, without where it lies. */
function unreadable(error: unknown, directory: string): string {
  const code = systemCode(error);
  if (code === "ENOENT") return "a file is missing";
  return code === undefined ? reasonOf(withoutPath(error, directory)) : `a file cannot be read, ${code}`;
}

const WHOLE = 64 * 1024 * 1024;
const MIB = 1024 * 1024;

/**
 * Memory for such files, kept for the next ones: new memory for each has to be zeroed, and counts as JavaScript's, which
 * searches its heap for garbage with every 64 MiB more.
 */
const spare: Uint8Array[] = [];

/** @param bytes that it has at least */
function takeMemory(bytes: number): { readonly memory: Uint8Array } & Disposable {
  const kept = spare.pop();
  const memory = kept && kept.length >= bytes ? kept : new Uint8Array(Math.ceil(bytes / (8 * MIB)) * 8 * MIB);
  return { memory, [Symbol.dispose]: () => void spare.push(memory) };
}

/** By one call as a rule: `readFile` makes one for each half of a MiB, between which a server that decodes has other work. */
async function readWhole(path: string, memory: Uint8Array): Promise<Uint8Array> {
  const handle = openRegularFile(path);
  try {
    const size = Math.min(fstatSync(handle).size, memory.length); // one that grew meanwhile has another digest
    for (let done = 0; done < size; ) {
      const { bytesRead } = await promisify(read)(handle, memory, done, size - done, done);
      if (bytesRead === 0) return memory.subarray(0, done); // cut meanwhile, which its digest or its header tells
      done += bytesRead;
    }
    return memory.subarray(0, size);
  } finally {
    closeSync(handle);
  }
}
