/** @file Finds runs, reproductions and grids below folders: only regular files that lie there, and never more than a bounded search. */
import type { Dirent } from "node:fs";
import { readdir, realpath } from "node:fs/promises";
import { basename, join } from "node:path";

const MOST_DEPTH = 8;
const MOST_DIRECTORIES = 20_000;
const MOST_FOUND = 2000;

/** Directories of a run, of cells and of packages: no runs lie below them. */
const PASSED_OVER = new Set(["checkpoints", "best", "tensorboard", "node_modules", "cells"]);

export interface Found {
  /** `/` between its parts; the folder's name comes first where there are several. */
  readonly id: string;
  readonly directory: string;
}

export interface Findings {
  readonly runs: readonly Found[];
  /** Directories with a results.json, which may be something else's. */
  readonly results: readonly Found[];
  /** Directories with a grid.json, which may be something else's. */
  readonly grids: readonly Found[];
}

/** Names by which folders are told apart. */
export function namesOf(folders: readonly string[]): string[] {
  const names: string[] = [];
  for (const folder of folders) {
    const name = basename(folder) || "runs";
    let free = name;
    for (let n = 2; names.includes(free); n++) free = `${name}-${n}`;
    names.push(free);
  }
  return names;
}

/** What lies below the folders, by name. One that is not there holds nothing. */
export async function discover(folders: readonly string[]): Promise<Findings> {
  const runs: Found[] = [];
  const results: Found[] = [];
  const grids: Found[] = [];
  const names = namesOf(folders);
  for (const [i, folder] of folders.entries()) {
    const name = names[i]!;
    for await (const { directory, path, holds } of walk(folder)) {
      const id = folders.length > 1 || path.length === 0 ? [name, ...path].join("/") : path.join("/");
      const list = { run: runs, results, grid: grids }[holds];
      if (list.length < MOST_FOUND) list.push({ id, directory });
    }
  }
  return { runs, results, grids };
}

interface Place {
  readonly directory: string;
  readonly path: readonly string[];
}

/** Links are not followed: one that leaves the folder must not, and what one within it leads to is found anyway. */
async function* walk(folder: string): AsyncGenerator<Place & { readonly holds: "run" | "results" | "grid" }> {
  const places: Place[] = [{ directory: await realpath(folder).catch(() => folder), path: [] }];
  for (let next = 0; next < places.length; next++) {
    const place = places[next]!;
    const { directory, path } = place;
    const entries = await readdir(directory, { withFileTypes: true }).catch((): Dirent[] => []);
    const has = (name: string) => entries.some((entry) => entry.name === name && entry.isFile());
    if (has("config.json") && has("metrics.jsonl")) {
      yield { ...place, holds: "run" };
      continue;
    }
    if (has("results.json")) yield { ...place, holds: "results" };
    if (has("grid.json")) yield { ...place, holds: "grid" };
    if (path.length === MOST_DEPTH) continue;
    for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
      if (!entry.isDirectory() || entry.name.startsWith(".") || PASSED_OVER.has(entry.name)) continue;
      if (places.length === MOST_DIRECTORIES) return;
      places.push({ directory: join(directory, entry.name), path: [...path, entry.name] });
    }
  }
}
