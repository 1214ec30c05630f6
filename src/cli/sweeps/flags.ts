/** @file Flags of the commands that work on sweeps, and the database that they and the environment name. */
import { Option } from "commander";
import { InputError } from "../../base/index.ts";
import { findSweeps, openSweeps, type Sweeps } from "../../serving/index.ts";

export interface SweepFlags {
  readonly database?: string;
}

export const databaseFlag = (): Option =>
  new Option("--database <url>", "PostgreSQL that has the jobs (default: the environment's DATABASE_URL)");

/** Undefined where neither flag nor environment names one. */
export function databaseUrl(
  { database }: SweepFlags,
  env: Readonly<Record<string, string | undefined>> = process.env,
): string | undefined {
  return database ?? (env.DATABASE_URL || undefined);
}

function named(command: string, flags: SweepFlags, hint = ""): string {
  const url = databaseUrl(flags);
  if (url === undefined) throw new InputError("FLAG_INVALID", command, `needs --database or DATABASE_URL${hint}`);
  return url;
}

/** @throws InputError FLAG_INVALID where none is named */
export async function openNamed(command: string, flags: SweepFlags): Promise<Sweeps> {
  return openSweeps({ url: named(command, flags) });
}

/**
 * For who looks at sweeps, or changes those that are there: nothing is made in a database that has had none.
 * @param hint what else there is
 * @throws InputError FLAG_INVALID where none is named
 */
export async function findNamed(command: string, flags: SweepFlags, hint = ""): Promise<Sweeps> {
  return (await findSweeps(named(command, flags, hint))) ?? (await openSweeps({ memory: true }));
}
