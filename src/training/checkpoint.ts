/** @file Checkpoints: everything a run needs to go on as if it had never stopped, written as one directory or not at all. */
import { createHash } from "node:crypto";
import { closeSync, existsSync, openSync, readdirSync, readSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { z } from "zod";
import { readJson, writeDirectoryAtomic, writeFileAtomic } from "../base/index.ts";
import type { Adapter, Method } from "../methods/index.ts";
import { SafetensorsFile, writeSafetensors } from "../models/index.ts";
import type { Tensor } from "../runtime/index.ts";
import { configDifferences } from "./config.ts";
import { TrainingError } from "./errors.ts";

const STATE_FILE = "state.json";
const TENSORS_FILE = "optimizer.safetensors";

const stepCount = z.int().min(0);

const stateSchema = z.strictObject({
  format: z.literal(1),
  /** Optimizer steps done. The order of the data and the learning rate follow from it and the seed alone. */
  step: stepCount,
  /** The step at which the adapter got its present structure; its learning-rate schedule begins there. */
  stage_start: stepCount.default(0),
  /** Updates of each parameter group: AdamW's bias correction, and the position in the order of dev batches. */
  updates: z.partialRecord(z.enum(["weights", "activation"]), stepCount),
  best: z.strictObject({ step: stepCount, dev_loss: z.number(), dev_perplexity: z.number() }).nullable(),
  evaluations_without_improvement: stepCount,
  /** Step of the last evaluation, -1 before the first. */
  last_evaluation: z.int().min(-1),
  /** Length of metrics.jsonl. */
  metrics_bytes: stepCount,
  /** Time spent on the run so far. */
  seconds: z.number().min(0),
  /** What decides the run's course, by field: config, backbone and data. */
  identity: z.record(z.string(), z.string()),
  identity_digest: z.string(),
  /** SHA-256 of the files beside this one; checkpoints of earlier versions have none. */
  sums: z.record(z.string(), z.string()).optional(),
});

export type CheckpointState = z.infer<typeof stateSchema>;

export function checkpointsDirectory(run: string): string {
  return join(run, "checkpoints");
}

/** Steps of the complete checkpoints of a run, ascending. */
export function listCheckpoints(run: string): number[] {
  let names: string[];
  try {
    names = readdirSync(checkpointsDirectory(run));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
  return names
    .map((name) => /^step-(\d+)$/.exec(name)?.[1])
    .filter((digits) => digits !== undefined)
    .map(Number)
    .sort((a, b) => a - b);
}

export function checkpointPath(run: string, step: number): string {
  return join(checkpointsDirectory(run), `step-${step}`);
}

/**
 * Writes `checkpoints/step-N` and removes all but the newest `keep`.
 * @param tensors what is kept beside the adapter, `Trainer.tensors`
 */
export async function saveCheckpoint(
  run: string,
  adapter: Adapter,
  tensors: ReadonlyMap<string, Tensor>,
  state: CheckpointState,
  keep: number,
): Promise<string> {
  const path = checkpointPath(run, state.step);
  await writeDirectoryAtomic(path, (directory) => {
    adapter.saveInto(directory);
    writeSafetensors(join(directory, TENSORS_FILE), tensors, { format: "pt" });
    const sums = Object.fromEntries(readdirSync(directory).map((name) => [name, sumOf(join(directory, name))]));
    writeFileAtomic(join(directory, STATE_FILE), `${JSON.stringify({ ...state, sums }, null, 2)}\n`);
  });
  for (const step of listCheckpoints(run).slice(0, -keep)) {
    rmSync(checkpointPath(run, step), { recursive: true, force: true });
  }
  return path;
}

function sumOf(path: string): string {
  const hash = createHash("sha256");
  const chunk = Buffer.allocUnsafe(1 << 20);
  const file = openSync(path, "r");
  try {
    for (let read = readSync(file, chunk); read > 0; read = readSync(file, chunk)) hash.update(chunk.subarray(0, read));
  } finally {
    closeSync(file);
  }
  return hash.digest("hex");
}

/** @throws TrainingError CHECKPOINT_INVALID when a file is gone or not what was written: a run would go on with other numbers */
export function requireUndamaged(path: string, { sums = {} }: CheckpointState): void {
  const damaged = Object.entries(sums).filter(([name, sum]) => {
    const file = join(path, basename(name));
    return !existsSync(file) || sumOf(file) !== sum;
  });
  if (damaged.length === 0) return;
  const names = damaged.map(([name]) => name).join(", ");
  const problem = `${path}: ${names} is not what was written; remove this folder and resume from the checkpoint before`;
  throw new TrainingError("CHECKPOINT_INVALID", problem);
}

/** Reads and checks the state of a checkpoint. Throws `InputError` for a file that does not hold one. */
export function readCheckpointState(path: string): CheckpointState {
  return readJson(join(path, STATE_FILE), stateSchema);
}

/**
 * Throws CHECKPOINT_MISMATCH, naming every difference, when the checkpoint belongs to another run.
 * @param defaults of fields that the checkpoint may be too old to know
 */
export function requireSameRun(
  path: string,
  state: CheckpointState,
  identity: ReadonlyMap<string, string>,
  defaults: ReadonlyMap<string, string>,
): void {
  const differences = configDifferences(new Map(Object.entries(state.identity)), identity, defaults);
  if (differences.length === 0) return;
  throw new TrainingError(
    "CHECKPOINT_MISMATCH",
    `${path} belongs to another run: ${differences.join("; ")}. Resume with the settings it was made with, or choose another output_dir`,
  );
}

/**
 * The config of a checkpoint's adapter in all fields of today: one that its file does not have is what its absence means
 * there, which a new adapter's default need not be. Empty for the file of another method.
 */
export function adapterFieldsOf(path: string, method: Method): Readonly<Record<string, unknown>> {
  const parsed = method.configSchema.safeParse(readJson(join(path, "adapter_config.json"), z.unknown()));
  return parsed.success ? (parsed.data as Record<string, unknown>) : {};
}

/** Fills tensors from a checkpoint. Throws CHECKPOINT_INVALID when they do not fit. */
export function loadTensors(path: string, tensors: ReadonlyMap<string, Tensor>): void {
  const where = join(path, TENSORS_FILE);
  using file = SafetensorsFile.open(where);
  for (const [name, tensor] of tensors) {
    const found = file.entries.get(name);
    if (found === undefined || found.shape.join() !== tensor.shape.join() || found.storedDType !== "F32") {
      const what = found === undefined ? "is missing" : `is ${found.storedDType} [${found.shape.join(", ")}]`;
      throw new TrainingError(
        "CHECKPOINT_INVALID",
        `${where}: ${name} ${what}, expected F32 [${tensor.shape.join(", ")}]`,
      );
    }
    file.readFloat32(name, tensor.data as Float32Array);
  }
}

/** Numbers that ran away: what there is from before. Nothing is saved of the state in which they did. */
export function withCheckpoint(error: unknown, run: string): unknown {
  if (!(error instanceof TrainingError) || error.code !== "TRAINING_NOT_FINITE") return error;
  const newest = listCheckpoints(run).at(-1);
  const kept =
    newest === undefined ? "there is no checkpoint yet" : `the newest checkpoint is ${checkpointPath(run, newest)}`;
  return new TrainingError(error.code, `${error.message}; ${kept}`, { cause: error, exitCode: error.exitCode });
}
