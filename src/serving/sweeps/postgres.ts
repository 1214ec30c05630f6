/** @file The SQL of jobs and sweeps on a PostgreSQL. Imported where one is opened, as store/postgres.ts is. */
import pg from "pg";
import { isLost, prepareClient } from "../store/postgres.ts";
import { checkDatabaseUrl, connectionOf, DatabaseUnreachable, unreachableAtStart } from "../store/url.ts";
import type { JobDatabase, Row, Sql } from "./database.ts";

/** Workers ask seldom and briefly. */
const CONNECTIONS = 4;
const ANSWER_MS = 30_000;
/** At the start a database that is busy is asked again for so long; one that refuses is not. */
const PATIENCE_MS = 60_000;

/** @throws InputError DATABASE_URL_INVALID, DATABASE_UNREACHABLE */
export async function openJobPostgres(url: string): Promise<JobDatabase> {
  checkDatabaseUrl(url);
  const pool = new pg.Pool({
    ...{ ...connectionOf(url), max: CONNECTIONS, query_timeout: ANSWER_MS },
    onConnect: prepareClient as (client: pg.ClientBase) => void,
  });
  pool.on("error", () => {}); // an idle connection was lost, and the pool has removed it
  const opened = new Postgres(pool);
  const started = Date.now();
  for (;;) {
    try {
      await opened.query("SELECT 1");
      return opened;
    } catch (error) {
      const failure = unreachableAtStart(url, error);
      if (/timeout/i.test(failure.message) && Date.now() - started < PATIENCE_MS) continue;
      await pool.end();
      throw failure;
    }
  }
}

function translated(error: unknown): unknown {
  return isLost(error) ? new DatabaseUnreachable(error) : error;
}

async function rowsOf<R extends object>(
  client: pg.Pool | pg.PoolClient,
  text: string,
  values?: readonly unknown[],
): Promise<R[]> {
  // Text without values may be several statements, of which the last one's rows count.
  const result = await client.query(text, values && [...values]);
  const last = Array.isArray(result) ? (result as pg.QueryResult[]).at(-1)! : result;
  return last.rows as R[];
}

class Postgres implements JobDatabase {
  readonly #pool: pg.Pool;

  constructor(pool: pg.Pool) {
    this.#pool = pool;
  }

  async query<R extends object = Row>(text: string, values?: readonly unknown[]): Promise<R[]> {
    try {
      return await rowsOf<R>(this.#pool, text, values);
    } catch (error) {
      throw translated(error);
    }
  }

  transaction<T>(work: (tx: Sql) => Promise<T>): Promise<T> {
    return this.#withClient(async (client) => {
      await client.query("BEGIN");
      try {
        const result = await work({ query: (text, values) => rowsOf(client, text, values) });
        await client.query("COMMIT");
        return result;
      } catch (error) {
        if (!isLost(error)) await client.query("ROLLBACK");
        throw error;
      }
    });
  }

  exclusively(lock: number, work: () => Promise<void>): Promise<void> {
    return this.#withClient(async (client) => {
      await client.query("SELECT pg_advisory_lock($1)", [lock]);
      try {
        await work();
      } finally {
        await client.query("SELECT pg_advisory_unlock($1)", [lock]);
      }
    });
  }

  async #withClient<T>(work: (client: pg.PoolClient) => Promise<T>): Promise<T> {
    let client: pg.PoolClient | undefined;
    let lost: Error | undefined;
    const onError = (error: Error): void => {
      lost = error;
    };
    try {
      client = await this.#pool.connect();
      client.on("error", onError); // or a connection that is lost between two statements ends the process
      return await work(client);
    } catch (error) {
      if (isLost(error)) lost ??= error as Error;
      throw translated(error);
    } finally {
      client?.off("error", onError);
      client?.release(lost);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool.end();
  }
}
