/** @file A store for who looks, or changes what is there: where there is none, none is made. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { checkUnbound } from "./binding.ts";
import { EMBEDDED } from "./database.ts";
import { versionOf } from "./migrations/index.ts";
import { openStore, type Store } from "./store.ts";
import { databaseName, unreachableAtStart } from "./url.ts";

export interface StoreThere {
  /** An empty one in memory where there is none. */
  readonly store: Store;
  /** Where none is. */
  readonly missing: string | undefined;
}

/** @throws as `openStore` */
export async function openStoreThere(
  location: { readonly directory: string } | { readonly url: string },
): Promise<StoreThere> {
  const missing = "url" in location ? await withoutTables(location.url) : withoutDatabase(location.directory);
  return { store: await openStore(missing === undefined ? location : { memory: true }), missing };
}

function withoutDatabase(directory: string): string | undefined {
  if (existsSync(join(directory, EMBEDDED))) return undefined;
  checkUnbound(directory);
  return directory;
}

async function withoutTables(url: string): Promise<string | undefined> {
  const { openPostgres } = await import("./postgres.ts");
  try {
    await using opened = await openPostgres(url);
    return (await versionOf(opened.database)) === 0 ? databaseName(url) : undefined;
  } catch (error) {
    throw unreachableAtStart(url, error);
  }
}
