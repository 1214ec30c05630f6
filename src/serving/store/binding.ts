/** @file A directory of adapters belongs to one database: another one would take its files for leftovers and remove them. */
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InputError, readJson, writeFileAtomic } from "../../base/index.ts";
import { EMBEDDED } from "./database.ts";

const FILE = "database.json";
const bindingSchema = z.strictObject({ database: z.string().min(1) });

/** Notes whose adapters a directory holds, whatever is in it. */
export function writeBinding(directory: string, id: string): void {
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  writeFileAtomic(join(directory, FILE), `${JSON.stringify({ database: id })}\n`);
}

/** Id of the PostgreSQL whose adapters a directory holds. */
export function boundTo(directory: string): string | undefined {
  const path = join(directory, FILE);
  return existsSync(path) ? readJson(path, bindingSchema).database : undefined;
}

/** The directory gets a database of its own. */
export function unbindDirectory(directory: string): void {
  rmSync(join(directory, FILE), { force: true });
}

/** @throws InputError DATA_MISMATCH where the adapters of a directory are those of a PostgreSQL */
export function checkUnbound(directory: string): void {
  if (!existsSync(join(directory, FILE))) return;
  checkMoved(directory);
  throw mismatch(directory, "holds the adapters of a PostgreSQL; name it with --database or DATABASE_URL");
}

/**
 * Notes whose adapters a directory holds, or sees that they are this database's.
 *
 * @param id of the database
 * @throws InputError DATA_MISMATCH
 */
export function bindDirectory(directory: string, id: string): void {
  if (existsSync(join(directory, FILE))) checkMoved(directory);
  if (existsSync(join(directory, EMBEDDED))) {
    throw mismatch(directory, `has a database of its own; take another directory, or move ${EMBEDDED}/ away`);
  }
  const path = join(directory, FILE);
  if (!existsSync(path)) writeBinding(directory, id);
  if (readJson(path, bindingSchema).database === id) return;
  throw mismatch(directory, `holds the adapters of another database; take another directory, or remove ${FILE}`);
}

/** The last step of a move is to take one of two databases out of use, which are the same until somebody uses one. */
function checkMoved(directory: string): void {
  if (!existsSync(join(directory, EMBEDDED))) return;
  const problem = `is as a move that was cut short leaves it, with the same data in ${EMBEDDED}/ and in a PostgreSQL; move ${EMBEDDED}/ away to use that one, or ${FILE} to use the directory's own`;
  throw mismatch(directory, problem);
}

function mismatch(directory: string, problem: string): InputError {
  return new InputError("DATA_MISMATCH", directory, problem);
}
