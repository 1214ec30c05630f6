/** @file Opens PGlite, PostgreSQL in this process, over a directory or in memory; postgres.ts opens one that runs elsewhere. */
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import { PGlite } from "@electric-sql/pglite";
import type { Logger } from "drizzle-orm";
import type { PgDatabase, PgQueryResultHKT } from "drizzle-orm/pg-core";
import { drizzle } from "drizzle-orm/pglite";
import { InputError, reasonOf, writeDirectoryAtomic } from "../../base/index.ts";
import { DurableFiles, durableParams } from "./durable.ts";
import * as schema from "./schema.ts";

/** Any database of drizzle that speaks PostgreSQL. */
export type Database = PgDatabase<PgQueryResultHKT, typeof schema>;
/** What a transaction's body gets, or the database itself. */
export type Queries = Pick<Database, "select" | "insert" | "update" | "delete" | "execute">;

export interface OpenDatabase extends AsyncDisposable {
  readonly database: Database;
}

/**
 * A new cluster with milora's tables, tar under brotli: unpacking takes 30 ms, migrations a quarter of a second, PGlite's
 * initdb five seconds and 800 MB. Made by `writeTemplate` in testing.ts; tests say when PGlite or the schema ask for a
 * new one. An older schema would do, and be brought up to date.
 */
export const TEMPLATE = new URL("../../../assets/database/cluster.tar.br", import.meta.url); // same place from dist/
const TEMPLATE_VERSION = "18";

/** Where its files lie in a data directory. */
export const EMBEDDED = "database";

/** Memory for a database of megabytes: the defaults (128 MB of buffers) are for gigabytes. */
const SETTINGS = ["shared_buffers=8MB", "max_connections=4", "max_wal_size=64MB", "min_wal_size=8MB"];

/**
 * @param directory PostgreSQL's own files, or undefined: in memory
 * @param logger told every query
 */
export async function openDatabase(directory: string | undefined, logger?: Logger): Promise<OpenDatabase> {
  const settings = SETTINGS.flatMap((setting) => ["-c", setting]);
  if (directory !== undefined) await prepareCluster(directory);
  const client = await PGlite.create(
    directory === undefined
      ? {
          ...{ dataDir: "memory://", loadDataDir: new Blob([templateTar()]) },
          startParams: [...PGlite.defaultStartParams, ...settings],
        }
      : { fs: new DurableFiles(directory), startParams: [...durableParams(), ...settings] },
  );
  return {
    database: drizzle({ client, schema, ...(logger && { logger }) }) as unknown as Database,
    async [Symbol.asyncDispose]() {
      await client.close();
    },
  };
}

function templateTar(): Uint8Array<ArrayBuffer> {
  return new Uint8Array(brotliDecompressSync(readFileSync(TEMPLATE)));
}

/** Sees to it that `directory` holds a cluster that this PostgreSQL can open; a new one appears whole or not at all. */
async function prepareCluster(directory: string): Promise<void> {
  const versionFile = `${directory}/PG_VERSION`;
  if (!existsSync(directory)) {
    try {
      await writeDirectoryAtomic(directory, (draft) => unpack(templateTar(), draft));
      chmodSync(directory, 0o700);
    } catch (error) {
      throw new InputError("OUTPUT_UNWRITABLE", directory, `the database cannot be made (${reasonOf(error)})`, {
        cause: error,
      });
    }
  }
  const version = existsSync(versionFile) ? readFileSync(versionFile, "utf8").trim() : undefined;
  if (version === TEMPLATE_VERSION) return;
  const found = version === undefined ? "holds no database" : `was written by PostgreSQL ${version}`;
  throw new InputError("DATA_UNSUPPORTED", directory, `${found}, this milora has PostgreSQL ${TEMPLATE_VERSION}`);
}

const BLOCK = 512;

/** Unpacks a ustar archive of our own making: directories and plain files with short names. */
function unpack(tar: Uint8Array, directory: string): void {
  const text = (from: number, length: number) =>
    Buffer.from(tar.buffer, tar.byteOffset + from, length)
      .toString("latin1")
      .replace(/\0.*$/s, "");
  for (let at = 0; at + BLOCK <= tar.length && tar[at] !== 0; ) {
    const path = join(directory, `${text(at + 345, 155)}/${text(at, 100)}`);
    const size = Number.parseInt(text(at + 124, 12), 8) || 0;
    if (text(at + 156, 1) === "5") mkdirSync(path, { recursive: true, mode: 0o700 });
    else {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      writeFileSync(path, tar.subarray(at + BLOCK, at + BLOCK + size), { mode: 0o600 });
    }
    at += BLOCK * (1 + Math.ceil(size / BLOCK));
  }
}
