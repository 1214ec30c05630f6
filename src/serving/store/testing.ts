/** @file For tests: stores with a clock of their own, children that are killed, and the cluster that new databases begin as. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { brotliCompressSync, constants } from "node:zlib";
import { PGlite } from "@electric-sql/pglite";
import { build } from "vite";
import { onTestFinished } from "vitest";
import { TEMPLATE } from "./database.ts";
import { openStore, type Store } from "./store.ts";

/** A point in time that can be moved. */
export class Clock {
  time: number;

  constructor(iso = "2026-03-01T12:00:00Z") {
    this.time = Date.parse(iso);
  }

  readonly now = (): number => this.time;

  pass(seconds: number): void {
    this.time += seconds * 1000;
  }
}

/** A store in memory with its own clock, closed after the test. */
export async function memoryStore(clock = new Clock()): Promise<{ store: Store; clock: Clock }> {
  const store = await openStore({ memory: true }, { now: clock.now });
  onTestFinished(() => store[Symbol.asyncDispose]());
  return { store, clock };
}

/** A directory that is gone after the test. */
export function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), "milora-store-"));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

const ROOT = join(import.meta.dirname, "../../..");

export interface Child {
  /** Lines that it has printed so far. */
  readonly lines: string[];
  /** Resolves when `lines` has this many, or when the child has ended. */
  until(count: number): Promise<void>;
  /** Ends it with SIGKILL and waits until it is gone and all its lines have arrived. */
  kill(): Promise<void>;
}

/**
 * Bundles the store for children, which then start quickly. It lies where the packages are found, and as many folders
 * below the root as its source, which looks for a file of the project from there.
 */
export async function bundle(): Promise<string> {
  const outDir = join(ROOT, "node_modules/.cache", `milora-store-${process.pid}`);
  await build({
    root: ROOT,
    configFile: false,
    logLevel: "error",
    build: { ssr: join(import.meta.dirname, "store.ts"), outDir, target: "es2022", minify: false },
  });
  return join(outDir, "store.js");
}

/**
 * Runs `body`, code of a module that sees `openStore` and `directory`, in a process of its own.
 *
 * @param store the bundled store
 */
export function child(store: string, directory: string, body: string): Child {
  const code = `
    import { openStore } from ${JSON.stringify(pathToFileURL(store).href)};
    const directory = ${JSON.stringify(directory)};
    ${body}`;
  const process_ = spawn(process.execPath, ["--input-type=module", "-e", code], {
    cwd: ROOT,
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(() => void process_.kill("SIGKILL"));
  const lines: string[] = [];
  const waiting: { count: number; resolve: () => void }[] = [];
  const reader = createInterface({ input: process_.stdout });
  reader.on("line", (line) => {
    lines.push(line);
    for (const { count, resolve } of waiting) if (lines.length >= count) resolve();
  });
  const closed = Promise.all([once(process_, "exit"), once(reader, "close")]);
  return {
    lines,
    async until(count) {
      if (lines.length >= count) return;
      await Promise.race([new Promise<void>((resolve) => waiting.push({ count, resolve })), closed]);
    },
    async kill() {
      process_.kill("SIGKILL");
      await closed;
    },
  };
}

/** Makes assets/database/cluster.tar.br anew, as a new version of PGlite may need it. */
export async function writeTemplate(): Promise<void> {
  const client = await PGlite.create("memory://", { initDbStartParams: ["--wal-segsize=1"] });
  await client.exec("CHECKPOINT");
  const tar = new Uint8Array(await (await client.dumpDataDir("none")).arrayBuffer());
  await client.close();
  const { BROTLI_PARAM_LGWIN, BROTLI_PARAM_QUALITY, BROTLI_PARAM_SIZE_HINT } = constants;
  const params = { [BROTLI_PARAM_QUALITY]: 11, [BROTLI_PARAM_LGWIN]: 24, [BROTLI_PARAM_SIZE_HINT]: tar.length };
  writeFileSync(TEMPLATE, brotliCompressSync(tar, { params }));
}
