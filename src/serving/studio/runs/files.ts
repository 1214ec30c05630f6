/** @file What the small files of a run say: its config, where it was computed, and whether it goes on, has ended or was stopped. */
import { existsSync, lstatSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { InputError, readJson } from "../../../base/index.ts";
import { methodOf, readLearnedActivations } from "../../../methods/index.ts";
import {
  bestDirectory,
  checkpointPath,
  isTraining,
  listCheckpoints,
  readCheckpointState,
} from "../../../training/index.ts";
import type { RunState } from "../types.ts";
import type { Totals } from "./metrics-index.ts";

/** Far larger than any that milora writes. */
const MOST_JSON_BYTES = 4 << 20;

/** Only what is shown beside the others has to be right; a run of another version is shown as it is. */
const configSchema = z.looseObject({
  method: z.string(),
  model: z.string(),
  adapter: z.looseObject({}).default({}),
  data: z.looseObject({ dev: z.unknown() }).optional(),
  epochs: z.number().positive().optional(),
  max_steps: z.number().int().positive().optional(),
  patience: z.number().min(0).default(0),
});

export type RunConfig = z.infer<typeof configSchema>;

const environmentSchema = z.looseObject({ started: z.iso.datetime().optional().catch(undefined) });

/** A file of its own, not a link, and of a size that such a file has. @throws InputError */
function requireSmallFile(path: string): void {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  const problem = !stat?.isFile()
    ? "is no file of its own"
    : stat.size > MOST_JSON_BYTES
      ? `has ${stat.size} bytes, more than the ${MOST_JSON_BYTES} that such a file may have`
      : undefined;
  if (problem !== undefined) throw new InputError("FILE_UNREADABLE", path, problem);
}

/** Something read from a small file again only when it has changed. */
export class Watched<T> {
  readonly #path: string;
  readonly #read: (path: string) => T;
  #stamp: string | undefined;
  #value: { readonly value: T } | { readonly error: unknown } | undefined;

  constructor(path: string, read: (path: string) => T) {
    this.#path = path;
    this.#read = read;
  }

  /** Throws what reading throws. */
  get value(): T {
    const stat = lstatSync(this.#path, { throwIfNoEntry: false });
    const stamp = stat ? `${stat.ino}/${stat.size}/${stat.mtimeMs}` : "none";
    if (this.#value === undefined || stamp !== this.#stamp) {
      this.#stamp = stamp;
      try {
        this.#value = { value: this.#read(this.#path) };
      } catch (error) {
        this.#value = { error };
      }
    }
    if ("error" in this.#value) throw this.#value.error;
    return this.#value.value;
  }
}

export const configFile = (run: string): Watched<RunConfig> =>
  new Watched(join(run, "config.json"), (path) => {
    requireSmallFile(path);
    return readJson(path, configSchema);
  });

/** Null where there is none that can be read. */
export const environmentFile = (run: string): Watched<z.infer<typeof environmentSchema> | null> =>
  new Watched(join(run, "environment.json"), (path) => {
    try {
      requireSmallFile(path);
      return readJson(path, environmentSchema);
    } catch {
      return null;
    }
  });

export function rankOf({ adapter }: RunConfig): number | null {
  const rank = adapter.r ?? adapter.init_r;
  return typeof rank === "number" ? rank : null;
}

/** Names of the experts; undefined where nothing is routed, or by a method that is not known. */
export function expertsOf({ method, adapter }: RunConfig): readonly string[] | undefined {
  try {
    const { configSchema, routing } = methodOf(method);
    return routing?.(configSchema.parse(adapter)).experts;
  } catch {
    return undefined;
  }
}

/**
 * Steps that the run is planned for; null where nothing tells. How many steps an epoch has is in no file: each line
 * has the epoch to four digits, so that up to 10,000 steps an epoch the last one tells exactly.
 */
export function plannedSteps({ epochs, max_steps }: RunConfig, { lastStep, epoch }: Totals): number | null {
  const most = max_steps ?? Number.POSITIVE_INFINITY;
  if (epochs === undefined) return max_steps ?? null;
  if (epoch <= 0) return null;
  const perEpoch = Math.round(lastStep / epoch);
  return Math.min(Math.ceil(epochs * perEpoch), most);
}

type Checkpoint = ReturnType<typeof readCheckpointState>;

/** What the newest checkpoint says of how the run went; undefined where there is none. Each new one changes the folder. */
export const newestCheckpoint = (run: string): Watched<Checkpoint | undefined> =>
  new Watched(join(run, "checkpoints"), () => {
    const step = listCheckpoints(run).at(-1);
    if (step === undefined) return undefined;
    try {
      return readCheckpointState(checkpointPath(run, step));
    } catch {
      return undefined;
    }
  });

/** A run that came to its end has evaluated after its last step and saved everything. */
export function stateOf(run: string, config: RunConfig, totals: Totals, saved: Checkpoint | undefined): RunState {
  if (isTraining(run)) return "running";
  const { lastStep, evaluations } = totals;
  // Of what is finished grids remove the checkpoints.
  const bare = saved === undefined && hasBest(run) && !existsSync(join(run, "checkpoints"));
  if (lastStep === 0 || (!bare && (saved === undefined || saved.step < lastStep))) return "stopped";
  const evaluated = evaluations.length === 0 ? hasBest(run) : evaluations.at(-1)!.step === lastStep;
  const planned = plannedSteps(config, totals);
  if (planned !== null && lastStep >= planned && evaluated) return "finished";
  const worse =
    saved?.evaluations_without_improvement ?? evaluations.filter(({ step }) => step > bestStep(totals)).length;
  const early = config.patience > 0 && worse >= config.patience;
  return early ? "finished" : "stopped";
}

const bestStep = ({ best }: Totals): number => best?.step ?? 0;

function hasBest(run: string): boolean {
  return lstatSync(bestDirectory(run), { throwIfNoEntry: false })?.isDirectory() ?? false;
}

/** Learned activation functions of the best adapter. Throws `InputError` for a damaged one. */
export function activationsOf(run: string): ReturnType<typeof readLearnedActivations> {
  const best = bestDirectory(run);
  const own = (path: string, kind: "isDirectory" | "isFile") =>
    lstatSync(path, { throwIfNoEntry: false })?.[kind]() === true;
  if (!own(best, "isDirectory") || !own(join(best, "adapter_model.safetensors"), "isFile")) return [];
  return readLearnedActivations(best);
}
