/** @file The work of a scheduler: turn by turn prompts are read, every sequence gets a token, and consumers are told. */
import type { Clock } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import { Batch, type DecodingBatch } from "../batch.ts";
import { commonSignal, Decoder, wasCancelled } from "../decode.ts";
import { groupBy } from "../group.ts";
import type { Emission, Job } from "../job.ts";
import { joinsOthers } from "../pass.ts";
import { readPromptLogprobs } from "../prompt-logprobs.ts";
import { PREFILL_TOKENS, type Shared } from "../shared.ts";
import type { Ledger, Task } from "./ledger.ts";
import type { SchedulerLimits } from "./limits.ts";
import { ScoreTask, type TextTask } from "./task.ts";

/** What a loop has the work done by: an engine, or what stands for one in a simulation. */
export interface LoopEngine {
  /** Rows for sequences, made for the jobs that are the first in them. */
  batch(maxRows: number, jobs: readonly Job[]): DecodingBatch;
  /** As the function of this name. */
  readPromptLogprobs(jobs: readonly Job[], signal?: AbortSignal): Promise<Emission[]>;
  /** Whether its prompts are likely to be read together with those of other adapters. */
  joinsOthers(adapter: Adapter | undefined): boolean;
}

export function loopEngine(shared: Shared): LoopEngine {
  return {
    batch: (maxRows, jobs) =>
      new Batch(
        shared,
        maxRows,
        {
          prompt: Math.max(...jobs.map(({ request }) => request.prompt.length)),
          longest: Math.max(...jobs.map(({ longest }) => longest)),
        },
        jobs.reduce((sum, { width }) => sum + width, 0),
      ),
    readPromptLogprobs: (jobs, signal) => readPromptLogprobs(shared, jobs, signal),
    joinsOthers,
  };
}

export class Loop implements Disposable {
  readonly #engine: LoopEngine;
  readonly #clock: Clock;
  readonly #limits: SchedulerLimits;
  readonly #ledger: Ledger;
  /** From the first sequence on. */
  #decoder: Decoder | undefined;
  readonly #tasks = new WeakMap<Job, TextTask>();

  constructor(engine: LoopEngine, limits: SchedulerLimits, ledger: Ledger, clock: Clock) {
    this.#engine = engine;
    this.#clock = clock;
    this.#limits = limits;
    this.#ledger = ledger;
  }

  /** Lets waiting work begin, then takes a step with all sequences. */
  async turn(): Promise<void> {
    const started = this.#clock.now();
    this.#sweep();
    const rows = this.#decoder?.rows ?? 0;
    const { maxPrefillTokens } = this.#limits;
    // Where nobody waits for the next token, more is read at once.
    const budget = rows > 0 ? maxPrefillTokens : Math.max(maxPrefillTokens, PREFILL_TOKENS);
    const picked = this.#ledger.pick(budget, { long: maxPrefillTokens, mayBeLong: !this.#decoder?.reading });
    await this.#read(picked);
    await this.#readOn();
    await this.#step();
    if (picked.length + rows > 0 || this.#decoder?.reading) this.#ledger.worked(this.#clock.now() - started);
    else await this.#clock.turn();
  }

  [Symbol.dispose](): void {
    this.#decoder?.[Symbol.dispose]();
    this.#decoder = undefined;
  }

  async #read(picked: readonly Task[]): Promise<void> {
    const jobs: Job[] = [];
    for (const task of picked) {
      if (task instanceof ScoreTask) {
        await this.#score(task);
      } else {
        this.#tasks.set(task.job, task);
        jobs.push(task.job);
      }
    }
    const asked = jobs.filter(({ request }) => request.promptLogprobs);
    for (const alike of groupBy(asked, ({ request }) => request.adapter).values()) {
      const wanted = alike.filter(({ over }) => !over);
      if (wanted.length > 0) this.#settle(await this.#tellPrompts(wanted));
    }
    const next = this.#inOrder(jobs.filter(({ over }) => !over));
    if (next.length === 0) return;
    const short = next.filter((job) => !this.#isLong(job));
    let emissions: Emission[] = [];
    try {
      const decoder = this.#open(next);
      for (const job of next) if (this.#isLong(job)) decoder.begin(job, this.#limits.maxPrefillTokens);
      if (short.length > 0) emissions = await decoder.admit(short);
    } catch (error) {
      for (const job of next) job.fail(error);
    }
    this.#settle(emissions);
  }

  /** Reads the next slice of a long prompt. */
  async #readOn(): Promise<void> {
    if (this.#decoder?.reading) this.#settle(await this.#decoder.advance());
  }

  #isLong({ request }: Job): boolean {
    return request.prompt.length > this.#limits.maxPrefillTokens;
  }

  /** The batch, made for the jobs that are the first in it. */
  #open(jobs: readonly Job[]): Decoder {
    this.#decoder ??= new Decoder(this.#engine.batch(this.#limits.maxBatch, jobs), this.#clock);
    return this.#decoder;
  }

  async #score(task: ScoreTask): Promise<void> {
    task.working = true;
    try {
      await task.plan.pieces[task.done]!.run(task.signal);
    } catch (error) {
      task.failure ??= error;
    }
    task.working = false;
    if (task.failure === undefined) this.#ledger.scored(task);
    else this.#ledger.endScore(task, task.failure);
  }

  /** Reads prompts whose probabilities are asked for; one that cannot be read fails alone. */
  async #tellPrompts(jobs: readonly Job[]): Promise<Emission[]> {
    try {
      return await this.#engine.readPromptLogprobs(jobs, commonSignal(jobs));
    } catch (error) {
      if (jobs.length > 1) {
        const emissions: Emission[] = [];
        for (const job of jobs) emissions.push(...(await this.#tellPrompts([job])));
        return emissions;
      }
      if (wasCancelled(error)) jobs[0]!.cancel();
      else jobs[0]!.fail(error);
      return [];
    }
  }

  async #step(): Promise<void> {
    this.#sweep(); // reading has taken time
    const decoder = this.#decoder;
    if (!decoder || decoder.rows === 0) return;
    const { rows, jobs } = decoder;
    const { adapters } = decoder.batch;
    const started = this.#clock.now();
    const emissions = await decoder.step();
    this.#ledger.observer.step?.({ rows, adapters, ms: this.#clock.now() - started });
    // A beam search works on all of its beams and tells its tokens at the end.
    for (const job of jobs) if (job.search) this.#ledger.generated(this.#tasks.get(job)!, job.width);
    this.#settle(emissions);
    if (decoder.broken) this[Symbol.dispose]();
  }

  /** Gives tokens to their consumers, and ends what is over. */
  #settle(emissions: readonly Emission[]): void {
    for (const emission of emissions) {
      const task = this.#tasks.get(emission.job)!;
      task.give(emission, this.#ledger.observer);
      if (!emission.job.search) this.#ledger.generated(task, 1);
    }
    this.#sweep();
  }

  /** Frees the rows of what is over, and then ends it: from then on its adapter may go. */
  #sweep(): void {
    this.#decoder?.sweep();
    this.#ledger.endOver();
  }

  /** In which order prompts are read: those that can be are read together, of about the same length where adapters may differ. */
  #inOrder(jobs: readonly Job[]): Job[] {
    const groups = groupBy(jobs, ({ request: { adapter } }) => (this.#engine.joinsOthers(adapter) ? "any" : adapter));
    const length = ({ request }: Job): number => request.prompt.length;
    return [...groups].flatMap(([key, group]) => (key === "any" ? group.sort((a, b) => length(a) - length(b)) : group));
  }
}
