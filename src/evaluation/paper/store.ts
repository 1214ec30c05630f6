/** @file Finished cells on disk, by what decided them, so that nothing is done twice. */
import { existsSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { readJson, writeFileAtomic } from "../../base/index.ts";
import { holdsRun } from "../../training/index.ts";

export const cellRecordSchema = z.object({
  id: z.string(),
  kind: z.string(),
  label: z.string(),
  /** What was measured; for trainings what came of them. */
  value: z.unknown(),
  seconds: z.number(),
  /** Tokens or rows that the seconds went into. */
  amount: z.number(),
  machine: z.string(),
  made: z.string(),
});

export type CellRecord = z.infer<typeof cellRecordSchema>;

/** What a timing belongs to. */
export function machineName(): string {
  return `${cpus()[0]?.model.trim() ?? "unknown"}, ${cpus().length} cores`;
}

const recordPath = (directory: string, id: string): string => join(directory, "cells", `${id}.json`);

/** Puts a finished cell where a `CellStore` of the directory finds it. */
export function writeRecord(directory: string, record: CellRecord): void {
  writeFileAtomic(recordPath(directory, record.id), `${JSON.stringify(record)}\n`);
}

/** The output directory: cells/ with what was measured, runs/ with adapters, rows/ with outputs, data/ with rows. */
export class CellStore {
  readonly directory: string;
  readonly #known = new Map<string, CellRecord | undefined>();
  readonly #keep: ((record: CellRecord) => void) | undefined;

  /** @param keep takes what is finished; by default it is written into `directory` */
  constructor(directory: string, keep?: (record: CellRecord) => void) {
    this.directory = directory;
    this.#keep = keep;
  }

  runDirectory(id: string): string {
    return join(this.directory, "runs", id);
  }

  /** Whether a training has left something to go on from. */
  begun(id: string): boolean {
    return holdsRun(this.runDirectory(id));
  }

  /** Where the adapter of a finished run is. */
  adapter(id: string): string {
    return join(this.runDirectory(id), "best");
  }

  hasAdapter(id: string): boolean {
    return existsSync(join(this.adapter(id), "adapter_config.json"));
  }

  rowsPath(id: string): string {
    return join(this.directory, "rows", `${id}.jsonl`);
  }

  /** Undefined for what is not finished. A file that is no record counts as none: the cell is measured again. */
  get(id: string): CellRecord | undefined {
    if (this.#known.has(id)) return this.#known.get(id);
    let found: CellRecord | undefined;
    if (existsSync(recordPath(this.directory, id))) {
      try {
        found = readJson(recordPath(this.directory, id), cellRecordSchema);
      } catch {
        found = undefined;
      }
    }
    this.#known.set(id, found);
    return found;
  }

  put(record: Omit<CellRecord, "machine" | "made">): void {
    const whole: CellRecord = { ...record, machine: machineName(), made: new Date().toISOString() };
    if (this.#keep) this.#keep(whole);
    else writeRecord(this.directory, whole);
    this.#known.set(record.id, whole);
  }

  /** Takes a record that was made elsewhere for what is finished. */
  know(record: CellRecord): void {
    this.#known.set(record.id, record);
  }

  /** What is finished is looked for anew: others write into the directory, too. */
  forget(): void {
    this.#known.clear();
  }
}
