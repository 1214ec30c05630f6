/** @file Names of adapters and who may use them. The files are the registry's; every question here is a tenant's. */
import { randomBytes } from "node:crypto";
import {
  and,
  asc,
  count,
  eq,
  exists,
  getTableColumns,
  gt,
  ilike,
  inArray,
  isNotNull,
  isNull,
  or,
  sql,
  sum,
} from "drizzle-orm";
import { InputError } from "../../base/index.ts";
import type { AdapterRecord, AdapterTable, NewAdapter } from "../adapters/index.ts";
import type { Database, Queries } from "./database.ts";
import { Recall } from "./recall.ts";
import { adapters, grants, tenants } from "./schema.ts";
import { tenantNotFound } from "./tenants.ts";
import type { Grant } from "./types.ts";

const REMEMBERED = 20_000;
/** Of the advisory lock. */
const FILES_LOCK = 7_164_673;
const { id: _id, ...columns } = getTableColumns(adapters);

const ownedBy = (owner: string | null) => (owner === null ? isNull(adapters.owner) : eq(adapters.owner, owner));
const named = (owner: string | null, name: string) => and(ownedBy(owner), eq(adapters.name, name));
/** In the order of lists: shared ones first. */
const order = [sql`${adapters.owner} NULLS FIRST`, asc(adapters.name)] as const;

/** Some of the rows: what is not said does not matter. */
export interface AdapterQuery {
  /** What this tenant may use. */
  readonly usableBy?: string | undefined;
  /** Its own; null: everybody's. */
  readonly owner?: string | null | undefined;
  readonly name?: string | undefined;
  /** In `owner/name`, or the whole name of the method. */
  readonly text?: string | undefined;
  readonly digests?: readonly string[] | undefined;
  /** Only those that come after this one in lists. */
  readonly after?: Pick<AdapterRecord, "owner" | "name"> | undefined;
  readonly limit?: number | undefined;
}

export interface AdapterPage {
  readonly rows: readonly AdapterRecord[];
  /** Without `after` and `limit`. */
  readonly total: number;
  /** Whether others come after these. */
  readonly more: boolean;
}

/** What comes later in that order. */
const isAfter = ({ owner, name }: Pick<AdapterRecord, "owner" | "name">) =>
  owner === null
    ? or(isNotNull(adapters.owner), gt(adapters.name, name))
    : or(gt(adapters.owner, owner), and(eq(adapters.owner, owner), gt(adapters.name, name)));

/** Rows of adapters. */
export class Adapters implements AdapterTable {
  readonly #database: Database;
  readonly #now: () => number;
  readonly #shared: boolean;
  readonly #found = new Recall<{ readonly row: AdapterRecord | undefined }>(REMEMBERED);

  /** @param shared by several servers */
  constructor(database: Database, now: () => number, shared = false) {
    this.#database = database;
    this.#now = now;
    this.#shared = shared;
  }

  /** To be called when grants or tenants have changed. */
  forget(): void {
    this.#found.forget();
  }

  /** Whether changes by others are heard of. */
  trust(on: boolean): void {
    this.#found.trust(on);
  }

  /**
   * The right to make files visible, or to remove them, among all servers of the database: of two, one might remove
   * what the other is about to name. A database of one's own needs none.
   */
  async guard(): Promise<AsyncDisposable | undefined> {
    if (!this.#shared) return undefined;
    let free = (): void => {};
    let take = (): void => {};
    const freed = new Promise<void>((resolve) => {
      free = resolve;
    });
    const taken = new Promise<void>((resolve) => {
      take = resolve;
    });
    const held = this.#database.transaction(async (tx) => {
      await tx.execute(sql`SELECT pg_advisory_xact_lock(${FILES_LOCK})`);
      take();
      await freed;
    });
    const ended = held.catch(() => {}); // a connection that is lost meanwhile has given it free
    await Promise.race([taken, held]);
    return {
      async [Symbol.asyncDispose]() {
        free();
        await ended;
      },
    };
  }

  /**
   * Inserts, or replaces the one of this owner and name; grants and pin stay.
   *
   * @returns the row that was replaced
   * @throws InputError TENANT_NOT_FOUND, STORAGE_EXCEEDED
   */
  async put(adapter: NewAdapter): Promise<AdapterRecord | undefined> {
    const { owner, name, backbone = null, ...facts } = adapter;
    const replaced = await this.#database.transaction(async (tx) => {
      if (owner !== null) await checkRoom(tx, owner, adapter);
      const createdAt = new Date(this.#now());
      const lock = () => tx.select().from(adapters).where(named(owner, name)).for("update");
      let [old] = await lock();
      if (!old) {
        const id = randomBytes(12).toString("hex");
        const row = { id, owner, name, ...facts, backbone, createdAt, pinned: false };
        const made = await tx.insert(adapters).values(row).onConflictDoNothing().returning({ id: adapters.id });
        if (made.length === 0) [old] = await lock(); // another server was quicker
      }
      if (old) await tx.update(adapters).set({ ...facts, backbone, createdAt }).where(eq(adapters.id, old.id)); // biome-ignore format: one line
      return old && withoutId(old);
    });
    this.#found.forget();
    return replaced;
  }

  /** The one of exactly this owner; null: shared. */
  async get(owner: string | null, name: string): Promise<AdapterRecord | undefined> {
    const [row] = await this.#database.select(columns).from(adapters).where(named(owner, name));
    return row;
  }

  /**
   * What `tenant` may use by this name: without `owner` its own, else the shared one; with `owner` its own or one
   * that was granted to it. The question is the same to the database whether somebody else has such an adapter or not.
   */
  async find(tenant: string, name: string, owner?: string): Promise<AdapterRecord | undefined> {
    const { row } = await this.#found.get(JSON.stringify([tenant, name, owner]), async () => {
      const among = owner === undefined ? or(eq(adapters.owner, tenant), isNull(adapters.owner)) : and(eq(adapters.owner, owner), or(eq(adapters.owner, tenant), this.#grantedTo(tenant))); // biome-ignore format: one line
      const [row] = await this.#database
        .select(columns)
        .from(adapters)
        .where(and(eq(adapters.name, name), among))
        .orderBy(sql`${adapters.owner} NULLS LAST`)
        .limit(1);
      return { row };
    });
    return row;
  }

  /** All that `tenant` may use: shared, its own, granted. */
  async list(tenant: string): Promise<AdapterRecord[]> {
    return this.#database
      .select(columns)
      .from(adapters)
      .where(this.#usableBy(tenant))
      .orderBy(...order);
  }

  /** Of all tenants. */
  async all(): Promise<AdapterRecord[]> {
    return this.#database
      .select(columns)
      .from(adapters)
      .orderBy(...order);
  }

  /** In the order of lists. */
  async page({ usableBy, owner, name, text, digests, after, limit }: AdapterQuery): Promise<AdapterPage> {
    const pattern = text === undefined || text === "" ? undefined : `%${text.replace(/[\\%_]/g, "\\$&")}%`;
    const wanted = and(
      usableBy === undefined ? undefined : this.#usableBy(usableBy),
      owner === undefined ? undefined : ownedBy(owner),
      name === undefined ? undefined : eq(adapters.name, name),
      pattern === undefined
        ? undefined
        : or(
            ilike(sql`coalesce(${adapters.owner} || '/', '') || ${adapters.name}`, pattern),
            eq(adapters.method, text!),
          ),
      digests === undefined ? undefined : inArray(adapters.digest, [...digests]),
    );
    const [counted] = await this.#database.select({ n: count() }).from(adapters).where(wanted);
    const select = this.#database
      .select(columns)
      .from(adapters)
      .where(and(wanted, after && isAfter(after)))
      .orderBy(...order);
    const rows = await (limit === undefined ? select : select.limit(limit + 1));
    const more = limit !== undefined && rows.length > limit;
    return { rows: more ? rows.slice(0, limit) : rows, total: counted!.n, more };
  }

  async pinned(): Promise<AdapterRecord[]> {
    return this.#database
      .select(columns)
      .from(adapters)
      .where(eq(adapters.pinned, true))
      .orderBy(...order);
  }

  /** Forgets the name, and grants of it. @returns what it was */
  async remove(owner: string | null, name: string): Promise<AdapterRecord | undefined> {
    const [row] = await this.#database.delete(adapters).where(named(owner, name)).returning(columns);
    this.#found.forget();
    return row;
  }

  async setPinned(owner: string | null, name: string, pinned: boolean): Promise<void> {
    await this.#database.update(adapters).set({ pinned }).where(named(owner, name));
    this.#found.forget();
  }

  /** Digests that some row refers to. */
  async digests(): Promise<ReadonlySet<string>> {
    const rows = await this.#database.selectDistinct({ digest: adapters.digest }).from(adapters);
    return new Set(rows.map(({ digest }) => digest));
  }

  #usableBy(tenant: string) {
    return or(isNull(adapters.owner), eq(adapters.owner, tenant), this.#grantedTo(tenant));
  }

  #grantedTo(tenant: string) {
    const given = and(eq(grants.adapter, adapters.id), eq(grants.tenant, tenant));
    return exists(this.#database.select({ one: sql`1` }).from(grants).where(given));
  }
}

/** The owner's row is locked until the end: of two at once, the second sees the first. */
async function checkRoom(tx: Queries, owner: string, { name, bytes }: NewAdapter): Promise<void> {
  const wanted = and(eq(tenants.id, owner), eq(tenants.builtIn, false));
  const [tenant] = await tx.select({ limits: tenants.limits }).from(tenants).where(wanted).for("no key update");
  if (!tenant) throw tenantNotFound(owner);
  const [others] = await tx
    .select({ n: count(), bytes: sum(adapters.bytes).mapWith(Number) })
    .from(adapters)
    .where(and(eq(adapters.owner, owner), sql`${adapters.name} <> ${name}`));
  const { maxAdapters, maxStoredBytes } = tenant.limits;
  const problems: string[] = [];
  if (maxAdapters !== undefined && others!.n + 1 > maxAdapters) {
    problems.push(`is one more than the ${maxAdapters} adapters that this tenant may store`);
  }
  const total = (others!.bytes ?? 0) + bytes;
  if (maxStoredBytes !== undefined && total > maxStoredBytes) {
    problems.push(`would make ${total} bytes of adapters, and this tenant may store ${maxStoredBytes}`);
  }
  if (problems.length > 0) throw new InputError("STORAGE_EXCEEDED", `adapter ${name}`, problems);
}

function withoutId({ id: _, ...row }: typeof adapters.$inferSelect): AdapterRecord {
  return row;
}

/** Adapters that their owners let other tenants use. */
export class Grants {
  readonly #database: Database;
  readonly #now: () => number;
  readonly #changed: () => void;

  /** @param changed called when a change is in the database */
  constructor(database: Database, now: () => number, changed: () => void) {
    this.#database = database;
    this.#now = now;
    this.#changed = changed;
  }

  /** Granting again changes nothing. @throws InputError ADAPTER_NOT_FOUND, TENANT_NOT_FOUND */
  async grant(owner: string, name: string, to: string): Promise<Grant> {
    const createdAt = new Date(this.#now());
    await this.#database.transaction(async (tx) => {
      const [adapter] = await tx.select({ id: adapters.id }).from(adapters).where(named(owner, name)).for("share");
      if (!adapter) throw adapterNotFound(owner, name);
      const wanted = and(eq(tenants.id, to), eq(tenants.builtIn, false));
      const [tenant] = await tx.select({ id: tenants.id }).from(tenants).where(wanted).for("share");
      if (!tenant) throw tenantNotFound(to);
      await tx.insert(grants).values({ adapter: adapter.id, tenant: to, createdAt }).onConflictDoNothing();
    });
    this.#changed();
    return { owner, name, tenant: to, createdAt };
  }

  /** @throws InputError GRANT_NOT_FOUND */
  async revoke(owner: string, name: string, to: string): Promise<void> {
    const adapter = this.#database.select({ id: adapters.id }).from(adapters).where(named(owner, name));
    const [gone] = await this.#database
      .delete(grants)
      .where(and(eq(grants.tenant, to), sql`${grants.adapter} IN ${adapter}`))
      .returning();
    this.#changed();
    if (!gone) throw new InputError("GRANT_NOT_FOUND", `${owner}/${name}`, `is not granted to ${to.slice(0, 64)}`);
  }

  /** @param owner only of its adapters */
  async list(owner?: string): Promise<Grant[]> {
    return this.#database
      .select({ owner: adapters.owner, name: adapters.name, tenant: grants.tenant, createdAt: grants.createdAt })
      .from(grants)
      .innerJoin(adapters, eq(adapters.id, grants.adapter))
      .where(owner === undefined ? undefined : eq(adapters.owner, owner))
      .orderBy(...order, asc(grants.tenant));
  }
}

function adapterNotFound(owner: string, name: string): InputError {
  const shown = JSON.stringify(`${owner.slice(0, 64)}/${name.slice(0, 128)}`);
  return new InputError("ADAPTER_NOT_FOUND", `adapter ${shown}`, "is not there");
}
