/** @file Files of the embedded database that outlive a power cut: PGlite leaves synchronising out, and its file system cannot do it. */
import { fsyncSync } from "node:fs";
import { PGlite } from "@electric-sql/pglite";
import { NodeFS } from "@electric-sql/pglite/nodefs";

/**
 * Start parameters without the one that turns synchronising off. `fdatasync` does nothing in WebAssembly. After a
 * kill PostgreSQL synchronises every file of the database when it is opened, which takes about a second.
 */
export function durableParams(): string[] {
  return [...PGlite.defaultStartParams.filter((parameter) => parameter !== "-F"), "-c", "wal_sync_method=fsync"];
}

/** As WebAssembly numbers them. */
const EINVAL = 28;
const EIO = 29;

/** Emscripten's view of an open file of this machine. */
interface OpenFile {
  readonly nfd: number;
}

/** What PGlite's module has and its types do not tell. */
interface ModuleFiles {
  readonly NODEFS: { readonly stream_ops: { fsync?: (file: OpenFile) => number } };
}

export class DurableFiles extends NodeFS {
  override async init(...given: Parameters<NodeFS["init"]>): ReturnType<NodeFS["init"]> {
    const { emscriptenOpts } = await super.init(...given);
    const synchronise = (module: unknown): void => {
      (module as ModuleFiles).NODEFS.stream_ops.fsync = ({ nfd }) => {
        try {
          fsyncSync(nfd);
          return 0;
        } catch (error) {
          // What cannot be synchronised at all, as directories of some file systems, PostgreSQL passes over.
          return (error as NodeJS.ErrnoException).code === "EINVAL" ? EINVAL : EIO;
        }
      };
    };
    return { emscriptenOpts: { ...emscriptenOpts, preRun: [...(emscriptenOpts.preRun ?? []), synchronise] } };
  }
}
