/** @file The loop that drives a batch: jobs take rows, every row gets its next token, those that are over make room. */
import { type Clock, machineClock } from "../base/index.ts";
import { RuntimeError } from "../runtime/index.ts";
import type { Admission, BatchPrompt } from "./admission.ts";
import type { DecodingBatch } from "./batch.ts";
import { GenerationError } from "./errors.ts";
import type { Emission, Job } from "./job.ts";

/** What a row of the batch is for. */
interface Slot {
  readonly job: Job;
  /** Which of the job's answers, or of its beams. */
  readonly index: number;
  row: number;
  /** The token it is fed next. */
  next: number;
}

/** The signal that all of these share, which may then stop a run that is under way. */
export function commonSignal(jobs: readonly Job[]): AbortSignal | undefined {
  const signal = jobs[0]?.request.signal;
  return jobs.every((job) => job.request.signal === signal) ? signal : undefined;
}

/** The run was stopped by a signal. */
export function wasCancelled(error: unknown): boolean {
  return error instanceof RuntimeError && error.code === "RUN_CANCELLED";
}

/** A job whose prompt is being read slice by slice. */
interface Reading {
  readonly job: Job;
  readonly admission: Admission;
  readonly started: number;
}

/** The jobs of a batch, which it owns, row by row. What goes wrong with one job ends that job alone: look at its `error`. */
export class Decoder implements Disposable {
  readonly batch: DecodingBatch;
  readonly #clock: Clock;
  readonly #slots: Slot[] = []; // by row
  #reading: Reading | undefined;
  #broken = false;

  constructor(batch: DecodingBatch, clock: Clock = machineClock) {
    this.batch = batch;
    this.#clock = clock;
  }

  /** Rows in use. */
  get rows(): number {
    return this.#slots.length;
  }

  get free(): number {
    return this.batch.maxRows - this.#slots.length;
  }

  /** A step has failed as a whole; the batch is better replaced. */
  get broken(): boolean {
    return this.#broken;
  }

  /** The jobs that have rows. */
  get jobs(): Job[] {
    return [...new Set(this.#slots.map(({ job }) => job))];
  }

  /** The job whose prompt is being read slice by slice. */
  get reading(): Job | undefined {
    return this.#reading?.job;
  }

  /** Ends what was cancelled or lost its adapter, and frees the rows that are not needed any more. */
  sweep(): void {
    for (const { job } of this.#slots) {
      if (job.cancelled) job.cancel();
      else if (job.request.adapter?.disposed) job.fail(adapterDisposed());
    }
    if (this.#reading?.job.over) this.#endReading();
    for (let row = this.#slots.length - 1; row >= 0; row--) {
      const { job, index } = this.#slots[row]!;
      if (job.needs(index)) continue;
      this.batch.drop(row);
      const last = this.#slots.pop()!;
      if (row === this.#slots.length) continue;
      this.#slots[row] = last;
      last.row = row;
    }
  }

  /** Reads the prompts of jobs and chooses their first tokens; there must be free rows for all of their widths. */
  async admit(jobs: readonly Job[]): Promise<Emission[]> {
    const first = this.batch.rows;
    const started = this.#clock.now();
    try {
      await this.batch.admit(jobs.map(promptOf), commonSignal(jobs));
    } catch (error) {
      this.batch.truncate(first);
      if (wasCancelled(error)) for (const job of jobs) job.cancel();
      else if (jobs.length === 1) jobs[0]!.fail(error);
      else {
        // One of them may be to blame: the others are read without it.
        const emissions: Emission[] = [];
        for (const job of jobs) emissions.push(...(await this.admit([job])));
        return emissions;
      }
      return [];
    }
    return this.#enter(jobs, this.#clock.now() - started);
  }

  /** Begins to read a prompt slice by slice, one at a time; rows for it must stay free. */
  begin(job: Job, sliceTokens: number): void {
    const admission = this.batch.begin([promptOf(job)], { sliceTokens });
    this.#reading = { job, admission, started: this.#clock.now() };
  }

  /** Reads the next slice of the prompt that was begun; with the last one its first tokens are chosen. */
  async advance(): Promise<Emission[]> {
    const reading = this.#reading;
    if (!reading) return [];
    const { job, admission, started } = reading;
    try {
      if ((await admission.advance(job.request.signal)) === 0) return [];
    } catch (error) {
      if (wasCancelled(error)) job.cancel();
      else job.fail(error);
      this.#endReading();
      return [];
    }
    this.#endReading();
    return this.#enter([job], this.#clock.now() - started);
  }

  /** Feeds every row its token and chooses the next. */
  async step(): Promise<Emission[]> {
    const jobs = this.jobs;
    try {
      await this.batch.step(
        this.#slots.map(({ next }) => next),
        commonSignal(jobs),
      );
    } catch (error) {
      this.#broken = !wasCancelled(error);
      for (const job of jobs) {
        if (this.#broken) job.fail(error);
        else job.cancel();
      }
      if (this.#broken && this.#reading) {
        this.#reading.job.fail(error); // its rows were to be in this batch
        this.#endReading();
      }
      this.#slots.length = 0;
      this.batch.truncate(0);
      return [];
    }
    const emissions: Emission[] = [];
    const searches = new Map<Job, Slot[]>();
    for (const slot of this.#slots) {
      const { job, index, row } = slot;
      if (!job.needs(index)) continue; // another of its answers has failed in this step
      if (job.search) {
        const slots = searches.get(job) ?? [];
        slots[index] = slot;
        searches.set(job, slots);
        continue;
      }
      attempt(job, () => {
        const emission = job.advance(index, this.batch.logitsOf(row), this.batch.logProbsOf(row));
        slot.next = emission.token.token;
        emissions.push(emission);
      });
    }
    for (const [job, slots] of searches) attempt(job, () => emissions.push(...this.#search(job, slots)));
    return emissions;
  }

  [Symbol.dispose](): void {
    this.#endReading();
    this.batch[Symbol.dispose]();
  }

  #endReading(): void {
    this.#reading?.admission[Symbol.dispose]();
    this.#reading = undefined;
  }

  /** Gives rows to jobs whose prompts stand in the last rows of the batch. */
  #enter(jobs: readonly Job[], prefillMs: number): Emission[] {
    const first = this.#slots.length;
    for (const [i, job] of jobs.entries()) this.#slots.push({ job, index: 0, row: first + i, next: 0 });
    const emissions: Emission[] = [];
    for (const [i, job] of jobs.entries()) {
      const row = first + i;
      if (job.over) continue; // cancelled meanwhile
      job.read(prefillMs, this.batch.route(row), this.batch.reused(row));
      attempt(job, () => {
        if (job.search) {
          for (let index = 1; index < job.width; index++) this.#copy(row, { job, index, next: 0 });
          const slots = this.#slots.filter((slot) => slot.job === job);
          emissions.push(...this.#search(job, slots));
        } else {
          emissions.push(...this.#begin(job, row));
        }
      });
    }
    return emissions;
  }

  /** Chooses the first token of every answer; the first that goes on has the prompt's row, the others get copies. */
  #begin(job: Job, row: number): Emission[] {
    const logits = this.batch.logitsOf(row);
    const logProbs = this.batch.logProbsOf(row);
    const emissions = job.sequences.map((_, choice) => job.advance(choice, logits, logProbs));
    let taken = false;
    for (const { choice, token } of emissions) {
      if (!job.needs(choice)) continue;
      const slot = { job, index: choice, next: token.token };
      if (taken) this.#copy(row, slot);
      else this.#slots[row] = { ...slot, row };
      taken = true;
    }
    return emissions;
  }

  #copy(from: number, slot: Omit<Slot, "row">): void {
    const row = this.#slots.length;
    this.batch.copyRow(from, row, 0);
    this.#slots.push({ ...slot, row });
  }

  /** @param slots of the job, by beam */
  #search(job: Job, slots: readonly Slot[]): Emission[] {
    const moves = job.advanceSearch((beam) => this.batch.logProbsOf(slots[beam]!.row));
    if (Array.isArray(moves)) return moves;
    const prompt = job.request.prompt.length;
    for (const { from, to, shared } of moves.copies) {
      this.batch.copyRow(slots[from]!.row, slots[to]!.row, prompt + shared);
    }
    for (const [beam, token] of moves.tokens.entries()) slots[beam]!.next = token;
    return [];
  }
}

function promptOf({ request: { prompt, adapter, scope }, longest }: Job): BatchPrompt {
  return { tokens: prompt, adapter, scope, longest };
}

/** What one job does wrong is its own affair. */
function attempt(job: Job, run: () => void): void {
  try {
    run();
  } catch (error) {
    job.fail(error);
  }
}

function adapterDisposed(): GenerationError {
  return new GenerationError(
    "ADAPTER_DISPOSED",
    "the adapter was disposed while a request used it; keep it until the answer is there",
  );
}

/**
 * Runs every job of the queue to its end, as many at a time as the batch has rows for. Yields the tokens of each run;
 * the batch is disposed at the end, also when the consumer stops early.
 *
 * @throws what made a job fail
 */
export async function* decodeJobs(batch: DecodingBatch, queue: Job[]): AsyncGenerator<readonly Emission[]> {
  using decoder = new Decoder(batch);
  for (;;) {
    decoder.sweep();
    const fresh = take(queue, decoder.free);
    const jobs = fresh.length > 0 ? fresh : decoder.jobs;
    if (jobs.length === 0) return;
    const emissions = await (fresh.length > 0 ? decoder.admit(fresh) : decoder.step());
    for (const { error } of jobs) if (error !== undefined) throw error;
    yield emissions;
  }
}

/** Takes the jobs that are still wanted from the front of a queue, as far as `rows` go. */
function take(queue: Job[], rows: number): Job[] {
  const taken: Job[] = [];
  let left = rows;
  for (let job = queue[0]; job && (job.cancelled || job.width <= left); job = queue[0]) {
    queue.shift();
    if (job.cancelled) job.cancel();
    else {
      taken.push(job);
      left -= job.width;
    }
  }
  return taken;
}
