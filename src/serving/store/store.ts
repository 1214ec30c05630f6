/** @file The store as a whole: opens the database, and writes what was counted each second. */
import { randomBytes, randomUUID } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { and, eq, lt, sql } from "drizzle-orm";
import { InputError } from "../../base/index.ts";
import { Owned } from "../owned.ts";
import { Adapters, Grants } from "./adapters.ts";
import { bindDirectory, checkUnbound } from "./binding.ts";
import { Changes, type Told } from "./changes.ts";
import { type Database, EMBEDDED, openDatabase, type Queries } from "./database.ts";
import { Keys, writeUses } from "./keys.ts";
import { lockDirectory } from "./lock.ts";
import { migrate } from "./migrations/index.ts";
import { type DayCount, type QuotaState, Quotas, writeDays } from "./quotas.ts";
import { Recall } from "./recall.ts";
import { meta, writers } from "./schema.ts";
import { OPEN_TENANT, Tenants } from "./tenants.ts";
import type { Principal, Tenant } from "./types.ts";
import { DatabaseUnreachable, databaseName, unreachableAtStart } from "./url.ts";
import { Usage, type UsageCounts, writeUsage } from "./usage.ts";

const FLUSH_MS = 1000;
const LAST_FLUSH_MS = 10_000;
const ADAPTER_STORE = "adapter_store";
const FORGET_WRITERS_MS = 7 * 86_400_000;

export interface StoreOptions {
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** Told when counts could not be written; they are kept and tried again each second. */
  readonly onError?: (error: unknown) => void;
}

/** What is written in one transaction, once. */
interface Batch {
  readonly number: number;
  readonly usage: readonly UsageCounts[];
  readonly days: readonly DayCount[];
  readonly uses: ReadonlyMap<string, number>;
}

/**
 * Where a store is: in a data directory, which one process has at a time; in a PostgreSQL, which many share, with the
 * directory of their adapters; or in memory.
 */
export type StoreLocation =
  | { readonly directory: string }
  | { readonly url: string; readonly directory?: string }
  | { readonly memory: true };

/**
 * Opens a store, making it if it is new.
 *
 * @throws MiloraError DATA_IN_USE, InputError DATA_TOO_NEW, DATA_UNSUPPORTED, DATA_MISMATCH, OUTPUT_UNWRITABLE,
 *   DATABASE_UNREACHABLE, DATABASE_URL_INVALID
 */
export async function openStore(location: StoreLocation, options: StoreOptions = {}): Promise<Store> {
  await using owned = new Owned();
  const database = "url" in location ? await openShared(location.url, owned) : await openOwn(location, owned);
  const shared = "url" in location ? { url: location.url } : undefined;
  const store = new Store(database, options, owned.move(), shared);
  await store.load();
  if ("url" in location && location.directory !== undefined) {
    try {
      bindDirectory(location.directory, await store.id());
    } catch (error) {
      await store[Symbol.asyncDispose]();
      throw error;
    }
  }
  return store;
}

async function openOwn(location: Exclude<StoreLocation, { url: string }>, owned: Owned): Promise<Database> {
  const directory = "directory" in location ? location.directory : undefined;
  if (directory !== undefined) {
    owned.add(lockDirectory(directory));
    checkUnbound(directory);
  }
  const { database } = owned.add(await openDatabase(directory === undefined ? undefined : join(directory, EMBEDDED)));
  await migrate(database, directory ?? "the database");
  return database;
}

async function openShared(url: string, owned: Owned): Promise<Database> {
  const { openPostgres } = await import("./postgres.ts");
  try {
    {
      await using opened = await openPostgres(url, { patient: true }); // another server may be migrating
      await migrate(opened.database, databaseName(url));
    }
    return owned.add(await openPostgres(url)).database;
  } catch (error) {
    throw error instanceof DatabaseUnreachable ? unreachableAtStart(url, error) : error;
  }
}

/** Tenants, keys, adapters, grants, usage and quotas, on one database. */
export class Store implements AsyncDisposable {
  readonly tenants: Tenants;
  readonly keys: Keys;
  readonly adapters: Adapters;
  readonly grants: Grants;
  readonly usage: Usage;
  readonly quotas: Quotas;
  readonly #database: Database;
  readonly #now: () => number;
  readonly #onError: (error: unknown) => void;
  readonly #owned: AsyncDisposable;
  readonly #writer = randomUUID();
  #timer: NodeJS.Timeout | undefined;
  /** Flushes come one after the other. */
  #flushing: Promise<void> = Promise.resolve();
  /** Taken but not known to be written. */
  #batch: Batch | undefined;
  #batches = 0;
  #closed: Promise<void> | undefined;
  readonly #unclaimed = new Recall<boolean>(1);
  readonly #changes: Changes | undefined;
  readonly #watching = new Set<() => void>();

  /**
   * @param owned what goes with the store, the database last of all
   * @param shared the database's URL, where other servers have it too
   */
  constructor(
    database: Database,
    { now = Date.now, onError = () => {} }: StoreOptions,
    owned: AsyncDisposable,
    shared?: { readonly url: string },
  ) {
    this.tenants = new Tenants(database, now, () => this.#changed("tenants"));
    this.keys = new Keys(database, now, () => this.#changed("keys"));
    this.adapters = new Adapters(database, now, shared !== undefined);
    this.grants = new Grants(database, now, () => this.#changed("grants"));
    this.usage = new Usage(database, now, () => this.flush());
    this.quotas = new Quotas(now);
    this.#database = database;
    this.#now = now;
    this.#onError = onError;
    this.#owned = owned;
    if (shared) {
      this.quotas.share(database, this.#writer, now === Date.now ? undefined : now);
      this.#trust(false);
      this.#changes = new Changes(shared.url, {
        changed: (table) => this.#heard(table),
        listening: (on) => {
          this.#trust(on);
          if (on) this.#tell();
        },
      });
    }
  }

  /** Whether the database answered when it was last asked for changes. */
  get reachable(): boolean {
    return this.#changes?.listening ?? true;
  }

  /** Calls `listener` when another server may have changed adapters. @returns what ends that */
  watch(listener: () => void): Disposable {
    this.#watching.add(listener);
    return { [Symbol.dispose]: () => void this.#watching.delete(listener) };
  }

  #heard(table: Told): void {
    this.#changed(table);
    if (table === "adapters") this.#tell();
  }

  #tell(): void {
    for (const listener of this.#watching) listener();
  }

  /** Forgets what a change makes untrue. */
  #changed(table: Told): void {
    if (table === "tenants" || table === "keys") {
      this.#unclaimed.forget();
      this.keys.forget();
    }
    if (table !== "keys") this.adapters.forget();
  }

  /** While changes by others are not heard of, the database is asked each time. */
  #trust(on: boolean): void {
    for (const memory of [this.#unclaimed, this.keys, this.adapters]) memory.trust(on);
  }

  /** Reads what is kept in memory and begins to write each second. */
  async load(): Promise<void> {
    await this.#database.delete(writers).where(lt(writers.at, new Date(this.#now() - FORGET_WRITERS_MS)));
    await this.quotas.load(this.#database);
    this.#timer = setInterval(() => this.flush().catch(this.#onError), FLUSH_MS).unref();
  }

  /** Who `secret` stands for; undefined when it is unknown, revoked or expired, or its tenant is disabled. */
  authenticate(secret: string): Promise<Principal | undefined> {
    return this.keys.authenticate(secret);
  }

  /**
   * Whether nobody has ever set up tenants or keys, so that there is nobody to tell apart. It costs nothing to ask with
   * every request.
   */
  unclaimed(): Promise<boolean> {
    return this.#unclaimed.get("", () => this.tenants.unclaimed());
  }

  /** For requests without a key, where these are allowed: the tenant `default`, made if it is not there. */
  async openPrincipal(): Promise<Principal> {
    const { weight, limits } = (await this.tenants.find(OPEN_TENANT)) ?? (await this.#makeOpenTenant());
    return { tenant: OPEN_TENANT, keyId: "open", role: "tenant", weight, limits };
  }

  /** Another server may be as far. */
  async #makeOpenTenant(): Promise<Tenant> {
    try {
      return await this.tenants.create({ id: OPEN_TENANT });
    } catch (error) {
      if (!(error instanceof InputError && error.code === "TENANT_EXISTS")) throw error;
      return this.tenants.get(OPEN_TENANT);
    }
  }

  /** What tells this database from others; made when it is first asked for. */
  id(): Promise<string> {
    return databaseId(this.#database);
  }

  /** Where a tenant stands at all servers of the database. */
  quotaState(tenant: string): Promise<QuotaState> {
    return this.quotas.stateOfAll(tenant, this.#database);
  }

  /**
   * Notes where the files of the adapters are, for commands that are not told.
   * @param name of a store of objects; undefined: in a directory
   * @returns what was noted before, "" for a directory
   */
  async noteAdapterStore(name: string | undefined): Promise<string | undefined> {
    const before = await this.adapterStore();
    const value = name ?? "";
    if (before !== value) {
      const row = { key: ADAPTER_STORE, value };
      await this.#database.insert(meta).values(row).onConflictDoUpdate({ target: meta.key, set: { value } });
    }
    return before;
  }

  /** What `noteAdapterStore` noted last. */
  async adapterStore(): Promise<string | undefined> {
    const [row] = await this.#database.select().from(meta).where(eq(meta.key, ADAPTER_STORE));
    return row?.value;
  }

  /** 256 random bits, made when they are first asked for; all servers of the database have the same. */
  async secret(name: string): Promise<Buffer> {
    const made = randomBytes(32).toString("base64");
    return Buffer.from(await remembered(this.#database, `secret_${name}`, made), "base64");
  }

  /** Writes all that was counted until now. It happens each second by itself, and at the end. */
  flush(): Promise<void> {
    const flushed = this.#flushing.then(() => this.#flush(false));
    this.#flushing = flushed.catch(() => {});
    return flushed;
  }

  async #flush(last: boolean): Promise<void> {
    if (this.#batch) await this.#write(this.#batch); // a failed one first, as it was
    const batch: Batch = {
      number: this.#batches + 1,
      usage: this.usage.take(),
      days: this.quotas.take(),
      uses: this.keys.takeUses(last),
    };
    if (batch.usage.length + batch.days.length + batch.uses.size === 0) return;
    this.#batches++;
    this.#batch = batch;
    await this.#write(batch);
  }

  async #write(batch: Batch): Promise<void> {
    const totals = await writeBatch(this.#database, this.#writer, batch, this.#now());
    this.#batch = undefined;
    this.quotas.learn(totals);
  }

  /** A database that is away is waited for a little: what is not written now is lost. */
  async #lastFlush(): Promise<void> {
    const end = performance.now() + LAST_FLUSH_MS;
    for (;;) {
      try {
        return await this.#flush(true);
      } catch (error) {
        if (!(error instanceof DatabaseUnreachable) || performance.now() > end) throw error;
        await sleep(100);
      }
    }
  }

  /** Writes what was counted, closes the database and gives the directory free. */
  [Symbol.asyncDispose](): Promise<void> {
    this.#closed ??= this.#close();
    return this.#closed;
  }

  async #close(): Promise<void> {
    clearInterval(this.#timer);
    await this.#changes?.[Symbol.asyncDispose]();
    try {
      await this.#flushing;
      await this.#lastFlush();
      await this.quotas.close().catch(() => {}); // leases end by themselves
    } finally {
      await this.#owned[Symbol.asyncDispose]();
    }
  }
}

/** What tells a database from others, made when it is first asked for. */
export function databaseId(database: Queries): Promise<string> {
  return remembered(database, "database_id", randomUUID());
}

/** What a database has under `key`; at first `value`. */
async function remembered(database: Queries, key: string, value: string): Promise<string> {
  await database.insert(meta).values({ key, value }).onConflictDoNothing();
  const [row] = await database.select().from(meta).where(eq(meta.key, key));
  return row!.value;
}

/**
 * Writes a batch in one transaction with its number: when it was not heard whether the transaction was committed, it
 * can be sent again.
 *
 * @returns what the days come to, as far as the batch touches them
 */
export async function writeBatch(database: Database, writer: string, batch: Batch, now: number): Promise<DayCount[]> {
  const { number, usage, days, uses } = batch;
  return database.transaction(async (tx) => {
    const at = new Date(now);
    await tx.insert(writers).values({ id: writer, batch: 0, at }).onConflictDoNothing();
    const [first] = await tx
      .update(writers)
      .set({ batch: number, at })
      .where(and(eq(writers.id, writer), sql`${writers.batch} < ${number}`))
      .returning({ id: writers.id });
    if (!first) return [];
    await writeUsage(tx, usage);
    await writeUses(tx, uses);
    return writeDays(tx, days);
  });
}
