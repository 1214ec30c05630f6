/** @file Tenants: who may be served, with which weight and limits. */
import { and, asc, count, eq, ne, sql } from "drizzle-orm";
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import type { Database } from "./database.ts";
import { adapters, keys, quotaBuckets, quotaLeases, tenants } from "./schema.ts";
import { type LimitName, type Tenant, tenantLimitsSchema } from "./types.ts";

/** The tenant of requests without a key, where these are allowed. */
export const OPEN_TENANT = "default";

/** Names that mean something else where a tenant's may stand. */
const RESERVED = ["admin", "base", "open", "shared"];

const tenantIdSchema = z
  .string()
  .regex(
    /^[a-z0-9][a-z0-9._-]{0,62}$/,
    "must be 1 to 63 of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit",
  )
  .refine((id) => !RESERVED.includes(id), `must not be one of ${RESERVED.join(", ")}`);
const tenantNameSchema = z
  .string()
  .trim()
  .min(1)
  .max(200)
  .regex(/^\P{Cc}*$/u, "must be on one line");
const tenantWeightSchema = z.number().min(0.01).max(100);

export const newTenantSchema = z.strictObject({
  id: tenantIdSchema,
  name: tenantNameSchema.optional(),
  weight: tenantWeightSchema.default(1),
  limits: tenantLimitsSchema.default({}),
});
/** Null: the limit goes. */
const limitChangesSchema = z.strictObject(
  Object.fromEntries(Object.entries(tenantLimitsSchema.shape).map(([name, limit]) => [name, limit.nullable()])) as {
    [K in LimitName]: z.ZodNullable<(typeof tenantLimitsSchema.shape)[K]>;
  },
);
export const tenantChangesSchema = z.strictObject({
  name: tenantNameSchema.optional(),
  weight: tenantWeightSchema.optional(),
  limits: limitChangesSchema.optional(),
  disabled: z.boolean().optional(),
});

export type NewTenant = z.input<typeof newTenantSchema>;
/** Limits that are not named stay as they are. */
export type TenantChanges = z.input<typeof tenantChangesSchema>;

const columns = {
  id: tenants.id,
  name: tenants.name,
  weight: tenants.weight,
  limits: tenants.limits,
  disabled: tenants.disabled,
  createdAt: tenants.createdAt,
};
/** Built-in tenants are seen by nobody. */
const visible = eq(tenants.builtIn, false);

export class Tenants {
  readonly #database: Database;
  readonly #now: () => number;
  readonly #changed: () => void;

  /** @param changed called when a change is in the database */
  constructor(database: Database, now: () => number, changed: () => void) {
    this.#database = database;
    this.#now = now;
    this.#changed = changed;
  }

  /** @throws InputError CONFIG_INVALID, TENANT_EXISTS */
  async create(tenant: NewTenant): Promise<Tenant> {
    const { id, name = id, weight, limits } = parseWith(newTenantSchema, tenant, "tenant");
    const createdAt = new Date(this.#now());
    const [row] = await this.#database
      .insert(tenants)
      .values({ id, name, weight, limits: defined(limits), builtIn: false, disabled: false, createdAt })
      .onConflictDoNothing()
      .returning(columns);
    if (!row) throw new InputError("TENANT_EXISTS", `tenant ${id}`, "is there already");
    this.#changed();
    return row;
  }

  /** @throws InputError TENANT_NOT_FOUND */
  async get(id: string): Promise<Tenant> {
    const tenant = await this.find(id);
    if (!tenant) throw tenantNotFound(id);
    return tenant;
  }

  async find(id: string): Promise<Tenant | undefined> {
    const [row] = await this.#database
      .select(columns)
      .from(tenants)
      .where(and(eq(tenants.id, id), visible));
    return row;
  }

  async list(): Promise<Tenant[]> {
    return this.#database.select(columns).from(tenants).where(visible).orderBy(asc(tenants.id));
  }

  /** @throws InputError CONFIG_INVALID, TENANT_NOT_FOUND */
  async update(id: string, changes: TenantChanges): Promise<Tenant> {
    const { limits, ...others } = parseWith(tenantChangesSchema, changes, `tenant ${id}`);
    const merged = limits && sql`jsonb_strip_nulls(${tenants.limits} || ${JSON.stringify(defined(limits))}::jsonb)`;
    const set = { ...defined(others), ...(merged && { limits: merged }) };
    if (Object.keys(set).length === 0) return this.get(id);
    const [row] = await this.#database
      .update(tenants)
      .set(set)
      .where(and(eq(tenants.id, id), visible))
      .returning(columns);
    if (!row) throw tenantNotFound(id);
    this.#changed();
    return row;
  }

  /**
   * Removes a tenant with its keys, grants and usage.
   *
   * @throws InputError TENANT_NOT_FOUND, or TENANT_NOT_EMPTY while it has adapters
   */
  async remove(id: string): Promise<void> {
    await this.#database.transaction(async (tx) => {
      const [row] = await tx
        .select(columns)
        .from(tenants)
        .where(and(eq(tenants.id, id), visible))
        .for("update");
      if (!row) throw tenantNotFound(id);
      const owned = await tx.select({ name: adapters.name }).from(adapters).where(eq(adapters.owner, id)).limit(5);
      if (owned.length > 0) {
        const names = owned.map(({ name }) => name).join(", ");
        throw new InputError("TENANT_NOT_EMPTY", `tenant ${id}`, `has adapters (${names} …); remove them first`);
      }
      await tx.delete(tenants).where(eq(tenants.id, id));
      for (const table of [quotaBuckets, quotaLeases]) await tx.delete(table).where(eq(table.tenant, id));
    });
    this.#changed();
  }

  /** Whether nobody has ever set up tenants or keys. */
  async unclaimed(): Promise<boolean> {
    const [anyKey] = await this.#database.select({ n: count() }).from(keys);
    if (anyKey!.n > 0) return false;
    const others = and(visible, ne(tenants.id, OPEN_TENANT));
    const [anyTenant] = await this.#database.select({ n: count() }).from(tenants).where(others);
    return anyTenant!.n === 0;
  }
}

export function tenantNotFound(id: string): InputError {
  return new InputError(
    "TENANT_NOT_FOUND",
    `tenant ${id.slice(0, 64)}`,
    "is not there; `milora tenants list` shows those there are",
  );
}

type Defined<T> = { [K in keyof T]: Exclude<T[K], undefined> };

/** Without what is undefined, which JSON and SQL have no word for. */
function defined<T extends object>(value: T): Defined<T> {
  return Object.fromEntries(Object.entries(value).filter(([, part]) => part !== undefined)) as Defined<T>;
}
