/** @file The tables that drizzle believes in are those that the migrations make, and a newer schema is refused. */
import { sql } from "drizzle-orm";
import { getTableConfig, PgTable } from "drizzle-orm/pg-core";
import { expect, test } from "vitest";
import { type Database, openDatabase, TEMPLATE } from "./database.ts";
import { migrate, SCHEMA_VERSION, versionOf } from "./migrations/index.ts";
import * as schema from "./schema.ts";
import { openStore } from "./store.ts";
import { onBoth, writeTemplate } from "./testing.ts";

const tables = Object.values(schema).filter((table) => table instanceof PgTable);

async function rows<T>(database: Database, query: ReturnType<typeof sql>): Promise<T[]> {
  return ((await database.execute(query)) as unknown as { rows: T[] }).rows;
}

/** Everything that schema.ts says of a table, as sorted lines. */
function declared(table: PgTable): string[] {
  const { name, columns, primaryKeys, foreignKeys, uniqueConstraints, indexes } = getTableConfig(table);
  const names = (list: readonly { name: string }[]) => list.map((column) => column.name).join(",");
  const keys = [
    ...primaryKeys.map((key) => names(key.columns)),
    ...columns.filter((c) => c.primary).map((c) => c.name),
  ];
  return [
    ...columns.map(
      (c) => `${c.name} ${c.getSQLType()}${c.notNull || keys.join().split(",").includes(c.name) ? " not null" : ""}`,
    ),
    ...keys.map((key) => `primary ${name}_pkey (${key})`),
    ...uniqueConstraints.map(
      (u) => `unique ${u.name} (${names(u.columns)})${u.nullsNotDistinct ? " nulls not distinct" : ""}`,
    ),
    ...indexes.map(({ config }) => `index ${config.name} (${names(config.columns as { name: string }[])})`),
    ...foreignKeys.map((key) => {
      const { columns: from, foreignColumns, foreignTable } = key.reference();
      return `foreign ${key.getName()} (${names(from)}) ${getTableConfig(foreignTable).name} (${names(foreignColumns)}) ${key.onDelete ?? "no action"}`;
    }),
  ].sort();
}

/** The same of PostgreSQL's own catalog. */
async function actual(database: Database, table: string): Promise<string[]> {
  const lines = await rows<{ line: string }>(
    database,
    sql`WITH t AS (SELECT to_regclass(${`"${table}"`})::oid AS id),
      key(id, nums) AS (SELECT oid, conkey FROM pg_constraint),
      names AS (SELECT k.id, string_agg(a.attname, ',' ORDER BY n.at) AS list FROM key k JOIN pg_constraint c ON c.oid = k.id,
        unnest(k.nums) WITH ORDINALITY n(num, at), pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = n.num GROUP BY k.id)
      SELECT attname || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END AS line
        FROM pg_attribute, t WHERE attrelid = t.id AND attnum > 0 AND NOT attisdropped
      UNION ALL SELECT 'primary ' || conname || ' (' || list || ')' FROM pg_constraint c JOIN names ON names.id = c.oid, t
        WHERE conrelid = t.id AND contype = 'p'
      UNION ALL SELECT 'unique ' || conname || ' (' || list || ')' || CASE WHEN i.indnullsnotdistinct THEN ' nulls not distinct' ELSE '' END
        FROM pg_constraint c JOIN names ON names.id = c.oid JOIN pg_index i ON i.indexrelid = c.conindid, t WHERE conrelid = t.id AND contype = 'u'
      UNION ALL SELECT 'foreign ' || conname || ' (' || list || ') ' || r.relname || ' (' ||
          (SELECT string_agg(attname, ',') FROM pg_attribute WHERE attrelid = confrelid AND attnum = ANY(confkey)) || ') ' ||
          CASE confdeltype WHEN 'c' THEN 'cascade' WHEN 'a' THEN 'no action' ELSE confdeltype::text END
        FROM pg_constraint c JOIN names ON names.id = c.oid JOIN pg_class r ON r.oid = confrelid, t WHERE conrelid = t.id AND contype = 'f'
      UNION ALL SELECT 'index ' || c.relname || ' (' || (SELECT string_agg(attname, ',') FROM pg_attribute WHERE attrelid = c.oid) || ')'
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid, t WHERE indrelid = t.id
        AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u'))`,
  );
  return lines.map(({ line }) => line).sort();
}

onBoth((place) => {
  test("schema.ts and the migrations say the same", async () => {
    await using opened = await place.open();
    const { database } = opened;
    await migrate(database, "test");
    const there = await rows<{ name: string }>(
      database,
      sql`SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1`,
    );
    expect(there.map(({ name }) => name)).toEqual(tables.map((table) => getTableConfig(table).name).sort());
    for (const table of tables) expect(await actual(database, getTableConfig(table).name)).toEqual(declared(table));
    // The comparison sees a difference where there is one.
    await database.execute(sql`ALTER TABLE tenants ALTER COLUMN name DROP NOT NULL`);
    await database.execute(sql`DROP INDEX keys_tenant`);
    expect(await actual(database, "tenants")).not.toEqual(declared(schema.tenants));
    expect(await actual(database, "keys")).not.toEqual(declared(schema.keys));
  });

  test("a database of every earlier version is brought to this one, and opened again as it is", async () => {
    for (let version = 0; version <= SCHEMA_VERSION; version++) {
      await using opened = await place.open();
      await migrate(opened.database, "test", version);
      await migrate(opened.database, "test");
      for (const table of tables) {
        expect(await actual(opened.database, getTableConfig(table).name)).toEqual(declared(table));
      }
      await migrate(opened.database, "test");
    }
  });

  test("a migration that fails leaves nothing of itself", async () => {
    await using opened = await place.open();
    const { database } = opened;
    await database.execute(sql`CREATE TABLE quota_windows (x int)`); // the first migration's last table
    await expect(migrate(database, "test")).rejects.toThrow();
    expect(await rows(database, sql`SELECT to_regclass('tenants') AS t`)).toEqual([{ t: null }]);
    await database.execute(sql`DROP TABLE quota_windows`);
    await migrate(database, "test");
  });

  test("a schema of a newer milora is refused", async () => {
    const location = await place.lasting();
    await (await openStore(location))[Symbol.asyncDispose]();
    {
      await using opened = await place.reopen(location);
      await opened.database.update(schema.meta).set({ value: String(SCHEMA_VERSION + 1) });
    }
    const refused = { code: "DATA_TOO_NEW", message: expect.stringContaining(`schema ${SCHEMA_VERSION + 1}`) };
    await expect(openStore(location)).rejects.toThrow(expect.objectContaining(refused));
    await expect(openStore(location)).rejects.toThrow(expect.objectContaining(refused)); // the lock was given back
  });
});

test("a new database has the tables already", async () => {
  await using opened = await openDatabase(undefined);
  expect(await versionOf(opened.database)).toBe(SCHEMA_VERSION);
  for (const table of tables)
    expect(await actual(opened.database, getTableConfig(table).name)).toEqual(declared(table));
  expect(await rows(opened.database, sql`SELECT key FROM meta`)).toEqual([{ key: "schema_version" }]);
  expect(await rows(opened.database, sql`SELECT id FROM tenants`)).toEqual([{ id: "admin" }]);
});

// After an update of PGlite, and with each migration: MILORA_WRITE_TEMPLATE=1 npx vitest run src/serving/store/schema.test.ts
test.runIf(process.env.MILORA_WRITE_TEMPLATE)(`writes ${TEMPLATE.pathname}`, () => writeTemplate());
