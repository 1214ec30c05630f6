/** @file SQL as pg-boss and the tables of sweeps need it: text with $1, transactions, on a PostgreSQL or on PGlite. */
import type { PGlite } from "@electric-sql/pglite";
import { openDatabase } from "../store/database.ts";

export type Row = Readonly<Record<string, unknown>>;

export interface Sql {
  query<R extends object = Row>(text: string, values?: readonly unknown[]): Promise<R[]>;
}

export interface JobDatabase extends Sql, AsyncDisposable {
  transaction<T>(work: (tx: Sql) => Promise<T>): Promise<T>;
  /** `work` has the database's lock of this number, whoever else asks for it waits. */
  exclusively(lock: number, work: () => Promise<void>): Promise<void>;
}

/** One process has it at a time. @param directory PostgreSQL's own files, or undefined: in memory */
export async function openJobPglite(directory: string | undefined): Promise<JobDatabase> {
  const opened = await openDatabase(directory);
  return new Embedded((opened.database as unknown as { readonly $client: PGlite }).$client);
}

async function embeddedRows<R extends object>(
  client: Pick<PGlite, "query" | "exec">,
  text: string,
  values?: readonly unknown[],
): Promise<R[]> {
  if (values) return (await client.query<R>(text, [...values])).rows;
  return ((await client.exec(text)).at(-1)?.rows ?? []) as R[];
}

class Embedded implements JobDatabase {
  readonly #client: PGlite;

  constructor(client: PGlite) {
    this.#client = client;
  }

  query<R extends object = Row>(text: string, values?: readonly unknown[]): Promise<R[]> {
    return embeddedRows<R>(this.#client, text, values);
  }

  transaction<T>(work: (tx: Sql) => Promise<T>): Promise<T> {
    return this.#client.transaction((tx) => work({ query: (text, values) => embeddedRows(tx, text, values) }));
  }

  exclusively(_lock: number, work: () => Promise<void>): Promise<void> {
    return work();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#client.close();
  }
}
