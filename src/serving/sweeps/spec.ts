/** @file What is asked for, as it travels through the database: a grid that every machine plans for itself, and jobs of it. */
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { z } from "zod";
import {
  type CellRecord,
  findPreset,
  gridSchema,
  openWorld,
  type Preset,
  planGrid,
  planOf,
  portableGrid,
  REPRODUCE_PRESETS,
  type Work,
  type World,
} from "../../evaluation/index.ts";
import { DEVICE_NAMES, type DeviceName } from "../../runtime/index.ts";

/** Tables and figures with a preset and what differs from it; not the preset itself, whose paths are each machine's own. */
const paperSpecSchema = z.strictObject({
  names: z.array(z.string()).min(1),
  preset: z.enum(REPRODUCE_PRESETS),
  changes: z.strictObject({
    model: z.string().optional(),
    backbones: z.array(z.string()).optional(),
    device: z.enum(DEVICE_NAMES as readonly [DeviceName, ...DeviceName[]]).optional(),
    dataDirectory: z.string().optional(),
    seeds: z.int().min(1).optional(),
    judged: z.boolean().optional(),
  }),
});

export type PaperSpec = z.infer<typeof paperSpecSchema>;

export const sweepSpecSchema = z.union([paperSpecSchema, z.strictObject({ grid: gridSchema })]);

export type SweepSpec = z.infer<typeof sweepSpecSchema>;

export const jobDataSchema = z.object({
  /** Of its request. */
  spec: z.string(),
  label: z.string(),
  /** In its request: earlier ones come first. */
  place: z.int(),
  /** Runs and cells that it has to record. */
  cells: z.array(z.string()),
  /** Runs of other jobs that must be finished before. */
  after: z.array(z.string()),
});

export type JobData = z.infer<typeof jobDataSchema>;

export function presetOfSpec({ preset, changes }: PaperSpec): Preset {
  const given = Object.entries(changes).filter(([, value]) => value !== undefined);
  return { ...findPreset(preset), ...(Object.fromEntries(given) as Partial<Preset>) };
}

/** Paths that are here, from the root: whoever else has them mounts them at the same place. Names stay what they are. */
export function portableSpec(spec: SweepSpec): SweepSpec {
  if ("grid" in spec) return { grid: portableGrid(spec.grid) };
  const whole = (path: string) => (existsSync(path) ? resolve(path) : path);
  const { model, backbones, dataDirectory, ...rest } = spec.changes;
  return {
    ...spec,
    changes: {
      ...rest,
      ...(model !== undefined && { model: whole(model) }),
      ...(backbones !== undefined && { backbones: backbones.map(whole) }),
      ...(dataDirectory !== undefined && { dataDirectory: whole(dataDirectory) }),
    },
  };
}

/**
 * What a spec asks for, as it stands in a directory.
 * @param keep takes what is finished, instead of the directory
 */
export async function openSpec(
  spec: SweepSpec,
  directory: string,
  keep?: (record: CellRecord) => void,
): Promise<Disposable & { readonly world: World; readonly work: Work }> {
  const preset = "grid" in spec ? { dataDirectory: undefined } : presetOfSpec(spec);
  const world = openWorld(preset, directory, undefined, keep);
  try {
    const work =
      "grid" in spec ? await planGrid(spec.grid, world) : await planOf(spec.names, presetOfSpec(spec), world);
    return { world, work, [Symbol.dispose]: () => world[Symbol.dispose]() };
  } catch (error) {
    world[Symbol.dispose]();
    throw error;
  }
}
