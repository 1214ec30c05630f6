/** @file The directory of a sweep says which one it is: who sees another directory at that path must not write there. */

import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { z } from "zod";
import { InputError, readJson, reasonOf } from "../../base/index.ts";
import type { SweepFacts } from "./status.ts";

const FILE = "sweep.json";
const markerSchema = z.object({ id: z.string().regex(/^[0-9a-f]{16}$/) });

/** The sweep of a directory, which gets one if it has none. @throws InputError */
export function sweepOf(directory: string): SweepFacts {
  const path = join(directory, FILE);
  try {
    mkdirSync(directory, { recursive: true });
    writeFileSync(path, `${JSON.stringify({ id: randomBytes(8).toString("hex") })}\n`, { flag: "wx" });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") {
      throw new InputError("OUTPUT_UNWRITABLE", directory, reasonOf(error), { cause: error });
    }
  }
  return { id: readJson(path, markerSchema).id, directory: resolve(directory) };
}

/** Why a machine cannot work in the sweep's directory; undefined: it can. */
export function strangerTo({ id, directory }: SweepFacts): string | undefined {
  const path = join(directory, FILE);
  try {
    readFileSync(path);
  } catch {
    return `${directory} is not here; mount the sweep's directory at this path`;
  }
  try {
    if (readJson(path, markerSchema).id === id) return undefined;
  } catch {
    // no marker of ours
  }
  return `${directory} is another directory here; mount the sweep's at this path`;
}
