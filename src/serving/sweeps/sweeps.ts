/** @file Sweeps on a database: what is asked for becomes jobs, each cell in one; what came of them is read here. */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import type PgBoss from "pg-boss";
import { type CellRecord, cellRecordSchema } from "../../evaluation/index.ts";
import { Owned } from "../owned.ts";
import { EMBEDDED } from "../store/database.ts";
import { lockDirectory } from "../store/lock.ts";
import { Attempts } from "./attempts.ts";
import { type CellPage, type CellQuery, cellsOf } from "./cells.ts";
import { type JobDatabase, openJobPglite, type Sql } from "./database.ts";
import {
  bossDb,
  deadQueueOf,
  insertJobs,
  makeQueues,
  openBoss,
  queueOf,
  type RetryPolicy,
  removeQueues,
} from "./jobs.ts";
import { overviewOf, type SweepOverview } from "./overview.ts";
import { paceOf, type SweepPace } from "./pace.ts";
import { BOSS } from "./schema.ts";
import { type JobData, jobDataSchema, type SweepSpec, sweepSpecSchema } from "./spec.ts";
import {
  type DeadJob,
  deadJobs,
  type SweepFacts,
  type SweepStatus,
  statusOf,
  type WorkerStatus,
  workersOf,
} from "./status.ts";

/** Cells that are to be done in one go. */
export interface NewPart {
  readonly label: string;
  readonly cells: readonly {
    readonly id: string;
    readonly kind: string;
    readonly label: string;
    /** The training that it is of. */
    readonly run?: string | undefined;
  }[];
}

/** A finished cell, and the machine on which it was. */
export interface Recorded {
  readonly record: CellRecord;
  readonly host: string;
}

/** Where sweeps are: in a PostgreSQL, which many share, or in a directory of PGlite, which one process has at a time. */
export type SweepLocation = { readonly url: string } | { readonly directory: string } | { readonly memory: true };

/**
 * Sweeps of a PostgreSQL, if any were ever made there: who only looks leaves a database as it is.
 * @throws as `openSweeps`
 */
export async function findSweeps(url: string): Promise<Sweeps | undefined> {
  const database = await openJobUrl(url);
  let there = false;
  try {
    const [found] = await database.query<{ there: boolean }>(
      "SELECT to_regclass('milora_sweeps.meta') IS NOT NULL AS there",
    );
    there = found!.there;
  } finally {
    await database[Symbol.asyncDispose]();
  }
  return there ? await openSweeps({ url }) : undefined;
}

async function openJobUrl(url: string): Promise<JobDatabase> {
  const { openJobPostgres } = await import("./postgres.ts");
  return openJobPostgres(url);
}

/** @throws InputError DATABASE_URL_INVALID, DATABASE_UNREACHABLE, DATA_TOO_NEW, MiloraError DATA_IN_USE */
export async function openSweeps(location: SweepLocation): Promise<Sweeps> {
  await using owned = new Owned();
  if ("directory" in location) owned.add(lockDirectory(location.directory));
  const database = owned.add(
    "url" in location
      ? await openJobUrl(location.url)
      : await openJobPglite("directory" in location ? join(location.directory, EMBEDDED) : undefined),
  );
  return new Sweeps(database, await openBoss(database), owned.move());
}

export class Sweeps implements AsyncDisposable {
  readonly database: JobDatabase;
  readonly attempts: Attempts;
  readonly #boss: PgBoss;
  readonly #owned: AsyncDisposable;

  /** @param owned the database and what goes with it */
  constructor(database: JobDatabase, boss: PgBoss, owned: AsyncDisposable) {
    this.database = database;
    this.#boss = boss;
    this.#owned = owned;
    this.attempts = new Attempts(database, boss);
  }

  /**
   * Makes jobs of what the sweep does not have yet. What others have asked for is theirs, and is waited for; what failed
   * for good is tried again.
   *
   * @param key of `spec`: the same for the same
   */
  async submit(
    { id: sweep, directory }: SweepFacts,
    { key, spec, parts }: { readonly key: string; readonly spec: SweepSpec; readonly parts: readonly NewPart[] },
    policy: RetryPolicy,
  ): Promise<void> {
    await makeQueues(this.database, this.#boss, sweep, policy);
    await this.database.transaction(async (tx) => {
      await tx.query(
        "INSERT INTO milora_sweeps.sweeps (id, directory) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET directory = EXCLUDED.directory",
        [sweep, directory],
      ); // the row is locked from here on: two who submit come one after the other
      await tx.query(
        "INSERT INTO milora_sweeps.requests (sweep, key, spec) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        [...[sweep, key, JSON.stringify(spec)]],
      );
      const known = await knownCells(tx, sweep);
      let at = known.size;
      for (const [place, { label, cells }] of parts.entries()) {
        const fresh = cells.filter(({ id }) => !known.has(id));
        if (fresh.length === 0) continue;
        const job = randomUUID();
        for (const { id, kind, label: text, run } of fresh) {
          await tx.query(
            "INSERT INTO milora_sweeps.cells (sweep, id, kind, label, job, run, place) VALUES ($1, $2, $3, $4, $5, $6, $7)",
            [sweep, id, kind, text, job, run ?? null, at++],
          );
          known.add(id);
        }
        const others = cells.filter((cell) => cell.kind === "training" && !fresh.includes(cell)).map(({ id }) => id);
        const data: JobData = { spec: key, label, place, cells: fresh.map(({ id }) => id), after: others };
        await insertJobs(this.#boss, tx, sweep, [{ id: job, data, retries: policy.retries }]);
      }
      const asked = new Set(parts.flatMap(({ cells }) => cells.map(({ id }) => id)));
      await this.#revive(tx, sweep, policy.retries, (dead) => dead.cells.some((id) => asked.has(id)));
    });
  }

  /** Tries again what was given up. @param only these jobs @returns how many jobs */
  async retry(sweep: string, retries: number, only?: readonly string[]): Promise<number> {
    return this.database.transaction(async (tx) => {
      await tx.query("SELECT 1 FROM milora_sweeps.sweeps WHERE id = $1 FOR UPDATE", [sweep]);
      return this.#revive(tx, sweep, retries, ({ job }) => only === undefined || only.includes(job));
    });
  }

  async #revive(tx: Sql, sweep: string, retries: number, which: (dead: DeadJob) => boolean): Promise<number> {
    const dead = (await deadJobs(tx, sweep)).filter(which);
    if (dead.length === 0) return 0;
    const db = bossDb(tx);
    const ids = dead.map(({ job }) => job);
    const letters = await tx.query<{ id: string }>(
      `SELECT id FROM ${BOSS}.job WHERE name = $1 AND data->'cells' IN (SELECT data->'cells' FROM ${BOSS}.job WHERE name = $2 AND id = ANY($3::uuid[]))`,
      [deadQueueOf(sweep), queueOf(sweep), ids],
    );
    const rows = await tx.query<{ id: string; data: unknown }>(
      `SELECT id, data FROM ${BOSS}.job WHERE name = $1 AND id = ANY($2::uuid[])`,
      [queueOf(sweep), ids],
    );
    await this.#boss.deleteJob(deadQueueOf(sweep), letters.map(({ id }) => id), { db }); // biome-ignore format: one line
    await this.#boss.deleteJob(queueOf(sweep), ids, { db });
    const jobs = rows.map(({ id, data }) => ({ id, data: jobDataSchema.parse(data), retries }));
    await insertJobs(this.#boss, tx, sweep, jobs);
    return jobs.length;
  }

  /** Takes the sweep out of the database; whoever works on it stops. Files stay. */
  async remove(sweep: string): Promise<void> {
    await this.database.query("DELETE FROM milora_sweeps.sweeps WHERE id = $1", [sweep]);
    await removeQueues(this.database, this.#boss, sweep);
  }

  /** The oldest first. */
  async list(): Promise<SweepFacts[]> {
    return this.database.query<SweepFacts>("SELECT id, directory FROM milora_sweeps.sweeps ORDER BY created, id");
  }

  async has(sweep: string): Promise<boolean> {
    return (await this.database.query("SELECT 1 FROM milora_sweeps.sweeps WHERE id = $1", [sweep])).length === 1;
  }

  async spec(sweep: string, key: string): Promise<SweepSpec | undefined> {
    const [found] = await this.database.query<{ spec: unknown }>(
      "SELECT spec FROM milora_sweeps.requests WHERE sweep = $1 AND key = $2",
      [sweep, key],
    );
    return found && sweepSpecSchema.parse(found.spec);
  }

  /** Results of these cells, or of all, as far as they are there. */
  async records(sweep: string, ids?: readonly string[]): Promise<Recorded[]> {
    const rows = await this.database.query<{ record: unknown; host: string }>(
      `SELECT record, host FROM milora_sweeps.cells
       WHERE sweep = $1 AND record IS NOT NULL AND ($2::text[] IS NULL OR id = ANY($2)) ORDER BY recorded, id`,
      [sweep, ids ?? null],
    );
    return rows.map(({ record, host }) => ({ record: cellRecordSchema.parse(record), host }));
  }

  /** Jobs that are waiting or being done. @param without sweeps that do not count */
  async open(without: ReadonlySet<string> = new Set()): Promise<number> {
    const [found] = await this.database.query<{ jobs: number }>(
      `SELECT count(*)::int AS jobs FROM ${BOSS}.job j JOIN milora_sweeps.sweeps s ON j.name = 'sweep-' || s.id
       WHERE j.state < 'completed' AND NOT s.id = ANY($1::text[])`,
      [[...without]],
    );
    return found!.jobs;
  }

  status(sweep: SweepFacts): Promise<SweepStatus> {
    return statusOf(this.database, sweep);
  }

  /** All of them as far as lists show them, newest first. */
  overview(only?: string): Promise<SweepOverview[]> {
    return overviewOf(this.database, only);
  }

  /** Its trainings and cells one by one, in the order of the grid. */
  cells(sweep: string, query?: CellQuery): Promise<CellPage> {
    return cellsOf(this.database, sweep, query);
  }

  /** How fast it goes, and when it will be done. */
  pace(sweep: string): Promise<SweepPace> {
    return paceOf(this.database, sweep);
  }

  workers(): Promise<WorkerStatus[]> {
    return workersOf(this.database);
  }

  dead(sweep: string): Promise<DeadJob[]> {
    return deadJobs(this.database, sweep);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#boss.stop({ graceful: false });
    await this.#owned[Symbol.asyncDispose]();
  }
}

async function knownCells(tx: Sql, sweep: string): Promise<Set<string>> {
  const rows = await tx.query<{ id: string }>("SELECT id FROM milora_sweeps.cells WHERE sweep = $1", [sweep]);
  return new Set(rows.map(({ id }) => id));
}
