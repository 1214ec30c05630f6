/** @file Moves a database to another place, embedded or PostgreSQL: all of it in one transaction, compared afterwards, or nothing. */
import { createHash } from "node:crypto";
import { existsSync, readdirSync, renameSync, rmdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { getTableName, sql } from "drizzle-orm";
import { InputError, MiloraError, writeDirectoryAtomic } from "../../base/index.ts";
import { Owned } from "../owned.ts";
import { boundTo, checkUnbound, unbindDirectory, writeBinding } from "./binding.ts";
import { type Database, EMBEDDED, openDatabase, type Queries } from "./database.ts";
import { lockDirectory } from "./lock.ts";
import { migrate, versionOf } from "./migrations/index.ts";
import * as schema from "./schema.ts";
import { databaseId } from "./store.ts";
import { DatabaseUnreachable, databaseName, unreachableAtStart } from "./url.ts";

/** A data directory with a database of its own, or a PostgreSQL. */
export type MovePlace = { readonly directory: string } | { readonly url: string };

export interface MoveReport {
  /** Rows by table. */
  readonly rows: Readonly<Record<string, number>>;
  /** Of all rows, read in both places: SHA-256. */
  readonly digest: string;
  /** Where the embedded database that was moved lies now. */
  readonly kept?: string;
  /** Adapters whose files are in the target directory no more than in a store; to be copied there. */
  readonly missing: readonly string[];
}

/** In an order in which rows may refer to those before them. */
export const TABLES: readonly string[] = [
  ...[schema.meta, schema.tenants, schema.keys, schema.adapters, schema.grants, schema.usage, schema.writers],
  ...[schema.quotaWindows, schema.quotaBuckets, schema.quotaLeases],
].map((table) => getTableName(table));

const ROWS = 1000;
const LOOKS = 5;
const LOOK_MS = 200;
/** What migrations make besides tables. */
const MADE = { meta: "key = 'schema_version'", tenants: "built_in" } as Readonly<Record<string, string>>;
const MOVED = `${EMBEDDED}.moved`;

/**
 * Copies every row, with the same schema on both sides, and takes the embedded database out of use that it came from. A
 * process that ends at any point leaves the target empty or whole, and the source as it was.
 *
 * @throws InputError FLAG_INVALID, FILE_UNREADABLE, DATA_NOT_EMPTY, DATA_UNSUPPORTED, DATA_TOO_NEW, DATA_MISMATCH,
 *   DATABASE_UNREACHABLE, DATABASE_URL_INVALID; MiloraError DATA_IN_USE, MOVE_INCOMPLETE
 */
export async function moveDatabase(from: MovePlace, to: MovePlace): Promise<MoveReport> {
  if ("directory" in from && "directory" in to && resolve(from.directory) === resolve(to.directory)) {
    throw new InputError("FLAG_INVALID", "--to", "is the same directory as --from");
  }
  using _lock = "directory" in from ? lockSource(from.directory) : undefined;
  await using owned = new Owned();
  const source = await openSource(from, owned);
  const { id, ...report } =
    "url" in to ? await intoPostgres(source, to.url) : await intoDirectory(source, to.directory, owned);
  await owned[Symbol.asyncDispose](); // the embedded database has to be closed before it gets another name
  return "directory" in from ? { ...report, kept: retire(from.directory, id) } : report;
}

type Copied = Pick<MoveReport, "rows" | "digest" | "missing"> & { readonly id: string };

function lockSource(directory: string): Disposable {
  if (!existsSync(join(directory, EMBEDDED))) {
    throw new InputError("FILE_UNREADABLE", directory, `holds no database, which would lie in ${EMBEDDED}/`);
  }
  return lockDirectory(directory);
}

async function openSource(from: MovePlace, owned: Owned): Promise<Database> {
  if ("url" in from) return openUnused(from.url, owned);
  const { directory } = from;
  checkUnbound(directory);
  const { database } = owned.add(await openDatabase(join(directory, EMBEDDED)));
  await migrate(database, directory);
  return database;
}

/** A PostgreSQL with milora's tables, which no milora is connected to. @param make tables where there are none */
async function openUnused(url: string, owned: Owned, make = false): Promise<Database> {
  const name = databaseName(url);
  const { openPostgres } = await import("./postgres.ts");
  try {
    const { database } = owned.add(await openPostgres(url, { patient: true }));
    if (!make && (await versionOf(database)) === 0) {
      throw new InputError("DATA_UNSUPPORTED", name, "holds no tables of milora");
    }
    await migrate(database, name);
    await checkUnused(database, name);
    return database;
  } catch (error) {
    throw error instanceof DatabaseUnreachable ? unreachableAtStart(url, error) : error;
  }
}

/** Connections of a server that has just ended may take a moment to go. */
async function checkUnused(database: Database, name: string): Promise<void> {
  for (let look = 1; ; look++) {
    const found = await database.execute(sql`
      SELECT count(*)::int AS others FROM pg_stat_activity
      WHERE datname = current_database() AND application_name = 'milora' AND pid <> pg_backend_pid()`);
    const { others } = (found as { rows: { others: number }[] }).rows[0]!;
    if (others === 0) return;
    const remedy = "stop the servers and commands that use it first";
    if (look === LOOKS) throw new MiloraError("DATA_IN_USE", `${name} is in use by milora (${others} connections); ${remedy}`); // biome-ignore format: one line
    await sleep(LOOK_MS);
  }
}

async function intoPostgres(source: Database, url: string): Promise<Copied> {
  await using owned = new Owned();
  const target = await openUnused(url, owned, true);
  return await copy(source, target, databaseName(url), undefined); // `owned` is disposed after it
}

/** It is filled beside its place, and gets its name when it is whole. */
async function intoDirectory(source: Database, directory: string, owned: Owned): Promise<Copied> {
  owned.add(lockDirectory(directory));
  const path = join(directory, EMBEDDED);
  if (existsSync(path)) throw notEmpty(directory, `has a database already, ${EMBEDDED}/`);
  const id = await source.transaction((tx) => databaseId(tx));
  // Files of adapters that are this database's come to belong to the directory's own one.
  if (boundTo(directory) !== id) checkUnbound(directory);
  let copied: Copied | undefined;
  await writeDirectoryAtomic(path, async (draft) => {
    rmdirSync(draft); // made, whole, by who opens it
    await using opened = await openDatabase(draft);
    await migrate(opened.database, directory);
    copied = await copy(source, opened.database, directory, directory);
  });
  unbindDirectory(directory);
  return copied!;
}

async function copy(source: Database, target: Database, name: string, files: string | undefined): Promise<Copied> {
  return source.transaction(async (from) => {
    await prepare(from);
    await from.execute(sql.raw(`LOCK TABLE ${TABLES.join(", ")} IN SHARE MODE`));
    const id = await databaseId(from);
    const missing = await missingFiles(from, files);
    return target.transaction(async (into) => {
      await prepare(into);
      await into.execute(sql.raw(`LOCK TABLE ${TABLES.join(", ")} IN ACCESS EXCLUSIVE MODE`));
      await checkEmpty(into, name);
      await into.execute(sql.raw(`TRUNCATE ${TABLES.join(", ")}`));
      const rows: Record<string, number> = {};
      const whole = createHash("sha256");
      for (const table of TABLES) {
        const read = await digestOf(from, table, async (batch) => {
          const json = `[${batch.join(",")}]`;
          const type = sql.identifier(table);
          await into.execute(
            sql`INSERT INTO ${type} SELECT * FROM json_populate_recordset(NULL::${type}, ${json}::text::json)`,
          );
        });
        const written = await digestOf(into, table);
        if (written.rows !== read.rows || written.digest !== read.digest) throw incomplete(table, read, written);
        rows[table] = read.rows;
        whole.update(`${table} ${read.rows} ${read.digest}\n`);
      }
      return { rows, digest: whole.digest("hex"), id, missing };
    });
  });
}

/** Both sides write values as text in the same way. */
async function prepare(tx: Queries): Promise<void> {
  await tx.execute(sql`SET LOCAL timezone = 'UTC'`);
  await tx.execute(sql`SET LOCAL extra_float_digits = 1`);
}

interface TableDigest {
  readonly rows: number;
  readonly digest: string;
}

/** Of a table's rows as JSON, in the order of their text. @param each is given them in parts */
async function digestOf(
  tx: Queries,
  table: string,
  each: (rows: readonly string[]) => Promise<void> = async () => {},
): Promise<TableDigest> {
  const hash = createHash("sha256");
  let rows = 0;
  const text = "row_to_json(t)::text";
  await tx.execute(
    sql.raw(`DECLARE moved CURSOR FOR SELECT ${text} AS row FROM ${table} t ORDER BY ${text} COLLATE "C"`),
  );
  for (;;) {
    const part = ((await tx.execute(sql.raw(`FETCH ${ROWS} FROM moved`))) as { rows: { row: string }[] }).rows;
    if (part.length === 0) break;
    for (const { row } of part) hash.update(`${row}\n`);
    rows += part.length;
    await each(part.map(({ row }) => row));
  }
  await tx.execute(sql.raw("CLOSE moved"));
  return { rows, digest: hash.digest("hex") };
}

async function checkEmpty(tx: Queries, name: string): Promise<void> {
  const found: string[] = [];
  for (const table of TABLES) {
    const made = MADE[table];
    const where = made === undefined ? "" : ` WHERE NOT (${made})`;
    const answer = await tx.execute(sql.raw(`SELECT count(*)::int AS n FROM ${table}${where}`));
    const { n } = (answer as { rows: { n: number }[] }).rows[0]!;
    if (n > 0) found.push(`${table}: ${n}`);
  }
  if (found.length > 0) throw notEmpty(name, `is not empty (rows in ${found.join(", ")}); name a new one`);
}

function notEmpty(where: string, problem: string): InputError {
  return new InputError("DATA_NOT_EMPTY", where, problem);
}

/** Names of adapters whose files a server on this directory would look for in vain. */
async function missingFiles(tx: Queries, directory: string | undefined): Promise<string[]> {
  if (directory === undefined) return [];
  const store = await tx.execute(sql`SELECT value FROM meta WHERE key = 'adapter_store' AND value <> ''`);
  if ((store as { rows: unknown[] }).rows.length > 0) return [];
  const files = join(directory, "adapters");
  const there = new Set(existsSync(files) ? readdirSync(files) : []);
  const rows = await tx
    .select({ owner: schema.adapters.owner, name: schema.adapters.name, digest: schema.adapters.digest })
    .from(schema.adapters);
  return rows
    .filter(({ digest }) => !there.has(digest))
    .map(({ owner, name }) => (owner === null ? name : `${owner}/${name}`));
}

/** The directory's adapters belong to the other database from now on; its own one is kept under another name. */
function retire(directory: string, id: string): string {
  let kept = join(directory, MOVED);
  for (let i = 2; existsSync(kept); i++) kept = join(directory, `${MOVED}.${i}`);
  writeBinding(directory, id);
  renameSync(join(directory, EMBEDDED), kept);
  return kept;
}

function incomplete(table: string, read: TableDigest, written: TableDigest): MiloraError {
  const problem = `${table}: ${read.rows} rows were read, ${written.rows} are there, with other contents`;
  return new MiloraError("MOVE_INCOMPLETE", `what was written is not what was read (${problem}); nothing was changed`, {
    exitCode: 1,
  });
}
