/** @file The tables of sweeps beside those of pg-boss, which has the jobs: what they are made with, and what comes of them. */
import { InputError } from "../../base/index.ts";
import type { JobDatabase } from "./database.ts";

/** Of pg-boss's own tables. */
export const BOSS = "milora_jobs";

/** Of the advisory lock: of those that start at once one makes the tables. */
export const LOCK = 7_164_673;

/**
 * The first version of the tables. `cells`: trainings and measurements, each in one job, with the one result that it has had. `attempts`: who does a job,
 * and when that worker was last heard of; one of a job at most has not ended.
 */
const TABLES = `
CREATE SCHEMA milora_sweeps;
CREATE TABLE milora_sweeps.meta (version int NOT NULL);
CREATE TABLE milora_sweeps.sweeps (
  id text PRIMARY KEY,
  directory text NOT NULL,
  created timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE milora_sweeps.requests (
  sweep text NOT NULL REFERENCES milora_sweeps.sweeps ON DELETE CASCADE,
  key text NOT NULL,
  spec jsonb NOT NULL,
  PRIMARY KEY (sweep, key)
);
CREATE TABLE milora_sweeps.cells (
  sweep text NOT NULL REFERENCES milora_sweeps.sweeps ON DELETE CASCADE,
  id text NOT NULL,
  kind text NOT NULL,
  label text NOT NULL,
  job uuid NOT NULL,
  record json,
  host text,
  recorded timestamptz,
  PRIMARY KEY (sweep, id)
);
CREATE INDEX cells_job ON milora_sweeps.cells (job);
CREATE TABLE milora_sweeps.attempts (
  job uuid NOT NULL,
  number int NOT NULL,
  sweep text NOT NULL REFERENCES milora_sweeps.sweeps ON DELETE CASCADE,
  worker uuid NOT NULL,
  host text NOT NULL,
  begun timestamptz NOT NULL DEFAULT now(),
  heard timestamptz NOT NULL DEFAULT now(),
  lease interval NOT NULL,
  records int NOT NULL DEFAULT 0,
  progress jsonb,
  ended timestamptz,
  reason text,
  PRIMARY KEY (job, number)
);
CREATE UNIQUE INDEX attempts_open ON milora_sweeps.attempts (job) WHERE ended IS NULL;
CREATE TABLE milora_sweeps.workers (
  id uuid PRIMARY KEY,
  host text NOT NULL,
  pid int NOT NULL,
  slots int NOT NULL,
  version text NOT NULL,
  begun timestamptz NOT NULL DEFAULT now(),
  heard timestamptz NOT NULL DEFAULT now(),
  lease interval NOT NULL,
  shunned jsonb NOT NULL DEFAULT '{}'
);
INSERT INTO milora_sweeps.meta VALUES (1);`;

/**
 * From each version to the next. 2: what pages show of a cell without reading its whole record, the run that it is of, its
 * place in the grid; and requests as they were written, since jsonb forgets the order of axes.
 */
const MIGRATIONS: readonly string[] = [
  `
ALTER TABLE milora_sweeps.cells ADD COLUMN run text, ADD COLUMN place int,
  ADD COLUMN metric text, ADD COLUMN score float8, ADD COLUMN seconds float8;
UPDATE milora_sweeps.cells SET seconds = (record->>'seconds')::float8, metric = record->'value'->>'metric',
  score = CASE WHEN json_typeof(record->'value'->'value') = 'number' THEN (record->'value'->>'value')::float8 END
  WHERE record IS NOT NULL;
ALTER TABLE milora_sweeps.requests ALTER COLUMN spec TYPE json USING spec::json;`,
];

const VERSION = 1 + MIGRATIONS.length;

/** Makes the tables where they are missing, and brings older ones up to date. @throws InputError DATA_TOO_NEW */
export async function makeTables(database: JobDatabase): Promise<void> {
  const [there] = await database.query<{ there: boolean }>(
    "SELECT to_regclass('milora_sweeps.meta') IS NOT NULL AS there",
  );
  if (!there!.there) await database.transaction((tx) => tx.query(TABLES));
  const [found] = await database.query<{ version: number }>("SELECT version FROM milora_sweeps.meta");
  const { version } = found!;
  if (version > VERSION) {
    const problem = `were written by a newer milora (version ${version}, this one knows ${VERSION}); use that one`;
    throw new InputError("DATA_TOO_NEW", "the database's sweeps", problem);
  }
  for (const [i, migration] of MIGRATIONS.entries()) {
    const next = i + 2;
    if (version >= next) continue;
    await database.transaction((tx) => tx.query(`${migration}\nUPDATE milora_sweeps.meta SET version = ${next};`));
  }
}
