/** @file pg-boss on the database of sweeps: a queue for each sweep, and one for what was given up. */
import type PgBoss from "pg-boss";
import type { JobDatabase, Sql } from "./database.ts";
import { BOSS, LOCK, makeTables } from "./schema.ts";
import type { JobData } from "./spec.ts";

/** Jobs of a sweep wait here. */
export const queueOf = (sweep: string): string => `sweep-${sweep}`;
/** What failed for the last time, with the reason. */
export const deadQueueOf = (sweep: string): string => `sweep-${sweep}-dead`;

export interface RetryPolicy {
  /** Attempts after the first before a job is given up. */
  readonly retries: number;
  /** Until the second attempt; twice as long before each further one, and up to as long again by chance. */
  readonly delaySeconds: number;
}

export interface NewJob {
  readonly id: string;
  readonly data: JobData;
  /** Those that the job has left. */
  readonly retries: number;
  readonly startAfterSeconds?: number;
}

/** pg-boss asks through this. */
export const bossDb = (sql: Sql): PgBoss.Db => ({
  executeSql: async (text, values) => ({ rows: await sql.query(text, values) }),
});

/**
 * Makes what is missing in the database. pg-boss keeps the jobs; leases and their end are ours, since its own time limit
 * knows no heartbeat, so its maintenance is off: nothing times out, and nothing is archived.
 */
export async function openBoss(database: JobDatabase): Promise<PgBoss> {
  const { default: Boss } = await import("pg-boss"); // a server without sweeps need not load it
  const boss = new Boss({
    ...{ db: bossDb(database), schema: BOSS, schedule: false, supervise: false },
  });
  boss.on("error", () => {}); // all that is asked is awaited
  await database.exclusively(LOCK, async () => {
    await boss.start();
    await makeTables(database);
  });
  return boss;
}

/** A queue is a table: those who make one come one after the other, or they lock each other out. */
export async function makeQueues(
  database: JobDatabase,
  boss: PgBoss,
  sweep: string,
  { retries, delaySeconds }: RetryPolicy,
): Promise<void> {
  const [name, deadLetter] = [queueOf(sweep), deadQueueOf(sweep)];
  const policy = { name, retryLimit: retries, retryDelay: delaySeconds, retryBackoff: true, deadLetter };
  await database.exclusively(LOCK, async () => {
    await boss.createQueue(deadLetter);
    await boss.createQueue(name, policy);
    await boss.updateQueue(name, policy); // it may have been there with another one
  });
}

/** With all that is in them, which pg-boss asks for first. */
export async function removeQueues(database: JobDatabase, boss: PgBoss, sweep: string): Promise<void> {
  await database.exclusively(LOCK, async () => {
    for (const name of [queueOf(sweep), deadQueueOf(sweep)]) {
      const jobs = await database.query<{ id: string }>(`SELECT id FROM ${BOSS}.job WHERE name = $1`, [name]);
      if (jobs.length) await boss.deleteJob(name, jobs.map(({ id }) => id)); // biome-ignore format: one line
      await boss.deleteQueue(name);
    }
  });
}

export async function insertJobs(boss: PgBoss, tx: Sql, sweep: string, jobs: readonly NewJob[]): Promise<void> {
  if (jobs.length === 0) return;
  const rows = jobs.map(({ id, data, retries, startAfterSeconds }) => ({
    ...{ id, name: queueOf(sweep), data, retryLimit: retries, priority: -data.place },
    ...(startAfterSeconds !== undefined && { startAfter: `${startAfterSeconds} seconds` }),
  }));
  await boss.insert(rows, { db: bossDb(tx) });
}
