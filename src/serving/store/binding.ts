/** @file A directory of adapters belongs to one database: another one would take its files for leftovers and remove them. */
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InputError, readJson, writeFileAtomic } from "../../base/index.ts";
import { EMBEDDED } from "./database.ts";

const FILE = "database.json";
const bindingSchema = z.strictObject({ database: z.string().min(1) });

/** @throws InputError DATA_MISMATCH where the adapters of a directory are those of a PostgreSQL */
export function checkUnbound(directory: string): void {
  if (!existsSync(join(directory, FILE))) return;
  throw mismatch(directory, "holds the adapters of a PostgreSQL; name it with --database or DATABASE_URL");
}

/**
 * Notes whose adapters a directory holds, or sees that they are this database's.
 *
 * @param id of the database
 * @throws InputError DATA_MISMATCH
 */
export function bindDirectory(directory: string, id: string): void {
  if (existsSync(join(directory, EMBEDDED))) {
    throw mismatch(directory, `has a database of its own; take another directory, or move ${EMBEDDED}/ away`);
  }
  const path = join(directory, FILE);
  if (!existsSync(path)) {
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    writeFileAtomic(path, `${JSON.stringify({ database: id })}\n`);
  }
  if (readJson(path, bindingSchema).database === id) return;
  throw mismatch(directory, `holds the adapters of another database; take another directory, or remove ${FILE}`);
}

function mismatch(directory: string, problem: string): InputError {
  return new InputError("DATA_MISMATCH", directory, problem);
}
