/** @file Grids that `milora sweep` has put into directories: grid.json and finished cells, read as untrusted input, each once. */
import { lstatSync } from "node:fs";
import { lstat, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { readJson } from "../../../base/index.ts";
import {
  type CellRecord,
  cellRecordSchema,
  type GridIndex,
  gridResults,
  gridTable,
  readIndex,
} from "../../../evaluation/index.ts";
import type { GridDetail, GridSummary } from "../types.ts";
import type { Found } from "./discover.ts";
import { Watched } from "./files.ts";

/** Far larger than any that milora writes. */
const MOST_BYTES = 16 << 20;
/** Files that are read at a time. */
const MOST_READING = 4;

const number = z.number().nullable();
/** Of a measured cell, or of a training; what was not finite is null in JSON. */
const valueSchema = z.object({
  metric: z.string().optional(),
  value: number.optional(),
  interval: z.tuple([number, number]).nullish(),
  rows: z.number().optional(),
  devPerplexity: number.optional(),
});
const recordSchema = cellRecordSchema.extend({ value: valueSchema });

const resultsSchema = z.object({
  failures: z.array(z.object({ label: z.string(), code: z.string(), reason: z.string() })),
});

/** A file of its own, not a link, and of a size that such a file has. */
const isSmall = (stat: { isFile(): boolean; readonly size: number } | undefined): boolean =>
  stat?.isFile() === true && stat.size <= MOST_BYTES;

function readSmall<T>(path: string, read: () => T): T | undefined {
  if (!isSmall(lstatSync(path, { throwIfNoEntry: false }))) return undefined;
  try {
    return read();
  } catch {
    return undefined;
  }
}

export class GridFolder {
  readonly id: string;
  readonly directory: string;
  readonly #index: Watched<GridIndex | undefined>;
  readonly #failures: Watched<GridDetail["failures"]>;
  readonly #records = new Map<string, CellRecord | undefined>();
  #reading: Promise<void> | undefined;

  constructor({ id, directory }: Found) {
    this.id = id;
    this.directory = directory;
    // A grid.json may also be what somebody gave to the command.
    this.#index = new Watched(join(directory, "grid.json"), (path) => readSmall(path, () => readIndex(directory)));
    this.#failures = new Watched(join(directory, "results.json"), (path) => {
      return readSmall(path, () => readJson(path, resultsSchema).failures) ?? [];
    });
  }

  /** Undefined where there is no grid. */
  async summary(): Promise<GridSummary | undefined> {
    const index = this.#index.value;
    return index && (await this.#summary(index, await this.#finished()));
  }

  /**
   * Undefined where there is no grid.
   * @param within waits for as long as an answer may take
   */
  async detail(
    within: (work: Promise<void>) => Promise<void>,
  ): Promise<(Omit<GridDetail, "points"> & Lines) | undefined> {
    const index = this.#index.value;
    if (!index) return undefined;
    const finished = await this.#finished();
    this.#reading ??= this.#read(finished).finally(() => {
      this.#reading = undefined;
    });
    await within(this.#reading);
    const results = gridResults(index, (id) => this.#records.get(id));
    const { columns, rows } = gridTable(results);
    return {
      ...(await this.#summary(index, finished)),
      ...{ columns, read: [...this.#records.values()].filter(Boolean).length, failures: this.#failures.value },
      lines: results.points.map(({ run, trained, devPerplexity }, i) => ({
        values: rows[i] as Lines["lines"][number]["values"],
        ...{ directory: run === null ? undefined : join(this.directory, run), devPerplexity },
        trained: run === null ? null : trained,
      })),
    };
  }

  async #summary({ grid, points }: GridIndex, finished: ReadonlySet<string>): Promise<GridSummary> {
    const { axes, evaluations } = gridResults({ grid, points: [] }, () => undefined);
    const share = (ids: Iterable<string>) => {
      const all = [...new Set(ids)];
      return { total: all.length, done: all.filter((id) => finished.has(id)).length };
    };
    const cells = await lstat(join(this.directory, "cells")).catch(() => lstat(join(this.directory, "grid.json")));
    return {
      ...{ id: this.id, directory: this.directory, axes, evaluations, updatedAt: cells.mtime.toISOString() },
      trainings: share(points.flatMap(({ run }) => run ?? [])),
      cells: share(points.flatMap((point) => point.cells)),
    };
  }

  async #finished(): Promise<Set<string>> {
    const names = await readdir(join(this.directory, "cells")).catch(() => []);
    return new Set(names.flatMap((name) => (name.endsWith(".json") ? name.slice(0, -".json".length) : [])));
  }

  /** What is new; a finished cell does not change. */
  async #read(finished: ReadonlySet<string>): Promise<void> {
    for (const id of [...this.#records.keys()]) if (!finished.has(id)) this.#records.delete(id);
    const queue = [...finished].filter((id) => !this.#records.has(id)).values();
    const work = async (): Promise<void> => {
      for (const id of queue) this.#records.set(id, await this.#record(id));
    };
    await Promise.all(Array.from({ length: MOST_READING }, work));
  }

  async #record(id: string): Promise<CellRecord | undefined> {
    const path = join(this.directory, "cells", `${id}.json`);
    try {
      if (!isSmall(await lstat(path))) return undefined;
      return recordSchema.parse(JSON.parse(await readFile(path, "utf8")));
    } catch {
      return undefined;
    }
  }
}

/** Points with the directories of their trainings. */
interface Lines {
  readonly lines: readonly (Omit<GridDetail["points"][number], "run"> & { readonly directory: string | undefined })[];
}
