/** @file runs/<name>/: who may write there, config.json, and the way back from a directory to its run. */
import { existsSync, linkSync, readdirSync, readFileSync, rmSync, statSync, writeFile, writeFileSync } from "node:fs";
import { cpus, hostname, totalmem } from "node:os";
import { dirname, join, resolve } from "node:path";
import { isAlive, makeDirectory, readJson, reasonOf, restoreOutput, writeFileAtomic } from "../base/index.ts";
import { runtimeVersion } from "../runtime/index.ts";
import { checkpointsDirectory, listCheckpoints } from "./checkpoint.ts";
import { type TrainingConfig, trainingConfigSchema } from "./config.ts";
import { TrainingError } from "./errors.ts";

const CONFIG_FILE = "config.json";
const ENVIRONMENT_FILE = "environment.json";
const lockPath = (run: string): string => resolve(run, "training.lock");

export const bestDirectory = (run: string): string => join(run, "best");
export const metricsPath = (run: string): string => join(run, "metrics.jsonl");

/** Whether a run has been started there, of which something is left. */
export const holdsRun = (path: string): boolean =>
  [join(path, CONFIG_FILE), metricsPath(path), checkpointsDirectory(path)].some((part) => existsSync(part));

/** The resolved config of a run that has been started, e.g. to resume it. Throws `InputError`. */
export function readRunConfig(run: string): TrainingConfig {
  return readJson(join(run, CONFIG_FILE), trainingConfigSchema);
}

/** How often who trains writes its lock again, and after how long without that it counts as gone, elsewhere. */
const HEARTBEAT_MS = 5000;
const SILENT_MS = 60_000;

/** Who has a lock: a process, and its machine where that is known. */
interface Holder {
  readonly pid: number;
  readonly host: string | undefined;
}

const MINE = `${process.pid} ${hostname()}\n`;

function holderOf(path: string): Holder {
  const [pid = "", host] = readFileSync(path, "utf8").trim().split(" ");
  return { pid: Number.parseInt(pid, 10), host };
}

/**
 * Of this machine a process tells whether it lives; of another one its heartbeats do.
 * @param now by the clock of the lock's file system
 */
function lives(path: string, { pid, host }: Holder, now: number): boolean {
  if (host !== undefined && host !== hostname()) return now - statSync(path).mtimeMs < SILENT_MS;
  // A lock of this process that it does not hold is of one before it that had the same number.
  return pid === process.pid ? held.has(path) : pid > 0 && isAlive(pid);
}

/** Whether a process trains into this directory now, of this machine or of another one that sees it. */
export function isTraining(run: string): boolean {
  const path = lockPath(run);
  if (held.has(path)) return true;
  try {
    return lives(path, holderOf(path), Date.now());
  } catch {
    return false;
  }
}

/**
 * Takes away the lock that a process may have left, which may have been one of another machine. Only for who knows by
 * other means that nobody trains there.
 */
export function breakRunLock(run: string): void {
  rmSync(lockPath(run), { force: true });
}

function isHeld(path: string, now: number): boolean {
  try {
    return lives(path, holderOf(path), now);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return false; // it was let go just now
    throw error;
  }
}

/** Takes the lock, or throws RUN_EXISTS when a living process has it. A dead process's lock is taken over. */
function lock(path: string): void {
  const draft = `${path}.${process.pid}`;
  writeFileSync(draft, MINE);
  const now = statSync(draft).mtimeMs;
  try {
    for (let attempt = 0; attempt < 2; attempt++) {
      try {
        linkSync(draft, path); // there at once with its holder, whenever this process is killed
        return;
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      }
      if (isHeld(path, now)) break;
      rmSync(path, { force: true });
    }
  } finally {
    rmSync(draft, { force: true });
  }
  throw new TrainingError(
    "RUN_EXISTS",
    `another process is training into ${dirname(path)}; wait for it or stop it (if there is none, delete ${path})`,
  );
}

/** Removes what killed processes left half-written; none of it was ever seen under its own name. */
function sweep(directory: string): void {
  if (!existsSync(directory)) return;
  for (const name of readdirSync(directory)) {
    if (/^\..*\.tmp$|^training\.lock\.\d+$/.test(name)) rmSync(join(directory, name), { recursive: true, force: true });
  }
}

/** Locks of this process: a restarted process may get the number of the one that died. */
const held = new Set<string>();

const REFUSALS = new Set([
  "ENOSPC",
  "EDQUOT",
  "EROFS",
  "EACCES",
  "EPERM",
  "ENOTDIR",
  "EEXIST",
  "EISDIR",
  "EIO",
  "ENAMETOOLONG",
]);

/** A file system's refusal (disk full, no permission) as an error that says what to do; anything else as it is. */
export function asUnwritable(path: string, error: unknown): unknown {
  if (!REFUSALS.has((error as NodeJS.ErrnoException | undefined)?.code ?? "")) return error;
  const message = `${path} cannot be written (${reasonOf(error)}); make room, or choose another output_dir`;
  return new TrainingError("OUTPUT_UNWRITABLE", message, { cause: error });
}

/** Machine and versions: they decide how fast a run is, and its last bits. */
function environment(): Record<string, string | number> {
  const manifest = new URL("../../package.json", import.meta.url); // same place from src/training and dist/training
  return {
    milora: (JSON.parse(readFileSync(manifest, "utf8")) as { version: string }).version,
    onnxruntime: runtimeVersion(),
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: cpus().length,
    memory_gib: Number((totalmem() / 2 ** 30).toFixed(1)),
    started: new Date().toISOString(),
  };
}

/** A run's directory, held by this process until disposed. */
export class RunDirectory implements Disposable {
  readonly path: string;
  /** The newest complete checkpoint to go on from. */
  readonly checkpoint: number | undefined;
  readonly #lock: string;
  readonly #heart: NodeJS.Timeout;

  private constructor(path: string, checkpoint: number | undefined) {
    this.path = path;
    this.checkpoint = checkpoint;
    this.#lock = lockPath(path);
    // Written over, so that its time is the file system's. Who has lost it has nothing to write into.
    const beat = () => writeFile(this.#lock, MINE, { flag: "r+" }, () => {});
    this.#heart = setInterval(beat, HEARTBEAT_MS).unref();
  }

  /**
   * Makes or reopens the directory. Throws RUN_EXISTS when it holds a run that is not to be resumed, or another
   * process is training into it, CHECKPOINT_MISSING when there is no run to resume, and OUTPUT_UNWRITABLE. A run that
   * ended before its first checkpoint starts anew.
   */
  static open(path: string, resume: boolean): RunDirectory {
    try {
      return RunDirectory.#open(path, resume);
    } catch (error) {
      throw asUnwritable(path, error);
    }
  }

  static #open(path: string, resume: boolean): RunDirectory {
    const known = holdsRun(path);
    if (resume && !known) {
      throw new TrainingError("CHECKPOINT_MISSING", `${path} holds no run to resume; start it without resuming`);
    }
    if (!resume && known) {
      throw new TrainingError("RUN_EXISTS", `${path} already holds a run; resume it, or choose another output_dir`);
    }
    makeDirectory(path);
    lock(lockPath(path));
    held.add(lockPath(path));
    restoreOutput(bestDirectory(path));
    sweep(path);
    sweep(checkpointsDirectory(path));
    return new RunDirectory(path, listCheckpoints(path).at(-1));
  }

  /** config.json, and environment.json: where this process computes, for whoever looks at the run later. */
  writeConfig(config: TrainingConfig): void {
    const write = (name: string, value: unknown) =>
      writeFileAtomic(join(this.path, name), `${JSON.stringify(value, null, 2)}\n`);
    write(CONFIG_FILE, config);
    write(ENVIRONMENT_FILE, environment());
  }

  [Symbol.dispose](): void {
    clearInterval(this.#heart);
    if (held.delete(this.#lock)) rmSync(this.#lock, { force: true });
  }
}
