/** @file All sweeps in few questions, however many there are. */
import type { SweepCounts } from "./counts.ts";
import type { Sql } from "./database.ts";
import { BOSS } from "./schema.ts";

export interface SweepOverview extends SweepCounts {
  readonly created: Date;
}

interface Counted {
  readonly id: string;
  readonly directory: string;
  readonly created: Date;
  readonly runs: number;
  readonly trained: number;
  readonly cells: number;
  readonly measured: number;
}

/** Newest first. @param only one of them */
export async function overviewOf(sql: Sql, only?: string): Promise<SweepOverview[]> {
  const sweeps = await sql.query<Counted>(
    `SELECT s.id, s.directory, s.created,
       count(*) FILTER (WHERE kind = 'training')::int AS runs,
       count(*) FILTER (WHERE kind = 'training' AND recorded IS NOT NULL)::int AS trained,
       count(*) FILTER (WHERE kind <> 'training')::int AS cells,
       count(*) FILTER (WHERE kind <> 'training' AND recorded IS NOT NULL)::int AS measured
     FROM milora_sweeps.sweeps s LEFT JOIN milora_sweeps.cells c ON c.sweep = s.id
     WHERE $1::text IS NULL OR s.id = $1 GROUP BY s.id ORDER BY s.created DESC, s.id`,
    [only ?? null],
  );
  const jobs = await sql.query<{ name: string; state: string; jobs: number }>(
    `SELECT name, state::text AS state, count(*)::int AS jobs FROM ${BOSS}.job
     WHERE ($1::text IS NULL OR name = 'sweep-' || $1) AND name NOT LIKE '%-dead' GROUP BY 1, 2`,
    [only ?? null],
  );
  return sweeps.map(({ id, directory, created, runs, trained, cells, measured }) => {
    const of = (state: string): number =>
      jobs.find((count) => count.name === `sweep-${id}` && count.state === state)?.jobs ?? 0;
    return {
      ...{ id, directory, created, trainings: { total: runs, done: trained }, cells: { total: cells, done: measured } },
      jobs: { waiting: of("created"), retrying: of("retry"), running: of("active"), failed: of("failed") },
    };
  });
}
