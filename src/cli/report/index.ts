/** @file Writes a run's report. */
import { join } from "node:path";
import { writeFileAtomic } from "../../base/index.ts";
import { page } from "./page.ts";
import { readRun } from "./read.ts";

/** Writes `report.html` into a run's directory, from its files, and returns its path. Throws `InputError`. */
export function writeReport(run: string): string {
  const path = join(run, "report.html");
  writeFileAtomic(path, page(readRun(run)));
  return path;
}
