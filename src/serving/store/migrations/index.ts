/** @file All migrations, and their application in order: each in one transaction with the version it leads to. */
import { eq, sql } from "drizzle-orm";
import { InputError } from "../../../base/index.ts";
import type { Database } from "../database.ts";
import { meta } from "../schema.ts";
import { initial } from "./0001-initial.ts";
import { changes } from "./0002-changes.ts";
import { shares } from "./0003-shares.ts";
import { setBack } from "./0004-set-back.ts";

/** SQL that leads from version i to version i + 1. SQL instead of files beside the code: it is in the build as it is. */
const MIGRATIONS: readonly (string | readonly string[])[] = [initial, changes, shares, setBack];

export const SCHEMA_VERSION = MIGRATIONS.length;

const VERSION = "schema_version";
/** Of the advisory lock: of servers that start at once one migrates, and the others find it done. */
const LOCK = 7_164_672;
const DUPLICATE_TABLE = "42P07";

/**
 * Brings the schema to `SCHEMA_VERSION`.
 *
 * @param where the database, for the error
 * @param upTo stops at this version; for tests
 * @throws InputError DATA_TOO_NEW when a newer milora has written it, DATA_UNSUPPORTED when somebody else's tables are there
 */
export async function migrate(database: Database, where: string, upTo = SCHEMA_VERSION): Promise<void> {
  for (;;) {
    const done = await database.transaction(async (tx) => {
      await tx.execute(sql`SELECT pg_advisory_xact_lock(${LOCK})`);
      const version = await versionOf(tx);
      if (version > SCHEMA_VERSION) {
        throw new InputError(
          "DATA_TOO_NEW",
          where,
          `was written by a newer milora (schema ${version}, this one knows ${SCHEMA_VERSION}); use that version`,
        );
      }
      if (version >= upTo) return true;
      for (const statement of statementsOf(MIGRATIONS[version]!)) await apply(tx, statement, where);
      const value = String(version + 1);
      await tx.insert(meta).values({ key: VERSION, value }).onConflictDoUpdate({ target: meta.key, set: { value } });
      return version + 1 >= upTo;
    });
    if (done) return;
  }
}

async function apply(tx: Pick<Database, "execute">, statement: string, where: string): Promise<void> {
  try {
    await tx.execute(sql.raw(statement));
  } catch (error) {
    if ((error as { cause?: { code?: unknown } }).cause?.code !== DUPLICATE_TABLE) throw error;
    const problem = "has tables of the same names by somebody else; give milora a database of its own";
    throw new InputError("DATA_UNSUPPORTED", where, problem, { cause: error });
  }
}

/** 0: there are no tables of milora. */
export async function versionOf(database: Pick<Database, "execute" | "select">): Promise<number> {
  const found = await database.execute(sql`SELECT to_regclass('meta') IS NOT NULL AS there`);
  const { there } = (found as { rows: { there: boolean }[] }).rows[0]!;
  if (!there) return 0;
  const [row] = await database.select().from(meta).where(eq(meta.key, VERSION));
  return Number(row?.value ?? 0);
}

/** A migration's statements one by one, which is how prepared queries want them; in one text none has a `;` inside. */
function statementsOf(migration: string | readonly string[]): readonly string[] {
  if (typeof migration !== "string") return migration;
  return migration.split(/;\s*\n/).filter((statement) => statement.trim() !== "");
}
