/** @file A reproduction whose grid workers do: where its jobs are, and how it is followed. */
import { join } from "node:path";
import type { Outcome, RunOptions, Work, World } from "../../evaluation/index.ts";
import {
  ALONE_LEASE_SECONDS,
  adoptRecords,
  LEASE_SECONDS,
  openSweeps,
  RETRIES,
  RETRY_SECONDS,
  type RetryPolicy,
  runGrid,
  type SweepFacts,
  type SweepSpec,
  type SweepStatus,
  type Sweeps,
  sweepOf,
  type WorkerEvent,
  workOn,
} from "../../serving/index.ts";
import { shareOfCores } from "../commands/worker.ts";
import { tellWorker } from "../sweeps/events.ts";
import { databaseUrl } from "../sweeps/flags.ts";
import { note, warn } from "../terminal.ts";

export interface QueueFlags {
  readonly database?: string;
  readonly concurrency?: number;
  readonly retries?: number;
  readonly retryDelay?: number;
  readonly threads?: number;
}

/** A grid's place in a database. */
export interface Queue extends AsyncDisposable {
  readonly sweeps: Sweeps;
  readonly sweep: SweepFacts;
  /** The jobs are this process's own, and nobody else can do them. */
  readonly own: boolean;
}

/**
 * Without a PostgreSQL the jobs are in the directory itself, and done by processes of this command.
 * @param shared whether the database that is named is used
 */
export async function openQueue(output: string, flags: QueueFlags, shared = true): Promise<Queue> {
  const url = shared ? databaseUrl(flags) : undefined;
  const sweep = sweepOf(output);
  const sweeps = await openSweeps(url === undefined ? { directory: join(output, "queue") } : { url });
  if (url === undefined) await sweeps.attempts.takeBack();
  await adoptRecords(sweeps, sweep);
  return { sweeps, sweep, own: url === undefined, [Symbol.asyncDispose]: () => sweeps[Symbol.asyncDispose]() };
}

export const policyOf = ({ retries = RETRIES, retryDelay = RETRY_SECONDS }: QueueFlags): RetryPolicy => ({
  ...{ retries, delaySeconds: retryDelay },
});

/** Who looks at the report meanwhile, in the studio for one, sees it fill. */
const REPORT_MS = 15_000;

/** Options with which the report is written on the way, too. */
export function reporting(options: QueuedOptions, report: () => void): QueuedOptions {
  let written = 0;
  return {
    ...options,
    onEvent(event) {
      options.onEvent?.(event);
      if (event.type !== "measured" || Date.now() - written < REPORT_MS) return;
      report();
      written = Date.now();
    },
  };
}

type QueuedOptions = RunOptions & { readonly signal: AbortSignal };

/** Puts what is open into the queue and waits for it; with `--concurrency` it is worked on here, too. */
export async function runQueued(
  plan: Work,
  world: World,
  { sweeps, sweep, own }: Queue,
  spec: SweepSpec,
  flags: QueueFlags,
  { signal, onEvent }: QueuedOptions,
): Promise<Outcome> {
  const slots = flags.concurrency ?? (own ? 1 : 0);
  const done = new AbortController();
  const working =
    slots === 0
      ? Promise.resolve()
      : workOn(sweeps, {
          ...{ slots, threads: flags.threads ?? shareOfCores(slots), onEvent: tellTrouble },
          leaseSeconds: own ? ALONE_LEASE_SECONDS : LEASE_SECONDS,
          signal: AbortSignal.any([signal, done.signal]),
        });
  const policy = policyOf(flags);
  try {
    const waiting = runGrid(plan, world, sweeps, sweep, {
      spec,
      policy,
      worked: slots > 0,
      signal,
      onEvent,
      onStatus: statusNotes(slots),
    });
    // A worker that fails as a whole is told at once; one that ends does so because of the signal.
    return await Promise.race([waiting, working.then(() => waiting)]);
  } catch (error) {
    if (signal.aborted && !own) note(`the jobs stay in the queue: the same command waits for them again, milora sweep remove ${sweep.id} takes them out`); // biome-ignore format: one line
    throw error;
  } finally {
    done.abort();
    await working;
  }
}

/** What is begun and finished is told by who waits for it. */
function tellTrouble(event: WorkerEvent): void {
  if (event.type === "failed" || event.type === "shunned") tellWorker(event);
}

/** Says what keeps the work from going on. */
function statusNotes(slots: number): (status: SweepStatus | undefined, workers: number) => void {
  let said = "";
  const say = (text: string) => {
    if (text !== said && text !== "") warn(text);
    said = text;
  };
  return (status, workers) => {
    if (!status) say("the database does not answer; waiting for it …");
    else if (workers === 0 && slots === 0 && status.waiting > 0) say("no worker is there; milora worker starts one");
    else say("");
  };
}
