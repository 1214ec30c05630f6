/** @file Quotas: admits a request by an estimate, settles it by what it took. Exact, here or among the servers of a database; days survive a restart. */
import { and, eq, gte, lt, sql } from "drizzle-orm";
import { ServingError } from "../errors.ts";
import { Bucket } from "./bucket.ts";
import type { Database, Queries } from "./database.ts";
import { quotaBuckets, quotaWindows } from "./schema.ts";
import { Shares, type Standing } from "./shares.ts";
import type { LimitName, Principal, TenantLimits } from "./types.ts";
import { aliveAmong, checkCount, inOrder } from "./usage.ts";

const DAY = 86_400_000;
/** Days that are over are kept this long. */
const KEPT_DAYS = 7;
/** When a running request ends is not known; a second is soon and no storm. */
const CONCURRENCY_RETRY_SECONDS = 1;

export interface Refusal {
  readonly ok: false;
  /** The limit that takes longest to have room again. */
  readonly which: LimitName;
  readonly limit: number;
  readonly retryAfterSeconds: number;
}

export interface QuotaState {
  /** Requests under way, … */
  readonly running: number;
  /** … and the tokens that they may take at most. */
  readonly reserved: number;
  /** Tokens of requests that ended since midnight UTC. */
  readonly tokensToday: number;
}

/** A request's place; it must be settled or disposed. */
export interface Admission extends Disposable {
  /**
   * Puts what was taken in place of the estimate, and ends the request. Only the first call counts.
   *
   * @param tokens of prompt and completion together
   */
  settle(tokens: number): void;
  /** As `settle(0)`: nothing was taken. */
  [Symbol.dispose](): void;
}

interface State {
  readonly requests: Bucket;
  readonly tokens: Bucket;
  running: number;
  /** Start of the day that the counts are of. */
  day: number;
  /** Tokens of this day by settled requests of this process, and what the database has said. */
  used: number;
  /** Part of `used` that is not in the database, … */
  pending: number;
  /** … and that is on its way there. */
  writing: number;
  /** Estimates of running requests. */
  reserved: number;
}

/** Tokens to be added to a tenant's day. */
export interface DayCount {
  readonly tenant: string;
  readonly day: number;
  readonly tokens: number;
}

export class Quotas {
  readonly #now: () => number;
  readonly #states = new Map<string, State>();
  /** Of days that ended before they were written. */
  #ended: DayCount[] = [];
  #shares: Shares | undefined;

  constructor(now: () => number) {
    this.#now = now;
  }

  /** From now on limits hold for all servers of the database together. @param now as of `Shares` */
  share(database: Database, server: string, now?: () => number): void {
    this.#shares = new Shares(database, server, (tenant) => this.#standing(tenant), now);
  }

  /** Says again what is under way here. It happens each second by itself. */
  renew(): void {
    this.#shares?.renew();
  }

  /** Resolves when other servers could know of all that has ended here. */
  async told(): Promise<void> {
    await this.#shares?.sent();
  }

  /** No more requests come: other servers may have what this one had. */
  async close(): Promise<void> {
    await this.#shares?.close();
  }

  /** Reads what was used up of the current day, and forgets old days. */
  async load(database: Database): Promise<void> {
    const today = dayOf(this.#now());
    await database.delete(quotaWindows).where(lt(quotaWindows.startsAt, new Date(today - KEPT_DAYS * DAY)));
    await database.delete(quotaBuckets).where(lt(quotaBuckets.at, new Date(today - DAY)));
    const current = and(eq(quotaWindows.window, "day"), gte(quotaWindows.startsAt, new Date(today)));
    for (const { tenant, startsAt, tokens } of await database.select().from(quotaWindows).where(current)) {
      if (startsAt.getTime() === today) this.#state(tenant).used = tokens;
    }
  }

  /**
   * Whether a request may run now. When it may, its estimate is taken from the quotas at once.
   *
   * Requests and tokens of a minute are token buckets: a minute's allowance may come at once and then fills evenly.
   * A day is a calendar day in UTC. An estimate larger than a whole quota is admitted when all of the quota is
   * there, and what it takes beyond is owed.
   *
   * @param estimate tokens of the prompt and the most that may be generated
   */
  admit(
    principal: Pick<Principal, "tenant" | "limits">,
    estimate: number,
  ): { readonly ok: true; readonly admission: Admission } | Refusal {
    checkCount(estimate);
    const { tenant, limits } = principal;
    const state = this.#state(tenant);
    const now = this.#now();
    this.#turnDay(tenant, state, now);
    const refusals: Refusal[] = [];
    const refuse = (which: LimitName, limit: number, retryAfterSeconds: number) =>
      refusals.push({ ok: false, which, limit, retryAfterSeconds });
    const { requestsPerMinute, tokensPerMinute, tokensPerDay, maxConcurrent } = limits;
    if (maxConcurrent !== undefined && state.running >= maxConcurrent) {
      refuse("maxConcurrent", maxConcurrent, CONCURRENCY_RETRY_SECONDS);
    }
    if (requestsPerMinute !== undefined) {
      const wait = state.requests.wait(1, requestsPerMinute, now);
      if (wait > 0) refuse("requestsPerMinute", requestsPerMinute, wait);
    }
    if (tokensPerMinute !== undefined) {
      const wait = state.tokens.wait(estimate, tokensPerMinute, now);
      if (wait > 0) refuse("tokensPerMinute", tokensPerMinute, wait);
    }
    if (tokensPerDay !== undefined && state.used + state.reserved + Math.min(estimate, tokensPerDay) > tokensPerDay) {
      refuse("tokensPerDay", tokensPerDay, Math.max(1, Math.ceil((state.day + DAY - now) / 1000)));
    }
    if (refusals.length > 0) return refusals.reduce((a, b) => (b.retryAfterSeconds > a.retryAfterSeconds ? b : a));
    if (requestsPerMinute !== undefined) state.requests.take(1, requestsPerMinute, now);
    if (tokensPerMinute !== undefined) state.tokens.take(estimate, tokensPerMinute, now);
    state.running++;
    state.reserved += estimate;
    return { ok: true, admission: this.#admission(tenant, state, estimate, limits) };
  }

  /**
   * As `admit`, for all servers of the database together where there are several.
   *
   * @throws ServingError QUOTA_EXCEEDED; DatabaseUnreachable
   */
  async enter(principal: Pick<Principal, "tenant" | "limits">, estimate: number): Promise<Admission> {
    const { tenant, limits } = principal;
    if (!this.#shares || !isCounted(limits)) {
      const answer = this.admit(principal, estimate);
      if (answer.ok) return answer.admission;
      throw exceeded(answer.which, answer.limit, answer.retryAfterSeconds);
    }
    checkCount(estimate);
    const state = this.#state(tenant);
    const refusal = await this.#shares.ask(principal, estimate, () => {
      this.#turnDay(tenant, state, this.#now());
      state.running++;
      state.reserved += estimate;
    });
    if (!refusal) return this.#admission(tenant, state, estimate, limits, this.#shares);
    const [which, seconds] = refusal;
    throw exceeded(which, limits[which]!, seconds);
  }

  /** Where a tenant stands, at this server. */
  state(tenant: string): QuotaState {
    const state = this.#states.get(tenant);
    if (!state) return { running: 0, reserved: 0, tokensToday: 0 };
    this.#turnDay(tenant, state, this.#now());
    return { running: state.running, reserved: state.reserved, tokensToday: state.used };
  }

  /** Where a tenant stands, at all servers. */
  async stateOfAll(tenant: string, database: Database): Promise<QuotaState> {
    const own = this.state(tenant);
    if (!this.#shares) return own;
    const today = new Date(dayOf(this.#now()));
    const [others, [day]] = await Promise.all([
      this.#shares.others(tenant),
      database
        .select({ tokens: quotaWindows.tokens })
        .from(quotaWindows)
        .where(and(eq(quotaWindows.tenant, tenant), eq(quotaWindows.window, "day"), eq(quotaWindows.startsAt, today))),
    ]);
    const { pending = 0 } = this.#states.get(tenant) ?? {};
    return {
      running: own.running + others.running,
      reserved: own.reserved + others.reserved,
      tokensToday: (day?.tokens ?? 0) + pending,
    };
  }

  #standing(tenant: string): Standing {
    const { running, reserved, pending, writing } = this.#state(tenant);
    return { running, reserved: reserved + pending + writing };
  }

  #admission(tenant: string, state: State, estimate: number, limits: TenantLimits, shares?: Shares): Admission {
    let settled = false;
    const settle = (tokens: number) => {
      checkCount(tokens);
      if (settled) return;
      settled = true;
      const now = this.#now();
      this.#turnDay(tenant, state, now);
      state.running--;
      state.reserved -= estimate;
      state.used += tokens;
      state.pending += tokens;
      const { tokensPerMinute } = limits;
      if (shares) shares.ended(tenant, limits, estimate - tokens);
      else if (tokensPerMinute !== undefined) state.tokens.take(tokens - estimate, tokensPerMinute, now);
    };
    return { settle, [Symbol.dispose]: () => settle(0) };
  }

  #state(tenant: string): State {
    let state = this.#states.get(tenant);
    if (!state) {
      const day = dayOf(this.#now());
      const counts = { running: 0, used: 0, pending: 0, writing: 0, reserved: 0 };
      state = { requests: new Bucket(), tokens: new Bucket(), day, ...counts };
      this.#states.set(tenant, state);
    }
    return state;
  }

  /**
   * A clock that is set back does not bring a day back that is over; by more than a week, and it was wrong before: nobody is
   * to wait for a day that is far away.
   */
  #turnDay(tenant: string, state: State, now: number): void {
    const day = dayOf(now);
    if (day <= state.day && state.day - day <= KEPT_DAYS * DAY) return;
    if (state.pending > 0) this.#ended.push({ tenant, day: state.day, tokens: state.pending });
    Object.assign(state, { day, used: 0, pending: 0, writing: 0 });
  }

  /** What was used since the last call. */
  take(): readonly DayCount[] {
    const counts = this.#ended;
    this.#ended = [];
    for (const [tenant, state] of this.#states) {
      if (state.pending === 0) continue;
      counts.push({ tenant, day: state.day, tokens: state.pending });
      state.writing += state.pending;
      state.pending = 0;
    }
    return counts;
  }

  /** Takes over what the database says of days after a write: other servers may have added to them. */
  learn(totals: readonly DayCount[]): void {
    for (const state of this.#states.values()) state.writing = 0;
    for (const { tenant, day, tokens } of totals) {
      const state = this.#states.get(tenant);
      if (state?.day === day) state.used = tokens + state.pending;
    }
  }
}

const UNITS: Record<LimitName, string> = {
  requestsPerMinute: "requests a minute",
  tokensPerMinute: "tokens a minute",
  tokensPerDay: "tokens a day",
  maxConcurrent: "requests at a time",
  maxStoredBytes: "bytes of adapters",
  maxAdapters: "adapters",
};

/** Whether requests of a tenant are limited at all. */
function isCounted({ requestsPerMinute, tokensPerMinute, tokensPerDay, maxConcurrent }: TenantLimits): boolean {
  return [requestsPerMinute, tokensPerMinute, tokensPerDay, maxConcurrent].some((limit) => limit !== undefined);
}

function exceeded(which: LimitName, limit: number, retryAfterSeconds: number): ServingError {
  const message = `the quota of ${limit} ${UNITS[which]} is used up; try again in ${retryAfterSeconds} s`;
  return new ServingError("QUOTA_EXCEEDED", 429, message, { retryAfterSeconds });
}

function dayOf(now: number): number {
  return Math.floor(now / DAY) * DAY;
}

/** Adds to the days there are. @returns the sums */
export async function writeDays(tx: Queries, counts: readonly DayCount[]): Promise<DayCount[]> {
  const alive = await aliveAmong(tx, new Set(counts.map(({ tenant }) => tenant)));
  const rows = counts
    .filter(({ tenant }) => alive.has(tenant))
    .map(({ tenant, day, tokens }) => ({ tenant, window: "day" as const, startsAt: new Date(day), tokens }));
  const totals: DayCount[] = [];
  for (const some of inOrder(rows, ({ tenant, startsAt }) => [tenant, startsAt])) {
    const written = await tx
      .insert(quotaWindows)
      .values(some)
      .onConflictDoUpdate({
        target: [quotaWindows.tenant, quotaWindows.window, quotaWindows.startsAt],
        set: { tokens: sql`${quotaWindows.tokens} + excluded.tokens` },
      })
      .returning();
    totals.push(...written.map(({ tenant, startsAt, tokens }) => ({ tenant, day: startsAt.getTime(), tokens })));
  }
  return totals;
}
