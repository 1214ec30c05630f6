/** @file results.json of `milora reproduce`, read as untrusted input; the results of other commands are passed over. */
import { lstatSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { readJson } from "../../../base/index.ts";
import type { Report } from "../../../evaluation/index.ts";
import type { Reproduction, ReproductionSummary } from "../types.ts";
import { Watched } from "./files.ts";

const MOST_BYTES = 16 << 20;

const text = z.string();
const count = z.number().min(0);
/** What was not finite is null in JSON. */
const figure = z.number().nullable();
const value = z.union([text, figure, z.object({ value: figure, low: figure, high: figure, seeds: count })]);

const tableSchema = z.object({
  name: text,
  title: text,
  columns: z.array(
    z.object({ key: text, title: text, digits: z.union([z.int().min(0).max(20), z.literal("plain")]).optional() }),
  ),
  rows: z.array(z.record(text, value)),
  notes: z.array(text).optional(),
});

const chartSchema = z.discriminatedUnion("kind", [
  z.object({
    ...{ kind: z.literal("lines"), name: text, title: text, x: text, labels: z.array(text).optional() },
    lines: z.array(
      z.object({
        label: text,
        points: z.array(z.tuple([z.number(), figure])),
        spread: z.array(z.tuple([figure, figure])).optional(),
        dashed: z.boolean().optional(),
      }),
    ),
  }),
  z.object({
    ...{ kind: z.literal("shares"), name: text, title: text, rows: z.array(text) },
    ...{ columns: z.array(z.array(figure)), most: z.number().positive(), from: text, to: text },
  }),
]);

const studySchema = z.object({
  ...{ name: text, title: text, about: text, cells: count, done: count, skipped: z.array(text) },
  ...{ tables: z.array(tableSchema), charts: z.array(chartSchema) },
});

const reportSchema = z.object({
  ...{ preset: text, model: text, seeds: count, methods: count, machine: text, made: z.iso.datetime() },
  studies: z.array(studySchema),
  differences: z.array(z.object({ setting: text, paper: text, here: text, methods: z.array(text) })),
  failures: z.array(z.object({ label: text, code: text, reason: text })),
});

/** What the command writes is what is read here. */
type Written = Report extends Omit<Reproduction, "id"> ? z.output<typeof reportSchema> : never;

/** Of a directory with a results.json; the value is undefined where that is something else's, or damaged. */
export function reproductionFile(id: string, directory: string): Watched<Reproduction | undefined> {
  return new Watched(join(directory, "results.json"), (path) => {
    if ((lstatSync(path, { throwIfNoEntry: false })?.size ?? 0) > MOST_BYTES) return undefined;
    try {
      const report: Written = readJson(path, reportSchema);
      return { id, ...report };
    } catch {
      return undefined;
    }
  });
}

export function summaryOf({ id, preset, model, made, studies }: Reproduction): ReproductionSummary {
  return {
    ...{ id, preset, model, made },
    studies: studies.map(({ name, title, cells, done }) => ({ name, title, cells, done })),
  };
}
