/** @file What a grid is told: settings of `milora train` with axes of values, or adapters that are there, and what to measure. */
import { existsSync } from "node:fs";
import { basename, resolve } from "node:path";
import { z } from "zod";
import { InputError, parseWith } from "../../base/index.ts";
import { DEVICE_NAMES, type DeviceName } from "../../runtime/index.ts";
import { assign, isSettings, PRESETS, readConfigFile, type Settings, settingPath } from "../../training/index.ts";
import { PROTOCOLS } from "../task.ts";

const text = z.string().min(1);
const count = z.int().min(1);

const evaluationSchema = z
  .strictObject({
    name: text.optional().describe("What tables call it; default the task, or the file's name."),
    data: text.optional().describe("Rows with instruction, output and answer, as `milora eval --data` takes them."),
    task: text.optional().describe("A task, as `milora eval --tasks` names it."),
    metric: z.enum(["accuracy", "perplexity"]).default("accuracy").describe("Of `data`."),
    protocol: z.enum(PROTOCOLS).default("hu2023").describe("Of `task`."),
    num_fewshot: z.int().min(0).optional().describe("Of `task`: solved questions in front; default the task's own."),
    data_dir: text.optional().describe("Of `task`: rows of tasks; default what is bundled, else the hub."),
    template: text.optional().describe("Default that of the adapter's training, else alpaca."),
    limit: count.optional().describe("Only the first rows."),
    beams: count.default(1),
    max_new_tokens: count.optional().describe("Default the task's own; 32 for `data`."),
    seed: z.int().min(0).default(1234).describe("Of `task`: of drawing shots, and of the bootstrap."),
  })
  .superRefine((one, context) => {
    const problem = (message: string) => context.addIssue({ code: "custom", message });
    if ((one.data === undefined) === (one.task === undefined)) problem("needs either data or task");
    if (one.task !== undefined && one.metric === "perplexity") problem("metric perplexity is of data, not of a task");
    const ofTasks = (["num_fewshot", "data_dir"] as const).filter((key) => one[key] !== undefined);
    if (one.task === undefined) for (const key of ofTasks) problem(`${key} is of a task`);
  });

/** One thing that is measured of every adapter. */
export type Evaluation = z.infer<typeof evaluationSchema>;

export const gridSchema = z
  .strictObject({
    train: z
      .record(z.string(), z.unknown())
      .optional()
      .describe("Settings of `milora train` that all trainings share."),
    preset: z.enum(PRESETS).optional().describe("Begin with the paper's recipe, or one for small models."),
    axes: z
      .record(text, z.array(z.unknown()).min(1))
      .default({})
      .describe("For settings by dotted path, e.g. adapter.r: the values to be tried, each with each."),
    adapters: z.array(text.nullable()).min(1).optional().describe("Instead of `train`: adapters, null for none."),
    model: text.optional().describe("With `adapters`: their backbone."),
    weights: z.enum(["float32", "int8", "int4"]).optional().describe("With `adapters`: how it is held."),
    device: z
      .enum(DEVICE_NAMES as readonly [DeviceName, ...DeviceName[]])
      .optional()
      .describe("With `adapters`."),
    evaluate: z.array(evaluationSchema).min(1).describe("What is measured of each."),
  })
  .superRefine((grid, context) => {
    const problem = (message: string) => context.addIssue({ code: "custom", message });
    const { train, adapters, axes } = grid;
    if ((train === undefined) === (adapters === undefined)) problem("needs either train or adapters");
    if (adapters && grid.model === undefined) problem("adapters need the model that they are of");
    if (adapters && (Object.keys(axes).length > 0 || grid.preset !== undefined)) {
      problem("axes and preset are of trainings; adapters and evaluate are the axes of a grid without any");
    }
    for (const key of train ? (["model", "weights", "device"] as const) : []) {
      if (grid[key] !== undefined) problem(`${key} is a setting of train here: train.${key}`);
    }
    for (const axis of Object.keys(axes)) {
      if (settingPath(axis) === undefined) problem(`axes: "${axis}" is no path of a setting, such as adapter.r`);
      else if (axis === "output_dir") problem("axes: output_dir: each run gets a directory of its own");
      else if (new Set(axes[axis]!.map((value) => JSON.stringify(value))).size < axes[axis]!.length) {
        problem(`axes: ${axis} has a value twice`);
      }
    }
    if (train?.output_dir !== undefined) problem("train: output_dir: each run gets a directory of its own");
    const names = [...(adapters ? ["adapter"] : Object.keys(axes)), ...grid.evaluate.map(nameOf)];
    for (const name of new Set(names.filter((name, i) => names.indexOf(name) !== i))) {
      problem(`evaluate: "${name}" is there twice; give each a name`);
    }
  });

export type Grid = z.infer<typeof gridSchema>;

/** What tables call an evaluation. */
export function nameOf({ name, task, data, metric }: Evaluation): string {
  return name ?? task ?? `${basename(data ?? "")}${metric === "perplexity" ? " perplexity" : ""}`;
}

/**
 * A grid of a YAML or JSON file. `train` may be the path of a config of `milora train`, which is read into it.
 * @throws InputError CONFIG_INVALID and what `readConfigFile` throws
 */
export function readGrid(path: string): Grid {
  const { train, ...rest } = readConfigFile(path);
  const settings = typeof train === "string" ? readConfigFile(train) : train;
  return parseWith(gridSchema, { ...rest, ...(settings !== undefined && { train: settings }) }, path);
}

/** Settings of one training, by the axes' names. */
export type Point = Readonly<Record<string, unknown>>;

/** The values of the axes, each with each; the last axis changes first. */
export function pointsOf({ axes }: Grid): Point[] {
  return Object.entries(axes).reduce<Point[]>(
    (points, [axis, values]) => points.flatMap((point) => values.map((value) => ({ ...point, [axis]: value }))),
    [{}],
  );
}

/** Most cells of a grid: what is more is a slip. */
const MOST_CELLS = 20_000;

/** @throws InputError CONFIG_INVALID */
export function checkSize(grid: Grid): void {
  const rows = grid.adapters?.length ?? Object.values(grid.axes).reduce((total, { length }) => total * length, 1);
  const cells = rows * grid.evaluate.length;
  if (cells <= MOST_CELLS) return;
  throw new InputError("CONFIG_INVALID", "grid", `has ${cells} cells, more than ${MOST_CELLS}; make several of it`);
}

/** Files that are here from the root, patterns too; names of data sets, models and templates stay what they are. */
function whole(path: string): string {
  const fixed = path.split(/[*?{]/)[0]!;
  const there = fixed === path ? existsSync(path) : existsSync(fixed.replace(/[^/]*$/, "") || ".");
  return there && !path.startsWith("hf:") ? resolve(path) : path;
}

const wholeIfText = (value: unknown): unknown => (typeof value === "string" ? whole(value) : value);

function wholeSource(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(wholeSource);
  if (!isSettings(value)) return wholeIfText(value);
  const { path, template, ...rest } = value;
  return { ...rest, path: wholeIfText(path), ...(template !== undefined && { template: wholeIfText(template) }) };
}

function wholeSettings(settings: Settings): Settings {
  const { model, data } = settings;
  if (isSettings(data)) {
    const { train, dev, template } = data;
    const given = { train: wholeSource(train), dev: wholeSource(dev), template: wholeIfText(template) };
    const files = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
    return { ...settings, ...(model !== undefined && { model: wholeIfText(model) }), data: { ...data, ...files } };
  }
  return model === undefined ? settings : { ...settings, model: wholeIfText(model) };
}

function wholeValue(axis: string, value: unknown): unknown {
  const path = settingPath(axis)!;
  const settings: Settings = {};
  assign(settings, path, value);
  return path.reduce<unknown>((part, key) => (part as Settings)[key], wholeSettings(settings));
}

/** The grid as other machines may be told, which have the same files at the same places. */
export function portableGrid(grid: Grid): Grid {
  const { train, axes, adapters, model, evaluate } = grid;
  return {
    ...grid,
    ...(train && { train: wholeSettings(train) }),
    axes: Object.fromEntries(
      Object.entries(axes).map(([axis, values]) => [axis, values.map((value) => wholeValue(axis, value))]),
    ),
    ...(adapters && { adapters: adapters.map((path) => path && whole(path)) }),
    ...(model !== undefined && { model: whole(model) }),
    evaluate: evaluate.map((one) => ({
      ...one,
      name: nameOf(one),
      ...(one.data !== undefined && { data: whole(one.data) }),
      ...(one.data_dir !== undefined && { data_dir: whole(one.data_dir) }),
      ...(one.template !== undefined && { template: whole(one.template) }),
    })),
  };
}
