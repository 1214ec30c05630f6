/** @file Jobs in the hands of workers: taken with a lease, held by heartbeats, and ended in exactly one way. */
import type PgBoss from "pg-boss";
import type { CellRecord } from "../../evaluation/index.ts";
import { cellRecordSchema } from "../../evaluation/index.ts";
import type { JobDatabase, Sql } from "./database.ts";
import { bossDb, insertJobs, queueOf } from "./jobs.ts";
import { BOSS } from "./schema.ts";
import { scoreOf } from "./score.ts";
import { type JobData, jobDataSchema } from "./spec.ts";

export interface WorkerFacts {
  readonly id: string;
  readonly host: string;
  readonly pid: number;
  readonly slots: number;
  readonly version: string;
  /** Who has not been heard of for so long holds nothing any more. */
  readonly leaseSeconds: number;
}

/** A job in the hands of a worker. */
export interface Attempt {
  readonly job: string;
  /** From 1. */
  readonly number: number;
  readonly sweep: string;
  readonly directory: string;
  readonly worker: string;
  readonly data: JobData;
  /** Attempts after this one. */
  readonly retriesLeft: number;
  /** The machine of the attempt before, which may have left its locks. */
  readonly before: string | undefined;
}

export interface Progress {
  /** What is being done, e.g. the label of a cell. */
  readonly text: string;
  readonly done: number;
  readonly total: number;
}

/** What no database takes as text: a tool's complaint may hold anything. */
const UNSTORABLE = /[\0\ud800-\udfff]/gu;
const storable = (part: unknown): unknown => (typeof part === "string" ? part.replace(UNSTORABLE, "") : part);

export interface Reason {
  readonly code: string;
  readonly message: string;
}

/** What a clock is put right by without anything being wrong. */
const SLACK = "1 minute";
/** Until it is looked again whether what a job waits for is there. */
const WAIT_SECONDS = 2;

/** The lease has ended: another worker has the job, or nobody wants it any more. */
export class LeaseLost extends Error {}

export class Attempts {
  readonly #database: JobDatabase;
  readonly #boss: PgBoss;

  constructor(database: JobDatabase, boss: PgBoss) {
    this.#database = database;
    this.#boss = boss;
  }

  /** A worker is there, or still there. @param shunned sweeps that it leaves to others, and why */
  async sign(worker: WorkerFacts, shunned: Readonly<Record<string, string>>): Promise<void> {
    const { id, host, pid, slots, version, leaseSeconds } = worker;
    await this.#database.query(
      `INSERT INTO milora_sweeps.workers (id, host, pid, slots, version, lease, shunned)
       VALUES ($1, $2, $3, $4, $5, $6 * interval '1 second', $7)
       ON CONFLICT (id) DO UPDATE SET heard = now(), shunned = EXCLUDED.shunned`,
      [id, host, pid, slots, version, leaseSeconds, JSON.stringify(shunned, (_, part) => storable(part))],
    );
  }

  async signOff(worker: string): Promise<void> {
    await this.#database.query("DELETE FROM milora_sweeps.workers WHERE id = $1", [worker]);
  }

  /** The next job of any sweep, the oldest sweep first. @param shunned sweeps that are not looked at */
  async take(worker: WorkerFacts, shunned: ReadonlySet<string>): Promise<Attempt | undefined> {
    const sweeps = await this.#database.query<{ id: string; directory: string }>(
      `SELECT id, directory FROM milora_sweeps.sweeps s WHERE EXISTS (
         SELECT 1 FROM ${BOSS}.job WHERE name = 'sweep-' || s.id AND state < 'active' AND start_after < now()
       ) ORDER BY created, id`,
    );
    for (const { id, directory } of sweeps) {
      if (shunned.has(id)) continue;
      const attempt = await this.#database.transaction((tx) => this.#takeFrom(tx, id, directory, worker));
      if (attempt) return attempt;
    }
    return undefined;
  }

  async #takeFrom(tx: Sql, sweep: string, directory: string, worker: WorkerFacts): Promise<Attempt | undefined> {
    const options = { batchSize: 1, includeMetadata: true, db: bossDb(tx) } as const;
    for (;;) {
      const [job] = await this.#boss.fetch<unknown>(queueOf(sweep), options);
      if (!job) return undefined;
      const data = jobDataSchema.parse(job.data);
      const retriesLeft = Math.max(0, job.retryLimit - job.retryCount);
      const [last] = await tx.query<{ number: number; host: string }>(
        "SELECT number, host FROM milora_sweeps.attempts WHERE job = $1 ORDER BY number DESC LIMIT 1",
        [job.id],
      );
      const number = (last?.number ?? 0) + 1;
      const attempt = {
        job: job.id,
        number,
        sweep,
        directory,
        worker: worker.id,
        data,
        retriesLeft,
        before: last?.host,
      };
      const blocked = await this.#blocked(tx, sweep, data.after);
      if (blocked === "waits") await this.#putBack(tx, attempt, WAIT_SECONDS);
      else {
        await tx.query(
          `INSERT INTO milora_sweeps.attempts (job, number, sweep, worker, host, lease)
           VALUES ($1, $2, $3, $4, $5, $6 * interval '1 second')`,
          [job.id, number, sweep, worker.id, worker.host, worker.leaseSeconds],
        );
        if (blocked === undefined) return attempt;
        await this.#end(tx, attempt, blocked.message);
        await this.#failed(tx, attempt, blocked);
      }
    }
  }

  /** Whether trainings of other jobs are missing, or will never be there. */
  async #blocked(tx: Sql, sweep: string, after: readonly string[]): Promise<"waits" | Reason | undefined> {
    const open = await tx.query<{ label: string; failed: boolean }>(
      `SELECT label, EXISTS (SELECT 1 FROM ${BOSS}.job j WHERE j.name = $3 AND j.id = c.job AND j.state = 'failed') AS failed
       FROM milora_sweeps.cells c WHERE sweep = $1 AND id = ANY($2::text[]) AND record IS NULL`,
      [sweep, after, queueOf(sweep)],
    );
    const failed = open.find((cell) => cell.failed);
    if (failed) return { code: "CELLS_FAILED", message: `needs the training ${failed.label}, which failed` };
    return open.length > 0 ? "waits" : undefined;
  }

  /** Keeps the lease. @returns whether it was still there */
  async heartbeat({ job, number, worker }: Attempt, progress: Progress | undefined): Promise<boolean> {
    const held = await this.#database.query(
      `UPDATE milora_sweeps.attempts SET heard = now(), progress = $4
       WHERE job = $1 AND number = $2 AND worker = $3 AND ended IS NULL RETURNING job`,
      [job, number, worker, progress ? JSON.stringify(progress) : null],
    );
    return held.length === 1;
  }

  /**
   * Records what a cell came to, unless it has a result already, which then is the one.
   * @returns the cell's result
   * @throws LeaseLost
   */
  async record({ job, number, worker, sweep }: Attempt, record: CellRecord): Promise<CellRecord> {
    const score = scoreOf(record);
    return this.#database.transaction(async (tx) => {
      const held = await tx.query<{ host: string }>(
        `UPDATE milora_sweeps.attempts SET heard = now(), records = records + 1
         WHERE job = $1 AND number = $2 AND worker = $3 AND ended IS NULL RETURNING host`,
        [job, number, worker],
      );
      if (held.length === 0) throw new LeaseLost();
      await tx.query(
        `UPDATE milora_sweeps.cells SET record = $3, host = $4, recorded = now(), seconds = $5, metric = $6, score = $7
         WHERE sweep = $1 AND id = $2 AND record IS NULL`,
        [sweep, record.id, JSON.stringify(record), held[0]!.host, record.seconds, score?.metric, score?.value],
      );
      const [row] = await tx.query<{ record: unknown }>(
        "SELECT record FROM milora_sweeps.cells WHERE sweep = $1 AND id = $2",
        [sweep, record.id],
      );
      return row ? cellRecordSchema.parse(row.record) : record; // trained again because its files are gone: no cell of the job
    });
  }

  /** Ends a job of which all cells are recorded. @throws LeaseLost */
  async finish(attempt: Attempt): Promise<void> {
    await this.#database.transaction(async (tx) => {
      await this.#end(tx, attempt, undefined);
      const open = await tx.query<{ label: string }>(
        "SELECT label FROM milora_sweeps.cells WHERE job = $1 AND record IS NULL",
        [attempt.job],
      );
      const db = bossDb(tx);
      const { job, sweep } = attempt;
      if (open.length === 0) await this.#boss.complete(queueOf(sweep), job, {}, { db });
      else await this.#failed(tx, attempt, { code: "CELLS_FAILED", message: `${open[0]!.label} has no result` });
    });
  }

  /** Ends an attempt that came to nothing: the job is tried again later, or given up. @throws LeaseLost */
  async fail(attempt: Attempt, { code, message }: Reason): Promise<void> {
    const reason = { code, message: message.replace(UNSTORABLE, "") };
    await this.#database.transaction(async (tx) => {
      await this.#end(tx, attempt, reason.message);
      await this.#failed(tx, attempt, reason);
    });
  }

  /** Of an ended attempt. One that has recorded something has brought its job further, and does not count against it. */
  async #failed(
    tx: Sql,
    { sweep, job, number }: Pick<Attempt, "sweep" | "job" | "number">,
    reason: Reason,
  ): Promise<void> {
    await tx.query(
      `UPDATE ${BOSS}.job SET retry_limit = retry_limit + 1 WHERE name = $1 AND id = $2
       AND EXISTS (SELECT 1 FROM milora_sweeps.attempts WHERE job = $2 AND number = $3 AND records > 0)`,
      [queueOf(sweep), job, number],
    );
    await this.#boss.fail(queueOf(sweep), job, { ...reason }, { db: bossDb(tx) });
  }

  /** Gives a job back that nothing is wrong with: it counts as no attempt. @throws LeaseLost */
  async giveBack(attempt: Attempt, reason: string): Promise<void> {
    await this.#database.transaction(async (tx) => {
      await this.#end(tx, attempt, reason);
      await this.#putBack(tx, attempt);
    });
  }

  /** Gives back all that workers of an earlier process have left: for who knows that none of them lives. */
  async takeBack(): Promise<void> {
    await this.#database.transaction(async (tx) => {
      const left = await tx.query<{ job: string; number: number; sweep: string; worker: string }>(
        "SELECT job, number, sweep, worker FROM milora_sweeps.attempts WHERE ended IS NULL",
      );
      for (const attempt of left) {
        const [held] = await tx.query<{ data: unknown; retriesLeft: number }>(
          `SELECT data, greatest(0, retry_limit - retry_count)::int AS "retriesLeft" FROM ${BOSS}.job WHERE name = $1 AND id = $2`,
          [queueOf(attempt.sweep), attempt.job],
        );
        await this.#end(tx, attempt, "its process has ended");
        if (held) await this.#putBack(tx, { ...attempt, ...held, data: jobDataSchema.parse(held.data) });
      }
      await tx.query("DELETE FROM milora_sweeps.workers");
    });
  }

  /** pg-boss counts every time that a job is taken; put in anew it has the retries that it had. */
  async #putBack(
    tx: Sql,
    { job, sweep, data, retriesLeft }: Pick<Attempt, "job" | "sweep" | "data" | "retriesLeft">,
    seconds?: number,
  ): Promise<void> {
    await this.#boss.deleteJob(queueOf(sweep), job, { db: bossDb(tx) });
    const again = { id: job, data, retries: retriesLeft };
    await insertJobs(this.#boss, tx, sweep, [seconds === undefined ? again : { ...again, startAfterSeconds: seconds }]);
  }

  async #end(
    tx: Sql,
    { job, number, worker }: Pick<Attempt, "job" | "number" | "worker">,
    reason: string | undefined,
  ): Promise<void> {
    const ended = await tx.query(
      `UPDATE milora_sweeps.attempts SET ended = now(), reason = $4
       WHERE job = $1 AND number = $2 AND worker = $3 AND ended IS NULL RETURNING job`,
      [job, number, worker, reason?.replace(UNSTORABLE, "") ?? null],
    );
    if (ended.length === 0) throw new LeaseLost();
  }

  /**
   * Ends the attempts of workers that are not heard of any more. Times that are to come, since the database's clock was set
   * back, would have jobs wait for them: from now on they count from now.
   * @returns how many
   */
  async reap(): Promise<number> {
    return this.#database.transaction(async (tx) => {
      await tx.query("UPDATE milora_sweeps.attempts SET heard = now() WHERE ended IS NULL AND heard > now() + $1::interval", [SLACK]); // biome-ignore format: one line
      await tx.query("UPDATE milora_sweeps.workers SET heard = now() WHERE heard > now() + $1::interval", [SLACK]);
      await tx.query(
        `UPDATE ${BOSS}.job SET created_on = now(), start_after = now(),
           started_on = CASE WHEN started_on IS NOT NULL THEN least(started_on, now()) END
         WHERE name LIKE 'sweep-%' AND state < 'active' AND greatest(created_on, started_on) > now() + $1::interval`,
        [SLACK],
      );
      const silent = await tx.query<{ job: string; number: number; sweep: string; reason: string }>(
        `UPDATE milora_sweeps.attempts SET ended = now(), reason =
           'its worker on ' || host || ' was not heard of for ' || extract(epoch FROM lease)::int || ' seconds'
         WHERE ended IS NULL AND heard + lease < now() RETURNING job, number, sweep, reason`,
      );
      for (const lost of silent) await this.#failed(tx, lost, { code: "WORKER_LOST", message: lost.reason });
      await tx.query("DELETE FROM milora_sweeps.workers WHERE heard + 10 * lease < now()");
      return silent.length;
    });
  }
}
