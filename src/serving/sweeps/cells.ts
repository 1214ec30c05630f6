/** @file The cells of a sweep one by one: who does them, how far they are, what they gave, why they failed. */
import type { Progress } from "./attempts.ts";
import type { Sql } from "./database.ts";
import { queueOf } from "./jobs.ts";
import { BOSS } from "./schema.ts";

/** `retrying`: waits for another attempt; `waiting`: nobody has begun it, or what is before it in its job is being done. */
export const CELL_STATES = ["running", "waiting", "retrying", "failed", "done"] as const;
export type CellState = (typeof CELL_STATES)[number];

export interface CellStatus {
  readonly id: string;
  readonly kind: string;
  readonly label: string;
  readonly state: CellState;
  readonly job: string;
  /** Of its training: the directory runs/ID. */
  readonly run: string | null;
  /** Of its job, begun so far. */
  readonly attempts: number;
  /** Who has its job, or had it last. */
  readonly worker: { readonly host: string; readonly pid: number | null; readonly heard: Date } | null;
  readonly progress: Progress | null;
  /** Why the last attempt ended, of cells that wait for another or have failed. */
  readonly reason: string | null;
  readonly code: string | null;
  /** Of those that wait for another attempt: not before. */
  readonly after: Date | null;
  readonly metric: string | null;
  readonly score: number | null;
  readonly seconds: number | null;
  readonly recorded: Date | null;
}

export interface CellQuery {
  readonly state?: CellState | undefined;
  /** In the label. */
  readonly text?: string | undefined;
  readonly limit?: number | undefined;
  readonly offset?: number | undefined;
}

export interface CellPage {
  /** Of the whole sweep. */
  readonly states: Readonly<Record<CellState, number>>;
  /** That the query is about; `cells` are some of them. */
  readonly total: number;
  readonly cells: readonly CellStatus[];
}

/**
 * A cell of a job that is being done is running when it is the first that is missing, or named by what is told of the way:
 * seeds are trained together.
 */
const STATES = `
WITH last AS (
  SELECT DISTINCT ON (job) job, number, worker, host, heard, progress, ended, reason
  FROM milora_sweeps.attempts WHERE sweep = $1 ORDER BY job, number DESC
), told AS (
  SELECT c.id, c.kind, c.label, c.job, c.run, coalesce(c.place, 0) AS place, c.metric, c.score, c.seconds, c.recorded,
    coalesce(a.number, 0) AS attempts, a.worker, a.host, a.heard, a.progress, a.reason, j.output, j.start_after,
    CASE
      WHEN c.recorded IS NOT NULL THEN 'done'
      WHEN j.state = 'failed' THEN 'failed'
      WHEN a.job IS NOT NULL AND a.ended IS NULL AND (
        coalesce(c.place, 0) = min(coalesce(c.place, 0)) FILTER (WHERE c.recorded IS NULL) OVER (PARTITION BY c.job)
        OR position(c.label IN a.progress->>'text') > 0
      ) THEN 'running'
      WHEN j.state = 'retry' THEN 'retrying'
      ELSE 'waiting'
    END AS state
  FROM milora_sweeps.cells c
  LEFT JOIN ${BOSS}.job j ON j.name = $2 AND j.id = c.job
  LEFT JOIN last a ON a.job = c.job
  WHERE c.sweep = $1
)`;

interface Told extends Omit<CellStatus, "worker" | "reason" | "code" | "after"> {
  readonly host: string | null;
  readonly pid: number | null;
  readonly heard: Date | null;
  readonly reason: string | null;
  readonly output: { readonly code?: string; readonly message?: string } | null;
  readonly start_after: Date | null;
}

/** For LIKE. */
const escaped = (text: string): string => text.replace(/[\\%_]/g, "\\$&");

export async function cellsOf(sql: Sql, sweep: string, query: CellQuery = {}): Promise<CellPage> {
  const { state, text, limit, offset = 0 } = query;
  const counts = await sql.query<{ state: CellState; cells: number }>(
    `${STATES} SELECT state, count(*)::int AS cells FROM told GROUP BY state`,
    [sweep, queueOf(sweep)],
  );
  const which = "($3::text IS NULL OR state = $3) AND ($4::text IS NULL OR label ILIKE '%' || $4 || '%')";
  const values = [sweep, queueOf(sweep), state ?? null, text === undefined || text === "" ? null : escaped(text)];
  const [found] = await sql.query<{ total: number }>(
    `${STATES} SELECT count(*)::int AS total FROM told WHERE ${which}`,
    values,
  );
  const rows = await sql.query<Told>(
    `${STATES} SELECT t.*, w.pid FROM told t LEFT JOIN milora_sweeps.workers w ON w.id = t.worker
     WHERE ${which} ORDER BY place, id LIMIT $5 OFFSET $6`,
    [...values, limit ?? null, offset],
  );
  const states = Object.fromEntries(CELL_STATES.map((name) => [name, 0])) as Record<CellState, number>;
  for (const count of counts) states[count.state] = count.cells;
  return { states, total: found!.total, cells: rows.map(statusOf) };
}

function statusOf(told: Told): CellStatus {
  const { id, kind, label, state, job, run, attempts, metric, score, seconds, recorded } = told;
  const { host, pid, heard, progress, reason, output, start_after: after } = told;
  const ended = state === "failed" || state === "retrying";
  return {
    ...{ id, kind, label, state, job, run, attempts, metric, score, seconds, recorded },
    worker: host === null ? null : { host, pid, heard: heard! },
    progress: state === "running" && progress?.text.includes(label) ? progress : null,
    reason: ended ? (output?.message ?? reason) : null,
    code: ended ? (output?.code ?? null) : null,
    after: state === "retrying" ? after : null,
  };
}
