/** @file How sweeps stand: what is finished, who does what now, what was given up, and which workers are there. */
import { z } from "zod";
import type { Progress } from "./attempts.ts";
import type { Sql } from "./database.ts";
import { queueOf } from "./jobs.ts";
import { BOSS } from "./schema.ts";
import { jobDataSchema } from "./spec.ts";

export interface SweepFacts {
  readonly id: string;
  /** Where adapters and outputs go, for all who work on it. */
  readonly directory: string;
}

/** A job that was given up. */
export interface DeadJob {
  readonly job: string;
  readonly label: string;
  readonly cells: readonly string[];
  readonly code: string;
  readonly reason: string;
  readonly attempts: number;
}

/** A job that a worker has. */
export interface RunningJob {
  readonly label: string;
  readonly host: string;
  /** Of this job, from 1. */
  readonly attempt: number;
  readonly begun: Date;
  /** Seconds since its worker was heard of. */
  readonly silent: number;
  readonly progress: Progress | null;
}

export interface SweepStatus extends SweepFacts {
  readonly trainings: { readonly total: number; readonly done: number };
  readonly cells: { readonly total: number; readonly done: number };
  /** Jobs that nobody has yet, and those of them that were tried already. */
  readonly waiting: number;
  readonly retrying: number;
  readonly running: readonly RunningJob[];
  readonly dead: readonly DeadJob[];
}

export interface WorkerStatus {
  readonly host: string;
  readonly pid: number;
  readonly slots: number;
  readonly version: string;
  readonly begun: Date;
  readonly silent: number;
  /** Sweeps that it leaves to others, and why. */
  readonly shunned: Readonly<Record<string, string>>;
}

export async function statusOf(sql: Sql, sweep: SweepFacts): Promise<SweepStatus> {
  const counts = await sql.query<{ training: boolean; total: number; done: number }>(
    `SELECT kind = 'training' AS training, count(*)::int AS total, count(record)::int AS done
     FROM milora_sweeps.cells WHERE sweep = $1 GROUP BY 1`,
    [sweep.id],
  );
  const [jobs] = await sql.query<{ waiting: number; retrying: number }>(
    `SELECT count(*)::int AS waiting, count(*) FILTER (WHERE state = 'retry')::int AS retrying
     FROM ${BOSS}.job WHERE name = $1 AND state < 'active'`,
    [queueOf(sweep.id)],
  );
  const running = await sql.query<Omit<RunningJob, "label"> & { data: unknown }>(
    `SELECT j.data, a.host, a.number AS attempt, a.begun, a.progress,
       extract(epoch FROM now() - a.heard)::float AS silent
     FROM milora_sweeps.attempts a JOIN ${BOSS}.job j ON j.id = a.job AND j.name = $2
     WHERE a.sweep = $1 AND a.ended IS NULL ORDER BY a.begun, a.job`,
    [sweep.id, queueOf(sweep.id)],
  );
  const of = (training: boolean) => {
    const { total = 0, done = 0 } = counts.find((count) => count.training === training) ?? {};
    return { total, done };
  };
  return {
    ...{ id: sweep.id, directory: sweep.directory, trainings: of(true), cells: of(false), ...jobs! },
    running: running.map(({ data, ...job }) => ({ label: jobDataSchema.parse(data).label, ...job })),
    dead: await deadJobs(sql, sweep.id),
  };
}

const shunnedSchema = z.record(z.string(), z.string());

export async function workersOf(sql: Sql): Promise<WorkerStatus[]> {
  const rows = await sql.query<WorkerStatus>(
    `SELECT host, pid, slots, version, begun, shunned, extract(epoch FROM now() - heard)::float AS silent
     FROM milora_sweeps.workers WHERE heard + lease >= now() ORDER BY begun, id`,
  );
  return rows.map((row) => ({ ...row, shunned: shunnedSchema.parse(row.shunned) }));
}

interface Dead {
  readonly job: string;
  readonly data: unknown;
  readonly output: { readonly code?: string; readonly message?: string } | null;
  readonly attempts: number;
}

/** What was given up, in that order. */
export async function deadJobs(sql: Sql, sweep: string): Promise<DeadJob[]> {
  const rows = await sql.query<Dead>(
    `SELECT id AS job, data, output, (SELECT count(*) FROM milora_sweeps.attempts a WHERE a.job = j.id)::int AS attempts
     FROM ${BOSS}.job j WHERE name = $1 AND state = 'failed' ORDER BY completed_on, id`,
    [queueOf(sweep)],
  );
  return rows.map(({ job, data, output, attempts }) => {
    const { label, cells } = jobDataSchema.parse(data);
    const { code = "UNEXPECTED", message = "unknown" } = output ?? {};
    return { job, label, cells, code, reason: message, attempts };
  });
}
