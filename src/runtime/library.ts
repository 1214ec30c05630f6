/** @file Finds and loads the ONNX Runtime shared library and gives access to its table of functions. */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import koffi, { type LibraryHandle } from "koffi";
import { reasonOf } from "../base/index.ts";
import { RuntimeError } from "./errors.ts";

/** An address in native memory. The FFI gives `null` for NULL. */
export type Pointer = bigint;

export interface Library {
  readonly path: string;
  readonly version: string;
  /** The address of the OrtApi struct: an append-only array of function pointers. */
  readonly table: Pointer;
}

/** The API version asked for. Every later runtime still answers it: the table only grows. */
const API_VERSION = 22;

/**
 * koffi runs native code on stacks of its own, and the default for asynchronous calls (128 KiB) is far below what
 * the runtime's kernels may put there. The memory is only touched as it is used.
 */
const STACK_BYTES = 8 * 1024 * 1024;
const SMALLEST_STACK_BYTES = 1024 * 1024;

function fileName(): string {
  if (process.platform === "win32") return "onnxruntime.dll";
  if (process.platform === "darwin") return "libonnxruntime.1.dylib";
  return "libonnxruntime.so.1";
}

/** Where the shared library is: `MILORA_ORT_LIBRARY`, or inside the installed onnxruntime-node package. */
export function libraryPath(): string {
  const override = process.env.MILORA_ORT_LIBRARY;
  if (override !== undefined && override !== "") {
    if (existsSync(override)) return override;
    throw new RuntimeError(
      "LIBRARY_MISSING",
      `MILORA_ORT_LIBRARY names ${override}, which does not exist; point it to an ONNX Runtime shared library or unset it`,
    );
  }
  let root: string;
  try {
    root = dirname(createRequire(import.meta.url).resolve("onnxruntime-node/package.json"));
  } catch (cause) {
    throw new RuntimeError(
      "LIBRARY_MISSING",
      "the package onnxruntime-node is not installed; install it, or set MILORA_ORT_LIBRARY to an ONNX Runtime shared library",
      { cause },
    );
  }
  const path = join(root, "bin", "napi-v6", process.platform, process.arch, fileName());
  if (existsSync(path)) return path;
  throw new RuntimeError(
    "LIBRARY_MISSING",
    `onnxruntime-node has no ONNX Runtime for ${process.platform} ${process.arch} (looked for ${path}); ` +
      "set MILORA_ORT_LIBRARY to a shared library built for this machine",
  );
}

export function enlargeStacks(): void {
  try {
    koffi.config({ sync_stack_size: STACK_BYTES, async_stack_size: STACK_BYTES });
  } catch (cause) {
    // Another user of koffi in this process has loaded a library first, and the sizes are settled by then.
    if ((koffi.config().async_stack_size ?? 0) >= SMALLEST_STACK_BYTES) return;
    throw new RuntimeError(
      "LIBRARY_MISSING",
      "another package has used koffi before the runtime could enlarge its stacks; load milora first, " +
        `or call koffi.config({ async_stack_size: ${STACK_BYTES} }) before that package is used`,
      { cause },
    );
  }
}

/**
 * Every library that was loaded, for the life of the process: koffi unloads one whose object is garbage collected, and
 * the functions taken from it would then lead into unmapped memory.
 */
export const loaded: unknown[] = [];

const RTLD_LAZY = 1;
/** What is loaded so stays mapped until the process has ended. */
const RTLD_NODELETE: Partial<Record<NodeJS.Platform, number>> = { linux: 0x1000, darwin: 0x80 };

/**
 * Loads a library for the life of the process and of its threads, which may still run while Node takes itself down and koffi
 * unloads what it has loaded.
 */
export function openLibrary(path: string): LibraryHandle {
  const library = koffi.load(path);
  loaded.push(library);
  const stay = RTLD_NODELETE[process.platform];
  if (stay !== undefined) {
    const own = koffi.load(null);
    own.func("void *dlopen(const char *, int)")(path, RTLD_LAZY | stay);
  }
  return library;
}

/** Loads the library. @throws RuntimeError LIBRARY_MISSING when it is missing, unloadable or too old. */
export function loadLibrary(): Library {
  const path = libraryPath();
  enlargeStacks();
  let base: Pointer | null;
  try {
    const library = openLibrary(path);
    base = library.func("OrtGetApiBase", "void *", [])() as Pointer | null;
  } catch (cause) {
    throw new RuntimeError(
      "LIBRARY_MISSING",
      `${path} could not be loaded as ONNX Runtime: ${reasonOf(cause)}; set MILORA_ORT_LIBRARY to a working shared library`,
      { cause },
    );
  }
  if (base === null) throw new RuntimeError("LIBRARY_MISSING", `${path} gives no API; it is not a usable ONNX Runtime`);
  // struct OrtApiBase { const OrtApi* (*GetApi)(uint32_t); const char* (*GetVersionString)(void); }
  const [getApi, getVersion] = koffi.decode(base, koffi.array("void *", 2)) as [Pointer, Pointer];
  const version = (koffi.decode(getVersion, koffi.proto("str", [])) as () => string)();
  const table = (koffi.decode(getApi, koffi.proto("void *", ["uint32_t"])) as (v: number) => Pointer | null)(
    API_VERSION,
  );
  if (table === null) {
    throw new RuntimeError(
      "LIBRARY_MISSING",
      `ONNX Runtime ${version} (${path}) is too old: API ${API_VERSION} is needed, so 1.${API_VERSION} or newer`,
    );
  }
  return { path, version, table };
}
