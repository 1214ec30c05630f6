/** @file The process that trains and measures for a worker: a job at a time, results told as they come, nothing after its lease. */

import { MiloraError, reasonOf } from "../../base/index.ts";
import { pieceOf, problemsOf, type RunEvent, runPlan } from "../../evaluation/index.ts";
import { configureRuntime } from "../../runtime/index.ts";
import { breakRunLock } from "../../training/index.ts";
import type { Progress } from "./attempts.ts";
import type { FromSlot, SlotJob, ToSlot } from "./messages.ts";
import { openSpec } from "./spec.ts";

const CHECK_MS = 500;

const tell = (message: FromSlot): void => void process.send?.(message);

/** At once: what another worker has begun must not be written into. */
const end = (): void => void process.kill(process.pid, "SIGKILL");

interface Opened {
  readonly key: string;
  readonly spec: Awaited<ReturnType<typeof openSpec>>;
}

let opened: Opened | undefined;
let stop: AbortController | undefined;
let heard = Date.now();

async function open({ key, directory, spec }: SlotJob): Promise<Opened["spec"]> {
  const whole = `${key} ${directory}`;
  if (opened?.key === whole) return opened.spec;
  opened?.spec[Symbol.dispose]();
  opened = undefined;
  const made = await openSpec(spec, directory, (record) => tell({ type: "record", record }));
  opened = { key: whole, spec: made };
  return made;
}

/** What is told of a job on its way, as far as it is news to those who watch. */
function progressOf(): (event: RunEvent) => void {
  let text = "";
  let last = 0;
  const move = (progress: Progress) => {
    if (Date.now() - last < CHECK_MS && progress.done > 0) return;
    last = Date.now();
    tell({ type: "progress", progress });
  };
  return (event) => {
    if (event.type === "training") text = event.runs.map(({ label }) => label).join(", ");
    else if (event.type === "measuring") text = event.cell.label;
    else if (event.type === "step") move({ text, done: event.step, total: event.totalSteps });
    else if (event.type === "row") move({ text, done: event.done, total: event.total });
  };
}

async function work(job: SlotJob, signal: AbortSignal): Promise<FromSlot> {
  let prepared: Opened["spec"];
  try {
    prepared = await open(job);
  } catch (error) {
    return { type: "unsuited", reason: reasonOf(error) };
  }
  const { work: plan, world } = prepared;
  world.store.forget();
  for (const record of job.known) world.store.know(record);
  const piece = pieceOf(plan, world.store, new Set(job.cells));
  if (piece.unknown.length > 0) {
    const [problem] = problemsOf(plan);
    return { type: "unsuited", reason: problem ?? "it plans other cells: its milora, models or data are not the same" };
  }
  if (job.again) for (const { id } of piece.trainings) breakRunLock(world.store.runDirectory(id));
  const onEvent = progressOf();
  const { failures } = await runPlan(piece.plan, world, { signal, onEvent }, piece.trainings);
  return { type: "end", failures, interrupted: false };
}

async function receive(job: SlotJob): Promise<void> {
  stop = new AbortController();
  heard = Date.now();
  const watch = watchLease(job.leaseSeconds);
  let answer: FromSlot;
  try {
    answer = await work(job, stop.signal);
  } catch (error) {
    const code = error instanceof MiloraError ? error.code : "UNEXPECTED";
    const failures = [{ label: job.label, code, reason: reasonOf(error) }];
    answer = { type: "end", failures, interrupted: stop.signal.aborted };
  }
  clearInterval(watch);
  stop = undefined;
  tell(answer);
}

/** Looks twice: what was told while this process was busy is read in between. */
function watchLease(seconds: number): NodeJS.Timeout {
  let late = false;
  return setInterval(() => {
    const now = Date.now() - heard > seconds * 1000;
    if (now && late) end();
    late = now;
  }, CHECK_MS);
}

const threads = Number(process.argv[2]);
if (threads > 0) configureRuntime({ threads });
process.on("SIGINT", () => {}); // Ctrl-C goes to the whole group: the worker says what is to be done
process.on("disconnect", end);
if (!process.connected) end(); // its worker was gone before this was heard of
process.on("message", (message: ToSlot) => {
  if (message.type === "job") void receive(message);
  else if (message.type === "heard") heard = Date.now();
  else stop?.abort(new Error("stopped"));
});
