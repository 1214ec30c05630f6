/** @file What was used: counted in memory by the hour, written in batches, reported in sums. */
import { and, asc, eq, gte, inArray, lt, type SQL, sql, sum } from "drizzle-orm";
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import type { Database, Queries } from "./database.ts";
import { tenants, usage } from "./schema.ts";
import { type Principal, USAGE_COLUMNS, type UsageColumn, type UsageQuery, type UsageRow } from "./types.ts";

const HOUR = 3_600_000;
/** Rows in one INSERT; PostgreSQL takes 65,535 parameters. */
const ROWS = 1000;

export interface Charge {
  /** As the request named it; empty: the bare backbone. */
  readonly adapter: string;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Default 1. */
  readonly requests?: number;
}

export type UsageCounts = typeof usage.$inferInsert;

const querySchema = z.strictObject({
  tenant: z.string().optional(),
  adapter: z.string().optional(),
  from: z.date().optional(),
  to: z.date().optional(),
  by: z.array(z.enum(USAGE_COLUMNS)).default(["tenant", "adapter"]),
});

export class Usage {
  readonly #database: Database;
  readonly #now: () => number;
  readonly #flush: () => Promise<void>;
  #counts = new Map<string, UsageCounts>();

  /** @param flush writes what is counted so far */
  constructor(database: Database, now: () => number, flush: () => Promise<void>) {
    this.#database = database;
    this.#now = now;
    this.#flush = flush;
  }

  /** Counts at once, in memory; in the database within a second. */
  charge(principal: Pick<Principal, "tenant" | "keyId">, charge: Charge): void {
    const { adapter, promptTokens, completionTokens, requests = 1 } = charge;
    for (const number of [promptTokens, completionTokens, requests]) checkCount(number);
    const hour = Math.floor(this.#now() / HOUR) * HOUR;
    const id = JSON.stringify([principal.tenant, principal.keyId, adapter, hour]);
    let counts = this.#counts.get(id);
    if (!counts) {
      const key = principal.keyId;
      counts = { tenant: principal.tenant, key, adapter, hour: new Date(hour), requests: 0, promptTokens: 0, completionTokens: 0 }; // biome-ignore format: one line
      this.#counts.set(id, counts);
    }
    counts.requests += requests;
    counts.promptTokens += promptTokens;
    counts.completionTokens += completionTokens;
  }

  /** What was counted since the last call. */
  take(): readonly UsageCounts[] {
    const counts = [...this.#counts.values()];
    if (counts.length > 0) this.#counts = new Map();
    return counts;
  }

  /**
   * Sums, with all that was charged until now.
   *
   * @throws InputError CONFIG_INVALID
   */
  async report(query: UsageQuery = {}): Promise<UsageRow[]> {
    const { tenant, adapter, from, to, by } = parseWith(querySchema, query, "usage");
    if (from && to && from >= to) throw new InputError("CONFIG_INVALID", "usage", "`from` must be before `to`");
    await this.#flush();
    const groups = Object.fromEntries([...new Set(by)].map((column) => [column, expressions[column]]));
    const counts = {
      requests: sum(usage.requests).mapWith(Number),
      promptTokens: sum(usage.promptTokens).mapWith(Number),
      completionTokens: sum(usage.completionTokens).mapWith(Number),
    };
    const rows = await this.#database
      .select({ ...groups, ...counts })
      .from(usage)
      .where(
        and(
          tenant === undefined ? undefined : eq(usage.tenant, tenant),
          adapter === undefined ? undefined : eq(usage.adapter, adapter),
          from && gte(usage.hour, from),
          to && lt(usage.hour, to),
        ),
      )
      .groupBy(...Object.values(groups))
      .orderBy(...Object.values(groups).map((column) => asc(column)));
    return rows.filter((row) => row.requests !== null) as unknown as UsageRow[]; // no group at all: one row of nulls
  }
}

const expressions: Record<UsageColumn, SQL<string>> = {
  tenant: sql<string>`${usage.tenant}`,
  key: sql<string>`${usage.key}`,
  adapter: sql<string>`${usage.adapter}`,
  day: sql<string>`to_char(${usage.hour} AT TIME ZONE 'UTC', 'YYYY-MM-DD')`,
  hour: sql<string>`to_char(${usage.hour} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI"Z"')`,
};

/** A count that is none would keep the database from taking all those that come with it. @throws RangeError */
export function checkCount(number: number): void {
  if (!Number.isSafeInteger(number) || number < 0) throw new RangeError(`${number} is no count`);
}

/** Adds to the rows there are. What belongs to tenants that are gone meanwhile is dropped. */
export async function writeUsage(tx: Queries, counts: readonly UsageCounts[]): Promise<void> {
  const alive = await aliveAmong(tx, new Set(counts.map(({ tenant }) => tenant)));
  const rows = counts.filter(({ tenant }) => alive.has(tenant));
  for (const some of inOrder(rows, ({ tenant, hour, adapter, key }) => [tenant, hour, adapter, key])) {
    await tx
      .insert(usage)
      .values(some)
      .onConflictDoUpdate({
        target: [usage.tenant, usage.hour, usage.adapter, usage.key],
        set: {
          requests: sql`${usage.requests} + excluded.requests`,
          promptTokens: sql`${usage.promptTokens} + excluded.prompt_tokens`,
          completionTokens: sql`${usage.completionTokens} + excluded.completion_tokens`,
        },
      });
  }
}

/** As many rows at a time as a statement takes, in an order that all servers have: they wait for each other's, and not both. */
export function inOrder<T>(rows: readonly T[], key: (row: T) => readonly unknown[]): T[][] {
  const sorted = rows.map((row) => [JSON.stringify(key(row)), row] as const).sort(([a], [b]) => (a < b ? -1 : 1));
  const parts: T[][] = [];
  for (let at = 0; at < sorted.length; at += ROWS) parts.push(sorted.slice(at, at + ROWS).map(([, row]) => row));
  return parts;
}

/** Which of these tenants exist, and do until the end of the transaction. */
export async function aliveAmong(tx: Queries, ids: ReadonlySet<string>): Promise<ReadonlySet<string>> {
  if (ids.size === 0) return ids;
  const rows = await tx
    .select({ id: tenants.id })
    .from(tenants)
    .where(inArray(tenants.id, [...ids]))
    .for("key share");
  return new Set(rows.map(({ id }) => id));
}
