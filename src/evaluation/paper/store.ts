/** @file Finished cells on disk, by what decided them, so that nothing is done twice. */
import { existsSync } from "node:fs";
import { cpus } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { readJson, writeFileAtomic } from "../../base/index.ts";

const recordSchema = z.object({
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

export type CellRecord = z.infer<typeof recordSchema>;

/** What a timing belongs to. */
export function machineName(): string {
  return `${cpus()[0]?.model.trim() ?? "unknown"}, ${cpus().length} cores`;
}

/** The output directory: cells/ with what was measured, runs/ with adapters, rows/ with outputs, data/ with rows. */
export class CellStore {
  readonly directory: string;
  readonly #known = new Map<string, CellRecord | undefined>();

  constructor(directory: string) {
    this.directory = directory;
  }

  runDirectory(id: string): string {
    return join(this.directory, "runs", id);
  }

  /** Whether a training has left something to go on from. */
  begun(id: string): boolean {
    return existsSync(join(this.runDirectory(id), "config.json"));
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

  #path(id: string): string {
    return join(this.directory, "cells", `${id}.json`);
  }

  /** Undefined for what is not finished. A file that is no record counts as none: the cell is measured again. */
  get(id: string): CellRecord | undefined {
    if (this.#known.has(id)) return this.#known.get(id);
    let found: CellRecord | undefined;
    if (existsSync(this.#path(id))) {
      try {
        found = readJson(this.#path(id), recordSchema);
      } catch {
        found = undefined;
      }
    }
    this.#known.set(id, found);
    return found;
  }

  put(record: Omit<CellRecord, "machine" | "made">): void {
    const whole: CellRecord = { ...record, machine: machineName(), made: new Date().toISOString() };
    writeFileAtomic(this.#path(record.id), `${JSON.stringify(whole)}\n`);
    this.#known.set(record.id, whole);
  }
}
