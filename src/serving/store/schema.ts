/** @file Tables of the database, as drizzle sees them. The SQL that makes them is in migrations/; a test holds both to each other. */
import {
  bigint,
  boolean,
  doublePrecision,
  foreignKey,
  index,
  integer,
  jsonb,
  pgTable,
  primaryKey,
  text,
  timestamp,
  unique,
} from "drizzle-orm/pg-core";
import type { TenantLimits } from "./types.ts";

const time = (name: string) => timestamp(name, { withTimezone: true, mode: "date" });
const count = (name: string) => bigint(name, { mode: "number" });

export const meta = pgTable("meta", {
  key: text("key").primaryKey(),
  value: text("value").notNull(),
});

export const tenants = pgTable("tenants", {
  id: text("id").primaryKey(),
  name: text("name").notNull(),
  weight: doublePrecision("weight").notNull(),
  limits: jsonb("limits").$type<TenantLimits>().notNull(),
  /** Made by milora itself, e.g. what admin keys belong to. */
  builtIn: boolean("built_in").notNull(),
  disabled: boolean("disabled").notNull(),
  createdAt: time("created_at").notNull(),
});

export const keys = pgTable(
  "keys",
  {
    id: text("id").primaryKey(),
    tenant: text("tenant").notNull(),
    /** SHA-256 of the secret in hexadecimal; the secret itself is nowhere. */
    hash: text("hash").notNull(),
    /** The secret's first characters, to tell keys apart. */
    prefix: text("prefix").notNull(),
    label: text("label").notNull(),
    role: text("role", { enum: ["admin", "tenant"] }).notNull(),
    createdAt: time("created_at").notNull(),
    expiresAt: time("expires_at"),
    revokedAt: time("revoked_at"),
    lastUsedAt: time("last_used_at"),
  },
  (table) => [
    unique("keys_hash").on(table.hash),
    index("keys_tenant").on(table.tenant),
    foreignKey({ name: "keys_tenant_fkey", columns: [table.tenant], foreignColumns: [tenants.id] }).onDelete("cascade"),
  ],
);

export const adapters = pgTable(
  "adapters",
  {
    id: text("id").primaryKey(),
    /** Null: shared, every tenant may use it. */
    owner: text("owner"),
    name: text("name").notNull(),
    digest: text("digest").notNull(),
    method: text("method").notNull(),
    rank: integer("rank"),
    bytes: count("bytes").notNull(),
    backbone: text("backbone"),
    pinned: boolean("pinned").notNull(),
    createdAt: time("created_at").notNull(),
  },
  (table) => [
    unique("adapters_owner_name").on(table.owner, table.name).nullsNotDistinct(),
    index("adapters_digest").on(table.digest),
    foreignKey({ name: "adapters_owner_fkey", columns: [table.owner], foreignColumns: [tenants.id] }),
  ],
);

export const grants = pgTable(
  "grants",
  {
    adapter: text("adapter").notNull(),
    tenant: text("tenant").notNull(),
    createdAt: time("created_at").notNull(),
  },
  (table) => [
    primaryKey({ name: "grants_pkey", columns: [table.adapter, table.tenant] }),
    index("grants_tenant").on(table.tenant),
    foreignKey({ name: "grants_adapter_fkey", columns: [table.adapter], foreignColumns: [adapters.id] }).onDelete(
      "cascade",
    ),
    foreignKey({ name: "grants_tenant_fkey", columns: [table.tenant], foreignColumns: [tenants.id] }).onDelete(
      "cascade",
    ),
  ],
);

/** What was used in each hour. Counters only ever grow, so that several servers can add to one row. */
export const usage = pgTable(
  "usage",
  {
    tenant: text("tenant").notNull(),
    key: text("key").notNull(),
    /** As the request named it; empty: the bare backbone. */
    adapter: text("adapter").notNull(),
    hour: time("hour").notNull(),
    requests: count("requests").notNull(),
    promptTokens: count("prompt_tokens").notNull(),
    completionTokens: count("completion_tokens").notNull(),
  },
  (table) => [
    primaryKey({ name: "usage_pkey", columns: [table.tenant, table.hour, table.adapter, table.key] }),
    index("usage_hour").on(table.hour),
    foreignKey({ name: "usage_tenant_fkey", columns: [table.tenant], foreignColumns: [tenants.id] }).onDelete(
      "cascade",
    ),
  ],
);

/** Number of the last batch of each process that writes usage: a batch sent twice is counted once. */
export const writers = pgTable("writers", {
  id: text("id").primaryKey(),
  batch: count("batch").notNull(),
  at: time("at").notNull(),
});

/** Tokens used up of quotas over long windows, which a restart must not forget. */
export const quotaWindows = pgTable(
  "quota_windows",
  {
    tenant: text("tenant").notNull(),
    window: text("window", { enum: ["day"] }).notNull(),
    startsAt: time("starts_at").notNull(),
    tokens: count("tokens").notNull(),
  },
  (table) => [
    primaryKey({ name: "quota_windows_pkey", columns: [table.tenant, table.window, table.startsAt] }),
    foreignKey({ name: "quota_windows_tenant_fkey", columns: [table.tenant], foreignColumns: [tenants.id] }).onDelete(
      "cascade",
    ),
  ],
);

/** Minutes' quotas that several servers share; null: full. */
export const quotaBuckets = pgTable("quota_buckets", {
  tenant: text("tenant").primaryKey(),
  requests: doublePrecision("requests"),
  tokens: doublePrecision("tokens"),
  at: time("at").notNull(),
});

/** What each of several servers has of a tenant under way. */
export const quotaLeases = pgTable(
  "quota_leases",
  {
    tenant: text("tenant").notNull(),
    server: text("server").notNull(),
    running: integer("running").notNull(),
    reserved: count("reserved").notNull(),
    expiresAt: time("expires_at").notNull(),
  },
  (table) => [primaryKey({ name: "quota_leases_pkey", columns: [table.tenant, table.server] })],
);
