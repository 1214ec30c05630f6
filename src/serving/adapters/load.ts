/** @file Reads an adapter off its files bit by bit, so that the event loop goes on serving, and checks that they are whole. */
import { join, sep } from "node:path";
import { InputError, MiloraError } from "../../base/index.ts";
import { Adapter } from "../../methods/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { digestOfFiles } from "./files.ts";

/** Work goes on for this long before others have their turn, in milliseconds. */
const TURN_MS = 4;

/** Lets at most `places` in at a time, in the order in which they came. */
export class Gate {
  #places: number;
  readonly #waiting: (() => void)[] = [];

  constructor(places: number) {
    this.#places = places;
  }

  async enter(): Promise<Disposable> {
    if (this.#places > 0) this.#places--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return {
      [Symbol.dispose]: () => {
        const next = this.#waiting.shift();
        if (next) next();
        else this.#places++;
      },
    };
  }
}

export interface LoadOptions {
  /** Called once the size of the tensors is known, before they are allocated; what it throws ends the loading. */
  readonly reserve: (bytes: number) => void | Promise<void>;
  /** Of the loads that go on at the same time. */
  readonly gate: Gate;
  /** What the files should be; not given for files that are new here. */
  readonly digest?: string;
  readonly signal?: AbortSignal | undefined;
}

export function corrupt(digest: string, reason: string): MiloraError {
  return new MiloraError(
    "ADAPTER_CORRUPT",
    `the files of adapter ${digest.slice(0, 12)} are damaged (${reason}); install it again`,
    { exitCode: 1 },
  );
}

/**
 * Loads an adapter strictly, in steps.
 * @throws MiloraError ADAPTER_CORRUPT when the files are not those that `digest` stands for; else as `Adapter.load`
 */
export async function loadAdapter(
  directory: string,
  backbone: BackboneConfig,
  { reserve, gate, digest, signal }: LoadOptions,
): Promise<Adapter> {
  const steps = Adapter.loading(directory, backbone);
  try {
    let step = steps.next();
    if (!step.done) await reserve(step.value);
    signal?.throwIfAborted();
    using _place = await gate.enter();
    if (digest !== undefined) await verify(directory, digest);
    let began = performance.now();
    while (!step.done) {
      if (performance.now() - began > TURN_MS) {
        await new Promise<void>((resolve) => setImmediate(resolve));
        signal?.throwIfAborted();
        began = performance.now();
      }
      step = steps.next();
    }
    return step.value;
  } catch (error) {
    // Damage may show as anything; files that are what they should be fail for another reason.
    if (digest !== undefined && error instanceof InputError && ABOUT_FILES.has(error.code)) {
      await verify(directory, digest);
    }
    throw error instanceof InputError ? withoutPath(error, directory) : error;
  } finally {
    steps.return(undefined as never);
  }
}

/** The error without the place where the files lie, which is nobody's business. */
function withoutPath(error: InputError, directory: string): InputError {
  const { code, problems, message } = error;
  const listed = new InputError(code, "", problems).message.length; // ": " and the problems
  const strip = (text: string): string => text.replaceAll(join(directory, sep), "");
  return new InputError(code, strip(message.slice(0, message.length - listed)), problems.map(strip), { cause: error });
}

/** What damaged files may lead to. */
const ABOUT_FILES = new Set([
  ...["ADAPTER_INVALID", "ADAPTER_MISMATCH", "CONFIG_INVALID", "FILE_UNREADABLE", "JSON_INVALID", "METHOD_UNKNOWN"],
  ...["SAFETENSORS_INVALID", "DTYPE_UNSUPPORTED", "CONFIG_UNSUPPORTED", "ADAPTER_TARGETS_NOTHING"],
]);

async function verify(directory: string, digest: string): Promise<void> {
  let found: string;
  try {
    found = await digestOfFiles(directory);
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw corrupt(digest, missing ? "a file is missing" : (error as Error).message);
  }
  if (found !== digest) throw corrupt(digest, "they are not what was installed");
}
