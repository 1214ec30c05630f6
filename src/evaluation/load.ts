/** @file Rows of a task: from a directory, a file, the hub or what is bundled, read into documents. */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { InputError } from "../base/index.ts";
import { filesOf, readRecords, shorten } from "../training/index.ts";
import type { Document, Split, Task } from "./task.ts";

const ASSETS = fileURLToPath(new URL("../../assets/", import.meta.url)); // same place from src/ and dist/

export interface DataOptions {
  /** Directory with the data of all tasks. Without it: what is bundled, else the hub. */
  readonly directory?: string | undefined;
  /** The rows to be measured: a file, pattern or data set (`hf:…`). Shots still come from where they would. */
  readonly rows?: string | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface Rows {
  /** Where they came from. */
  readonly source: string;
  readonly documents: readonly Document[];
  /** sha256 of all rows. */
  readonly digest: string;
}

const ENDINGS = ["jsonl", "json", "csv", "parquet"];

/** `{1,2}` and `*` make a pattern, which is there when anything matches. */
async function isThere(path: string): Promise<boolean> {
  if (!/[*{]/.test(path)) return existsSync(path);
  return await filesOf(path).then(
    () => true,
    () => false,
  );
}

async function sourceOf(
  task: Task,
  split: Split,
  { directory, rows }: DataOptions,
  measured: boolean,
): Promise<string> {
  if (rows !== undefined && measured) return rows;
  const { hub, files, bundled } = task.data;
  if (directory !== undefined) {
    const own = ENDINGS.map((ending) => join(task.name, `${split}.${ending}`));
    const others = (files?.[split] ?? []).filter((name) => !own.includes(name));
    for (const name of [...own, ...others]) if (await isThere(join(directory, name))) return join(directory, name);
    if (bundled === undefined) {
      const endings = ENDINGS.slice(1).map((ending) => `.${ending}`);
      const names = [`${own[0]} (or ${endings.join(", ")})`, ...others].join(", ");
      const where = `The data set: ${task.credit.source}${hub === undefined ? "" : `, or ${hub}, split ${split}`}`;
      const problem = `has no "${split}" rows of ${task.name}; looked for ${names}. ${where}`;
      throw new InputError("FILE_UNREADABLE", directory, problem);
    }
  }
  if (bundled !== undefined) return join(ASSETS, bundled, `${split}.jsonl`);
  return `${hub}/${split}`;
}

/**
 * The documents of a split. @param measured whether these are the rows to be measured (not shots)
 * @throws InputError FILE_UNREADABLE, DATA_UNAVAILABLE, DATA_INVALID naming the bad rows
 */
export async function loadSplit(task: Task, split: Split, options: DataOptions, measured = true): Promise<Rows> {
  const source = await sourceOf(task, split, options, measured);
  const documents: Document[] = [];
  const bad: string[] = [];
  const { columns } = task.data;
  for (const file of await filesOf(source, options.signal)) {
    for (const record of await readRecords(file, columns ? { columns } : {})) {
      const found = "problem" in record ? record.problem : documentsOf(task, record.value);
      if (typeof found === "string") bad.push(`row ${record.number}: ${found}`);
      else documents.push(...found);
    }
  }
  if (bad.length) {
    const where = `${source} (${bad.length} rows that ${task.name} cannot read)`;
    throw new InputError("DATA_INVALID", where, shorten(bad));
  }
  if (documents.length === 0) throw new InputError("DATA_INVALID", source, "has no rows");
  const hash = createHash("sha256");
  for (const { fields } of documents) hash.update(`${JSON.stringify(fields)}\n`);
  return { source, documents, digest: hash.digest("hex") };
}

function documentsOf(task: Task, value: unknown): readonly Document[] | string {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return "is no object";
  const found = task.read(value as Record<string, unknown>);
  return typeof found === "string" || Array.isArray(found)
    ? (found as string | readonly Document[])
    : [found as Document];
}
