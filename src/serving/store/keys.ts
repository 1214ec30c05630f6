/** @file Keys: random secrets of 256 bits, shown once, kept as hashes; and who a secret stands for. */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { and, asc, eq, isNull, sql } from "drizzle-orm";
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import type { Database, Queries } from "./database.ts";
import { Recall } from "./recall.ts";
import { keys, tenants } from "./schema.ts";
import { tenantNotFound } from "./tenants.ts";
import type { Key, Principal } from "./types.ts";

const ADMIN = "admin";
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/** 43 digits of base 62 hold 256 bits. */
const SECRET = /^mk_[0-9A-Za-z]{43}$/;
const SHOWN = 9;
const REMEMBERED = 10_000;
/** A key's last use is written at most this often. */
const LAST_USE_MS = 60_000;

export const keyLabelSchema = z
  .string()
  .max(200)
  .regex(/^\P{Cc}*$/u, "must be on one line");

const newKeySchema = z.strictObject({
  label: keyLabelSchema.default(""),
  expiresAt: z.date().nullish(),
});

export type NewKey = z.input<typeof newKeySchema>;

export interface CreatedKey {
  readonly key: Key;
  /** Cannot be shown again. */
  readonly secret: string;
}

interface Known {
  readonly hash: Buffer;
  readonly expiresAt: number;
  readonly principal: Principal | undefined;
}

const UNKNOWN: Known = { hash: Buffer.alloc(32), expiresAt: 0, principal: undefined };

const columns = {
  id: keys.id,
  tenant: keys.tenant,
  prefix: keys.prefix,
  label: keys.label,
  role: keys.role,
  createdAt: keys.createdAt,
  expiresAt: keys.expiresAt,
  revokedAt: keys.revokedAt,
  lastUsedAt: keys.lastUsedAt,
};

export class Keys {
  readonly #database: Database;
  readonly #now: () => number;
  readonly #created: () => void;
  readonly #known = new Recall<Known>(REMEMBERED);
  /** Uses by key since they were last written, and when that was. */
  readonly #used = new Map<string, number>();
  readonly #written = new Map<string, number>();

  /** @param created called when there is a new key in the database */
  constructor(database: Database, now: () => number, created: () => void) {
    this.#database = database;
    this.#now = now;
    this.#created = created;
  }

  /** To be called when tenants have changed. */
  forget(): void {
    this.#known.forget();
  }

  /** Whether changes by others are heard of. */
  trust(on: boolean): void {
    this.#known.trust(on);
  }

  /** @throws InputError CONFIG_INVALID, TENANT_NOT_FOUND */
  async create(whose: { readonly tenant: string } | { readonly admin: true }, key: NewKey = {}): Promise<CreatedKey> {
    const { label, expiresAt = null } = parseWith(newKeySchema, key, "key");
    const now = this.#now();
    if (expiresAt && expiresAt.getTime() <= now)
      throw new InputError("CONFIG_INVALID", "key", "would have expired already");
    const isAdmin = "admin" in whose;
    const tenant = isAdmin ? ADMIN : whose.tenant;
    const secret = newSecret();
    const row = {
      id: `key_${randomBytes(8).toString("hex")}`,
      tenant,
      hash: hashOf(secret).toString("hex"),
      prefix: secret.slice(0, SHOWN),
      label,
      role: isAdmin ? ("admin" as const) : ("tenant" as const),
      createdAt: new Date(now),
      expiresAt,
    };
    const created = await this.#database.transaction(async (tx) => {
      const wanted = and(eq(tenants.id, tenant), eq(tenants.builtIn, isAdmin));
      const [found] = await tx.select({ id: tenants.id }).from(tenants).where(wanted).for("share");
      if (!found) throw tenantNotFound(tenant);
      const [inserted] = await tx.insert(keys).values(row).returning(columns);
      return inserted!;
    });
    this.#known.forget();
    this.#created();
    return { key: created, secret };
  }

  /** Also the revoked and expired. @param tenant only its keys; "admin": those of administrators */
  async list(tenant?: string): Promise<Key[]> {
    const rows = this.#database.select(columns).from(keys);
    return (tenant === undefined ? rows : rows.where(eq(keys.tenant, tenant))).orderBy(
      asc(keys.createdAt),
      asc(keys.id),
    );
  }

  /** From now on nobody gets in with it. Revoking again changes nothing. @throws InputError KEY_NOT_FOUND */
  async revoke(id: string): Promise<Key> {
    await this.#database
      .update(keys)
      .set({ revokedAt: new Date(this.#now()) })
      .where(and(eq(keys.id, id), isNull(keys.revokedAt)));
    this.#known.forget();
    const [row] = await this.#database.select(columns).from(keys).where(eq(keys.id, id));
    if (!row) {
      throw new InputError(
        "KEY_NOT_FOUND",
        `key ${id.slice(0, 64)}`,
        "is not there; `milora keys list` shows those there are",
      );
    }
    return row;
  }

  /** Who `secret` stands for; undefined when it is unknown, revoked or expired, or its tenant is disabled. */
  async authenticate(secret: string): Promise<Principal | undefined> {
    if (!SECRET.test(secret)) return undefined;
    const hash = hashOf(secret);
    const hex = hash.toString("hex");
    const known = await this.#known.get(hex, () => this.#lookUp(hex));
    const now = this.#now();
    if (!timingSafeEqual(known.hash, hash) || known.expiresAt <= now || !known.principal) return undefined;
    this.#used.set(known.principal.keyId, now);
    return known.principal;
  }

  async #lookUp(hex: string): Promise<Known> {
    const [row] = await this.#database
      .select({ key: keys, weight: tenants.weight, limits: tenants.limits, disabled: tenants.disabled })
      .from(keys)
      .innerJoin(tenants, eq(tenants.id, keys.tenant))
      .where(eq(keys.hash, hex));
    if (!row || row.key.revokedAt || row.disabled) return UNKNOWN;
    const { id, tenant, role, expiresAt } = row.key;
    return {
      hash: Buffer.from(row.key.hash, "hex"),
      expiresAt: expiresAt?.getTime() ?? Number.POSITIVE_INFINITY,
      principal: { tenant, keyId: id, role, weight: row.weight, limits: row.limits },
    };
  }

  /** Last uses that are due to be written. @param all also those written a moment ago */
  takeUses(all: boolean): ReadonlyMap<string, number> {
    const due = new Map<string, number>();
    for (const [id, at] of this.#used) {
      if (!all && at - (this.#written.get(id) ?? Number.NEGATIVE_INFINITY) < LAST_USE_MS) continue;
      due.set(id, at);
      this.#written.set(id, at);
      this.#used.delete(id);
    }
    return due;
  }
}

export async function writeUses(tx: Queries, uses: ReadonlyMap<string, number>): Promise<void> {
  if (uses.size === 0) return;
  const rows = [...uses].sort(([a], [b]) => (a < b ? -1 : 1)).map(([id, at]) => [id, new Date(at).toISOString()]);
  // Rows are locked in one order by all servers; an older use does not replace a newer one of another server.
  await tx.execute(sql`UPDATE keys SET last_used_at = used.at FROM (SELECT k.id, (u.value->>1)::timestamptz AS at
    FROM jsonb_array_elements(${JSON.stringify(rows)}::jsonb) AS u JOIN keys k ON k.id = u.value->>0 ORDER BY k.id FOR UPDATE OF k) AS used
    WHERE keys.id = used.id AND (keys.last_used_at IS NULL OR keys.last_used_at < used.at)`);
}

function hashOf(secret: string): Buffer {
  return createHash("sha256").update(secret).digest();
}

function newSecret(): string {
  let rest = BigInt(`0x${randomBytes(32).toString("hex")}`);
  let digits = "";
  for (let i = 0; i < 43; i++) {
    digits += DIGITS[Number(rest % 62n)];
    rest /= 62n;
  }
  return `mk_${digits}`;
}
