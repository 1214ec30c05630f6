/** @file How fast a sweep goes, and how long it will take, from what its finished cells took. */
import type { Sql } from "./database.ts";
import { queueOf } from "./jobs.ts";
import { BOSS } from "./schema.ts";

export interface SweepPace {
  /** Jobs that workers which are there may do at a time. */
  readonly slots: number;
  /** Trainings and cells finished in the last quarter of an hour, by the hour. */
  readonly perHour: number;
  /** Until nothing is left but what failed; null while too little is known, or nobody works. */
  readonly secondsLeft: number | null;
}

const WINDOW_SECONDS = 900;

interface KindPace {
  /** Neither finished nor failed; what is on its way counts with the rest of it. */
  readonly open: number;
  /** Mean of those that are finished. */
  readonly seconds: number | null;
}

/** Work that is open, shared by as many as work, who cannot be more than the jobs. */
export function secondsLeft(kinds: readonly KindPace[], slots: number, jobs: number): number | null {
  const open = kinds.filter((kind) => kind.open > 0);
  if (open.length === 0) return 0;
  if (slots === 0 || jobs === 0 || open.some(({ seconds }) => seconds === null)) return null;
  return open.reduce((total, kind) => total + kind.open * kind.seconds!, 0) / Math.min(slots, jobs);
}

export async function paceOf(sql: Sql, sweep: string): Promise<SweepPace> {
  const [working] = await sql.query<{ slots: number }>(
    `SELECT coalesce(sum(slots), 0)::int AS slots FROM milora_sweeps.workers
     WHERE heard + lease >= now() AND NOT shunned ? $1`,
    [sweep],
  );
  const [jobs] = await sql.query<{ open: number }>(
    `SELECT count(*)::int AS open FROM ${BOSS}.job WHERE name = $1 AND state < 'completed'`,
    [queueOf(sweep)],
  );
  const [recent] = await sql.query<{ cells: number; seconds: number }>(
    `SELECT count(*)::int AS cells, greatest(1, least($2::float8, extract(epoch FROM now() - (
       SELECT min(begun) FROM milora_sweeps.attempts WHERE sweep = $1
     ))))::float8 AS seconds
     FROM milora_sweeps.cells WHERE sweep = $1 AND recorded > now() - $2::float8 * interval '1 second'`,
    [sweep, WINDOW_SECONDS],
  );
  const kinds = await sql.query<KindPace>(
    `SELECT (count(*) FILTER (WHERE c.recorded IS NULL AND j.state < 'completed') - coalesce(sum(
         CASE WHEN c.recorded IS NULL AND a.progress->>'text' = c.label
           THEN (a.progress->>'done')::float8 / greatest(1, (a.progress->>'total')::float8) END), 0))::float8 AS open,
       avg(c.seconds)::float8 AS seconds
     FROM milora_sweeps.cells c LEFT JOIN ${BOSS}.job j ON j.name = $2 AND j.id = c.job
     LEFT JOIN milora_sweeps.attempts a ON a.job = c.job AND a.ended IS NULL
     WHERE c.sweep = $1 GROUP BY c.kind`,
    [sweep, queueOf(sweep)],
  );
  return {
    slots: working!.slots,
    perHour: (3600 * recent!.cells) / (recent!.seconds ?? WINDOW_SECONDS),
    secondsLeft: secondsLeft(kinds, working!.slots, jobs!.open),
  };
}
