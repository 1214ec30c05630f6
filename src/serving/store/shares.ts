/** @file Quotas of several servers: one question to the database admits all requests that wait for it at the moment. */
import { sql } from "drizzle-orm";
import type { Database } from "./database.ts";
import { quotaLeases } from "./schema.ts";
import type { LimitName, Principal, TenantLimits } from "./types.ts";

/** What a server has under way is forgotten when it has not said so again for this long. */
export const LEASE_SECONDS = 10;
/** What ends later than this was said before the clock was set back; the next question puts that right. */
const AHEAD_SECONDS = LEASE_SECONDS + 60;
const RENEW_MS = 3000;
const TICK_MS = 1000;

/** What a server has of a tenant: requests under way, and tokens that the day's count in the database lacks. */
export interface Standing {
  readonly running: number;
  readonly reserved: number;
}

interface Ask {
  readonly estimate: number;
  /** Called before anything else is sent. */
  granted(): void;
  resolve(refusal: readonly [which: LimitName, seconds: number] | undefined): void;
  reject(error: unknown): void;
}

interface Entry {
  limits: TenantLimits;
  /** Tokens of a minute that were taken and not used. */
  back: number;
  readonly asks: Ask[];
}

export class Shares {
  readonly #database: Database;
  readonly #server: string;
  readonly #standing: (tenant: string) => Standing;
  readonly #now: (() => number) | undefined;
  #waiting = new Map<string, Entry>();
  #sending: Promise<void> | undefined;
  /** Tenants that were asked for, with what was said of them last. */
  readonly #told = new Map<string, { limits: TenantLimits; said: Standing | undefined; at: number }>();
  readonly #timer: NodeJS.Timeout;

  /** @param now for tests; the database's clock otherwise, which all servers have in common */
  constructor(database: Database, server: string, standing: (tenant: string) => Standing, now?: () => number) {
    this.#database = database;
    this.#server = server;
    this.#standing = standing;
    this.#now = now;
    this.#timer = setInterval(() => this.renew(), TICK_MS).unref();
  }

  /**
   * Asks for a place. @param granted called at once with the yes
   * @returns the limit that has no room, and for how many seconds
   * @throws DatabaseUnreachable
   */
  ask(
    { tenant, limits }: Pick<Principal, "tenant" | "limits">,
    estimate: number,
    granted: () => void,
  ): Promise<readonly [which: LimitName, seconds: number] | undefined> {
    return new Promise((resolve, reject) => {
      this.#entry(tenant, limits).asks.push({ estimate, granted, resolve, reject });
      this.#send();
    });
  }

  /** A request has ended. @param back tokens that it was granted and has not taken */
  ended(tenant: string, limits: TenantLimits, back: number): void {
    this.#entry(tenant, limits).back += back;
    this.#send();
  }

  #clock(): number {
    return (this.#now ?? Date.now)();
  }

  #entry(tenant: string, limits: TenantLimits): Entry {
    let entry = this.#waiting.get(tenant);
    if (!entry) {
      entry = { limits, back: 0, asks: [] };
      this.#waiting.set(tenant, entry);
    }
    entry.limits = limits;
    return entry;
  }

  /** One statement at a time: those that come meanwhile go with the next one. */
  #send(): void {
    this.#sending ??= this.#sendAll().finally(() => {
      this.#sending = undefined;
    });
  }

  async #sendAll(): Promise<void> {
    await Promise.resolve(); // requests of the same turn go together
    while (this.#waiting.size > 0) {
      const entries = this.#waiting;
      this.#waiting = new Map();
      try {
        const answers = await this.#exchange(entries);
        for (const [tenant, { asks }] of entries) {
          answered(asks, answers[tenant]!);
          this.#told.get(tenant)!.said = this.#standing(tenant); // with what was granted; what ended is said next
        }
      } catch (error) {
        // Whether it was heard is not known. Tokens to give back come back with time; what is under way is said again.
        for (const [tenant, { asks }] of entries) {
          const told = this.#told.get(tenant);
          if (told) told.said = undefined;
          for (const { reject } of asks) reject(error);
        }
      }
    }
  }

  async #exchange(entries: ReadonlyMap<string, Entry>): Promise<Answers> {
    const sent = [...entries].map(([tenant, { limits, back, asks }]) => {
      const said = this.#standing(tenant);
      this.#told.set(tenant, { limits, said, at: this.#clock() });
      return { tenant, limits, back, ...said, asks: asks.map(({ estimate }) => estimate) };
    });
    const at = this.#now ? new Date(this.#now()).toISOString() : null;
    const { rows } = (await this.#database.execute(
      sql`SELECT milora_quotas(${this.#server}, ${LEASE_SECONDS}, ${at}::timestamptz, ${JSON.stringify(sent)}::jsonb) AS answers`,
    )) as unknown as { rows: { answers: Answers }[] };
    return rows[0]!.answers;
  }

  /** Says again what is under way, and at once what is not as it was said. */
  renew(): void {
    for (const [tenant, { limits, said, at }] of this.#told) {
      const { running, reserved } = this.#standing(tenant);
      const same = said?.running === running && said.reserved === reserved;
      if (same && running === 0 && reserved === 0) this.#told.delete(tenant);
      else if (!same || Math.abs(this.#clock() - at) > RENEW_MS) this.ended(tenant, limits, 0);
    }
  }

  /** What other servers have of a tenant. */
  async others(tenant: string): Promise<Standing> {
    const at = this.#now ? sql`${new Date(this.#now()).toISOString()}::timestamptz` : sql`clock_timestamp()`;
    const { server, running, reserved, expiresAt } = quotaLeases;
    const [sums] = await this.#database
      .select({
        running: sql`coalesce(sum(${running}), 0)`.mapWith(Number),
        reserved: sql`coalesce(sum(${reserved}), 0)`.mapWith(Number),
      })
      .from(quotaLeases)
      .where(sql`${quotaLeases.tenant} = ${tenant} AND ${server} <> ${this.#server} AND ${expiresAt} > ${at} AND ${expiresAt} <= ${at} + make_interval(secs => ${AHEAD_SECONDS})`); // biome-ignore format: one line
    return sums!;
  }

  /** Resolves when the database has heard of all that has ended. */
  async sent(): Promise<void> {
    await this.#sending;
  }

  /** Gives back what this server has. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    await this.sent();
    await this.#database.delete(quotaLeases).where(sql`${quotaLeases.server} = ${this.#server}`);
  }
}

/** By tenant, for each ask. */
type Answers = Readonly<Record<string, readonly (readonly [LimitName, number] | null)[]>>;

function answered(asks: readonly Ask[], answers: Answers[string]): void {
  for (const [i, { granted, resolve }] of asks.entries()) {
    const refusal = answers[i] ?? undefined;
    if (!refusal) granted();
    resolve(refusal);
  }
}
