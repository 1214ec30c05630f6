/** @file What a machine takes for the work of a server: the file that `milora bench` writes, and times in between what it measured. */
import { z } from "zod";
import { readJson } from "../../base/index.ts";
import type { EngineCosts } from "../../generation/index.ts";

const ms = z.number().min(0);
const count = z.int().min(1);
const bytes = z.int().min(0);

/** Increasing in what is not the time. */
const readPoints = z.array(z.strictObject({ tokens: count, ms })).min(1);
const stepPoints = z.array(z.strictObject({ rows: count, one: ms, each: ms })).min(1);

const methodSchema = z.strictObject({
  name: z.string().min(1).describe("bare, or the method of the adapters"),
  options: z.record(z.string(), z.unknown()).describe("their settings"),
  joins: z.boolean().describe("whether prompts and rows of different adapters run together"),
  adapterBytes: bytes.describe("memory that a server counts for an adapter"),
  loadMs: ms.describe("from the files of an adapter to its first use"),
  read: readPoints.describe("a prompt of so many tokens, from its submission to the first token"),
  promptMs: ms.describe("a further prompt of another adapter in a pass, beside its tokens"),
  positions: z.number().min(0).describe("positions in the cache of each row, in the steps below"),
  step: stepPoints.describe("a step of so many rows: all of one adapter, and each of its own"),
  positionMs: ms.describe("a step, for each further position of a row"),
  changedMs: ms.describe("a step after rows have come or gone"),
});

export const profileSchema = z.strictObject({
  version: z.literal(1),
  created: z.string(),
  machine: z.strictObject({
    cpu: z.string(),
    cores: count,
    threads: count,
    memoryBytes: bytes,
    system: z.string(),
    node: z.string(),
    milora: z.string(),
    device: z.string().default("cpu").describe("where it computed"),
    busy: z.number().min(0).max(1).describe("share of the processors that others used before it began"),
  }),
  model: z.strictObject({
    name: z.string(),
    type: z.string(),
    weights: z.string(),
    layers: count,
    hiddenSize: count,
    context: count,
    bytes,
    loadMs: ms,
    kvBytesPerPosition: bytes,
  }),
  processBytes: bytes.describe("memory of a server beside backbone, adapters and key-value cache"),
  http: z.strictObject({
    requestMs: ms.describe("a request, beside reading and generating"),
    tokenMs: ms.describe("a token of a stream"),
  }),
  methods: z.array(methodSchema).min(1),
});

export type Profile = z.infer<typeof profileSchema>;
export type MethodProfile = z.infer<typeof methodSchema>;

/** @throws InputError FILE_UNREADABLE, JSON_INVALID, CONFIG_INVALID */
export function readProfile(path: string): Profile {
  return readJson(path, profileSchema);
}

/** What serving under a method costs. */
export function costsOf(profile: Profile, method: MethodProfile): EngineCosts {
  const read = interpolation(method.read.map(({ tokens, ms }) => [tokens, ms]));
  const one = interpolation(method.step.map((point) => [point.rows, point.one]));
  const each = interpolation(method.step.map((point) => [point.rows, point.each]));
  const { promptMs, positionMs, changedMs, positions: measured } = method;
  const { tokenMs } = profile.http;
  return {
    layers: profile.model.layers,
    joins: method.joins,
    read: ({ tokens, prompts }) => read(tokens) + (prompts - 1) * promptMs + prompts * tokenMs,
    step({ runs, adapters, positions, changed }) {
      const rows = runs.reduce((sum, own) => sum + own, 0);
      let time = 0;
      if (method.joins) {
        const share = rows > 1 ? (adapters - 1) / (rows - 1) : 0;
        time = one(rows) + share * (each(rows) - one(rows));
      } else for (const own of runs) time += one(own);
      const further = positionMs * (positions - rows * measured);
      return Math.max(0, time + further) + rows * tokenMs + (changed ? changedMs : 0);
    },
  };
}

/**
 * What it would be with a model of its own for each tenant, the adapter merged into it: the bare model's times, but rows of
 * different tenants run by themselves, and what is loaded is a whole model.
 */
export function modelEach(profile: Profile): MethodProfile {
  const bare = profile.methods.find(({ name }) => name === "bare") ?? profile.methods[0]!;
  const { bytes: adapterBytes, loadMs } = profile.model;
  return { ...bare, name: MODEL_EACH, options: {}, joins: false, adapterBytes, loadMs };
}

export const MODEL_EACH = "model each";

/** Linear between points, and on beyond the last two; below the first in proportion to its distance from them. */
export function interpolation(points: readonly (readonly [x: number, y: number])[]): (x: number) => number {
  const sorted = points.toSorted(([a], [b]) => a - b);
  return (x) => {
    if (sorted.length === 1) return sorted[0]![1];
    let at = 1;
    while (at < sorted.length - 1 && sorted[at]![0] < x) at++;
    const [[x0, y0], [x1, y1]] = [sorted[at - 1]!, sorted[at]!];
    return Math.max(0, y0 + ((x - x0) / (x1 - x0)) * (y1 - y0));
  };
}
