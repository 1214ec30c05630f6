/** @file Opens a PostgreSQL by its URL, with a pool of connections. Imported where one is opened: its packages take a server without one 0.1 s to load. */
import { DrizzleQueryError, type Logger } from "drizzle-orm";
import { NodePgDatabase, NodePgSession, NodePgTransaction } from "drizzle-orm/node-postgres";
import { PgDialect, type PgPreparedQuery, type PreparedQueryConfig } from "drizzle-orm/pg-core";
import pg from "pg";
import { InputError } from "../../base/index.ts";
import type { Database, OpenDatabase } from "./database.ts";
import { checkDatabaseUrl, connectionOf, DatabaseUnreachable, databaseName, unreachableAtStart } from "./url.ts";

/** Connections of one server; one more listens. */
const CONNECTIONS = 10;
/** Nothing that is asked here takes as long: who does not answer until then is gone without having said so. */
const ANSWER_MS = 30_000;
/** Unique constraints that take NULL for a value came with it. */
const OLDEST = 15;

/** Settings of every connection: times arrive as drizzle reads them, whatever the server's defaults are. */
export async function prepareClient(client: pg.ClientBase): Promise<void> {
  await client.query("SET datestyle = ISO; SET timezone = 'UTC'; SET default_transaction_isolation = 'read committed'");
}

export interface PostgresOptions {
  /** Told every query. */
  readonly logger?: Logger;
  /** Waits for answers as long as it takes. */
  readonly patient?: boolean;
}

/** @throws InputError DATABASE_URL_INVALID, DATABASE_UNREACHABLE, DATA_UNSUPPORTED for a version that is too old */
export async function openPostgres(
  url: string,
  { logger, patient = false }: PostgresOptions = {},
): Promise<OpenDatabase> {
  checkDatabaseUrl(url);
  const pool = new pg.Pool({
    ...{ ...connectionOf(url), max: CONNECTIONS },
    ...(!patient && { query_timeout: ANSWER_MS }),
    // Its type knows nothing of what it waits for, the pool itself does.
    onConnect: prepareClient as (client: pg.ClientBase) => void,
  });
  // A connection that is lost fails what is asked of it, or leaves the pool; an event nobody hears would end the process.
  pool.on("error", () => {});
  pool.on("connect", (client) => client.on("error", () => {}));
  try {
    await checkServer(pool, url);
  } catch (error) {
    await pool.end();
    throw unreachableAtStart(url, error);
  }
  const dialect = new PgDialect();
  const session = new Session(pool, dialect, logger ? { logger } : {});
  return {
    database: new NodePgDatabase(dialect, session, undefined) as unknown as Database,
    async [Symbol.asyncDispose]() {
      await pool.end();
    },
  };
}

async function checkServer(pool: pg.Pool, url: string): Promise<void> {
  const { rows } = await pool.query<{ version: string; standby: boolean }>(
    "SELECT current_setting('server_version_num') AS version, pg_is_in_recovery() AS standby",
  );
  const major = Math.floor(Number(rows[0]!.version) / 10_000);
  if (major < OLDEST) {
    const problem = `is PostgreSQL ${major}, and milora needs ${OLDEST} or newer`;
    throw new InputError("DATA_UNSUPPORTED", databaseName(url), problem);
  }
  if (rows[0]!.standby) {
    throw new InputError("DATABASE_UNREACHABLE", databaseName(url), "is a standby, which cannot be written to");
  }
}

/** Classes of SQLSTATE by which a server says that it cannot be used, not that a statement is wrong. */
const UNUSABLE = /^(08|53|57P|28|3D|25006)/;
const DRIVER = /^(Connection terminated|timeout e|Query read timeout|Client (has|was) |Cannot use a pool)/;

/** Whether the connection failed, or the server as a whole; not what else went wrong in a transaction's work. */
export function isLost(error: unknown): boolean {
  if (error instanceof pg.DatabaseError) return UNUSABLE.test(error.code ?? "");
  return (
    error instanceof Error && ("syscall" in error || error instanceof AggregateError || DRIVER.test(error.message))
  );
}

type NoSchema = Record<string, never>;
type Transaction = NodePgTransaction<NoSchema, NoSchema>;

/** drizzle's session, whose errors tell a database that is gone from a statement that failed. */
class Session extends NodePgSession<NoSchema, NoSchema> {
  readonly #client: pg.Pool | pg.PoolClient;
  readonly #dialect: PgDialect;
  readonly #options: { readonly logger?: Logger };

  constructor(client: pg.Pool | pg.PoolClient, dialect: PgDialect, options: { readonly logger?: Logger }) {
    super(client, dialect, undefined, options);
    this.#client = client;
    this.#dialect = dialect;
    this.#options = options;
  }

  override prepareQuery<T extends PreparedQueryConfig>(
    ...args: Parameters<NodePgSession<NoSchema, NoSchema>["prepareQuery"]>
  ): PgPreparedQuery<T> {
    const prepared = super.prepareQuery(...args);
    const execute = prepared.execute.bind(prepared);
    const mayRepeat = this.#client instanceof pg.Pool && /^select /i.test(args[0].sql);
    prepared.execute = async (values) => {
      try {
        return await (mayRepeat ? onFresh(() => execute(values)) : execute(values));
      } catch (error) {
        throw translated(error);
      }
    };
    return prepared as PgPreparedQuery<T>;
  }

  /** drizzle's own, where a connection is lost, fails with the failure to roll back. */
  override async transaction<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    const pool = this.#client;
    if (!(pool instanceof pg.Pool)) throw new Error("a transaction inside of a transaction");
    let client: pg.PoolClient | undefined;
    let lost: Error | undefined;
    const onError = (error: Error): void => {
      lost = error;
    };
    try {
      client = await onFresh(() => begun(pool));
      client.on("error", onError);
      const session = new Session(client, this.#dialect, this.#options);
      const result = await work(new NodePgTransaction(this.#dialect, session, undefined));
      await client.query("COMMIT");
      return result;
    } catch (error) {
      if (error instanceof DatabaseUnreachable || isLost(error)) lost ??= error as Error;
      else await client?.query("ROLLBACK").catch(onError);
      throw translated(error);
    } finally {
      client?.off("error", onError);
      client?.release(lost);
    }
  }
}

/** A connection in a transaction. */
async function begun(pool: pg.Pool): Promise<pg.PoolClient> {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    return client;
  } catch (error) {
    client.release(error as Error);
    throw error;
  }
}

/** Does again what failed with a connection that the pool has kept, and the server has not: as many times as there may be such. */
async function onFresh<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (attempt >= CONNECTIONS || !isStale(causeOf(error))) throw error;
    }
  }
}

/** Whether a connection that was there has ended; not that none can be made, or that an answer is late. */
function isStale(error: unknown): boolean {
  if (error instanceof pg.DatabaseError) return error.code === "57P01";
  if (!(error instanceof Error)) return false;
  const { code } = error as NodeJS.ErrnoException;
  return code === "ECONNRESET" || code === "EPIPE" || /^(Connection terminated unexp|Client has )/.test(error.message);
}

function causeOf(error: unknown): unknown {
  return error instanceof DrizzleQueryError ? error.cause : error;
}

function translated(error: unknown): unknown {
  const cause = causeOf(error);
  return isLost(cause) ? new DatabaseUnreachable(cause) : error;
}
