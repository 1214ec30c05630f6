/** @file For tests: stores on either database with a clock of their own, children that are killed, and the cluster that new databases begin as. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import { createInterface } from "node:readline";
import { buffer } from "node:stream/consumers";
import { pathToFileURL } from "node:url";
import { brotliCompressSync, constants } from "node:zlib";
import { PGlite } from "@electric-sql/pglite";
import { NodeFS } from "@electric-sql/pglite/nodefs";
import { type Logger, sql } from "drizzle-orm";
import { drizzle } from "drizzle-orm/pglite";
import { type Pack, pack } from "tar-stream";
import { build } from "vite";
import { afterAll, beforeAll, describe, onTestFinished } from "vitest";
import { type Database, type OpenDatabase, openDatabase, TEMPLATE } from "./database.ts";
import { migrate } from "./migrations/index.ts";
import { openPostgres } from "./postgres.ts";
import * as schema from "./schema.ts";
import { openStore, type Store, type StoreLocation, type StoreOptions } from "./store.ts";
import { Cluster, NO_OWN_POSTGRES, NO_POSTGRES } from "./testing/cluster.ts";

export { NO_OWN_POSTGRES, NO_POSTGRES };

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

/** One of the two databases that a store may have, empty for each test. */
export interface Place {
  /** A store with its own clock, closed after the test. */
  store(clock?: Clock): Promise<{ store: Store; clock: Clock }>;
  /** Where one store after the other is opened. */
  lasting(): Promise<StoreLocation>;
  /** A database without tables. */
  open(logger?: Logger): Promise<OpenDatabase>;
  /** The one that a store at `location` had. */
  reopen(location: StoreLocation): Promise<OpenDatabase>;
}

const embedded: Place = {
  store: (clock) => opened({ memory: true }, clock),
  lasting: async () => ({ directory: temporary() }),
  async open(logger) {
    const opened = await openDatabase(undefined, logger);
    await opened.database.execute(sql`DROP SCHEMA public CASCADE`);
    await opened.database.execute(sql`CREATE SCHEMA public`);
    return opened;
  },
  reopen: (location) => openDatabase(join((location as { directory: string }).directory, "database")),
};

async function opened(location: StoreLocation, clock = new Clock()): Promise<{ store: Store; clock: Clock }> {
  const options: StoreOptions = { now: clock.now };
  const store = await openStore(location, options);
  onTestFinished(() => store[Symbol.asyncDispose]());
  return { store, clock };
}

/** Tests that hold on both databases. PostgreSQL's are left out where there is none. */
export function onBoth(body: (place: Place) => void): void {
  describe("PGlite", () => body(embedded));
  const servers = new Servers();
  describe.skipIf(NO_POSTGRES)(`PostgreSQL${NO_POSTGRES ? ` (${NO_POSTGRES})` : ""}`, () => {
    servers.use();
    body({
      store: async (clock) => opened({ url: await servers.database() }, clock),
      lasting: async () => ({ url: await servers.database() }),
      open: async (logger) => openPostgres(await servers.database(), logger ? { logger } : {}),
      reopen: (location) => openPostgres((location as { url: string }).url),
    });
  });
}

/** The PostgreSQL of one file's tests. */
export class Servers {
  #cluster: Cluster | undefined;

  /** @param own one that the tests may stop */
  use(own = false): void {
    beforeAll(async () => {
      this.#cluster = own ? await Cluster.startOwn() : await Cluster.start();
    });
    afterAll(() => this.#cluster?.[Symbol.asyncDispose]());
  }

  get cluster(): Cluster {
    if (!this.#cluster) throw new Error("not started");
    return this.#cluster;
  }

  /** An empty database, gone after the test. */
  async database(): Promise<string> {
    const { cluster } = this;
    const url = await cluster.create();
    onTestFinished(() => cluster.drop(url));
    return url;
  }
}

/** A store in memory with its own clock, closed after the test. */
export const memoryStore = embedded.store;

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
    build: {
      ...{ ssr: join(import.meta.dirname, "store.ts"), outDir, target: "es2022", minify: false },
      // The version, which the store does not ask for, lies elsewhere as seen from the bundle.
      rolldownOptions: { treeshake: { moduleSideEffects: (id) => !id.endsWith("base/version.ts") } },
    },
  });
  return join(outDir, "store.js");
}

/**
 * Runs `body`, code of a module that sees `openStore` and `location`, in a process of its own.
 *
 * @param store the bundled store
 */
export function child(store: string, location: StoreLocation, body: string): Child {
  const code = `
    import { openStore } from ${JSON.stringify(pathToFileURL(store).href)};
    const location = ${JSON.stringify(location)};
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

/**
 * Makes assets/database/cluster.tar.br anew, as a new version of PGlite or of the schema needs it: with the one database
 * that PGlite opens and milora's tables in it, without those that others would be made from, and closed, so that nothing
 * has to be recovered. A third of the files are left, each of which is synchronised when a cluster is made and after each
 * kill.
 */
export async function writeTemplate(): Promise<void> {
  const directory = temporary();
  const client = await PGlite.create({ fs: new NodeFS(directory), initDbStartParams: ["--wal-segsize=1"] });
  for (const name of ["template0", "template1"]) {
    await client.exec(`UPDATE pg_database SET datistemplate = false, datallowconn = true WHERE datname = '${name}'`);
    await client.exec(`DROP DATABASE ${name}`);
  }
  await migrate(drizzle({ client, schema }) as unknown as Database, "the template");
  await client.exec("CHECKPOINT");
  const log = await client.query<{ file: string }>("SELECT pg_walfile_name(pg_current_wal_lsn()) AS file");
  await client.close();
  const later = readdirSync(join(directory, "pg_wal")).filter(
    (file) => /^\w{24}$/.test(file) && file > log.rows[0]!.file,
  );
  for (const file of later) rmSync(join(directory, "pg_wal", file)); // made in store, with what earlier ones held
  const tar = await buffer(packDirectory(directory));
  const { BROTLI_PARAM_LGWIN, BROTLI_PARAM_QUALITY, BROTLI_PARAM_SIZE_HINT } = constants;
  const params = { [BROTLI_PARAM_QUALITY]: 11, [BROTLI_PARAM_LGWIN]: 24, [BROTLI_PARAM_SIZE_HINT]: tar.length };
  writeFileSync(TEMPLATE, brotliCompressSync(tar, { params }));
}

/** A tar of what is in a directory, in an order of names. */
function packDirectory(directory: string): Pack {
  const archive = pack();
  const entries = readdirSync(directory, { recursive: true, withFileTypes: true });
  const named = entries.map((entry) => ({ entry, path: join(entry.parentPath, entry.name) }));
  for (const { entry, path } of named.sort((a, b) => (a.path < b.path ? -1 : 1))) {
    const name = relative(directory, path);
    const made = { uid: 0, gid: 0, mtime: new Date(0) };
    if (entry.isDirectory()) archive.entry({ ...made, name: `${name}/`, type: "directory", mode: 0o700 });
    else archive.entry({ ...made, name, mode: 0o600 }, readFileSync(path));
  }
  archive.finalize();
  return archive;
}
