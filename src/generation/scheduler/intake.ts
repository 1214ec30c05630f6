/** @file Requests for text from their submission to their end, and the loop that runs while there is something to do. */
import { type Clock, InputError } from "../../base/index.ts";
import { GenerationError } from "../errors.ts";
import { Job, type JobContext } from "../job.ts";
import type { GenerationResult } from "../request.ts";
import { Channel } from "./channel.ts";
import { Ledger } from "./ledger.ts";
import type { SchedulerLimits } from "./limits.ts";
import { Loop, type LoopEngine } from "./loop.ts";
import { ScoreTask, TextTask } from "./task.ts";
import type { ChoiceToken, ScheduledRequest, SchedulerObserver } from "./types.ts";

/** How long a batch without work keeps its buffers and bound sessions for the next request, ms. */
const IDLE_MS = 2000;

/** A timer takes no more milliseconds, 25 days. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Where an intake has its work done. */
export interface Workplace {
  readonly clock: Clock;
  readonly context: JobContext;
  /** @throws InputError what the engine cannot do */
  check(request: ScheduledRequest): void;
  /** The engine, in use until it is given back. */
  open(): Disposable & { readonly engine: LoopEngine };
}

export class Intake {
  readonly ledger: Ledger;
  readonly #limits: SchedulerLimits;
  readonly #place: Workplace;
  #running: Promise<void> | undefined;
  /** From the first work until there has been none for a while. */
  #open: (Disposable & { readonly loop: Loop }) | undefined;
  #callOff: () => void = () => {};
  #draining = false;

  constructor(limits: SchedulerLimits, observer: SchedulerObserver, place: Workplace) {
    this.#limits = limits;
    this.#place = place;
    this.ledger = new Ledger(limits, observer, place.clock);
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** See `Scheduler.submit`. */
  submit(request: ScheduledRequest): AsyncGenerator<ChoiceToken, readonly GenerationResult[]> {
    const { clock, context } = this.#place;
    const stop = new AbortController();
    const channel = new Channel<ChoiceToken, readonly GenerationResult[]>(() => stop.abort());
    let task: TextTask;
    try {
      this.#place.check(request);
      const { scope = request.tenant } = request;
      const job = new Job({ ...request, scope, signal: stop.signal }, context, request.n);
      task = new TextTask(request, job, channel, clock);
      this.#checkTokens(task);
      this.requireRoom(request.tenant);
    } catch (error) {
      channel.fail(error);
      return channel;
    }
    const { job } = task;
    const { signal, deadlineMs } = request;
    const cancel = (): void => stop.abort();
    stop.signal.addEventListener("abort", () => {
      job.cancel(); // without effect where the deadline has passed
      this.ledger.stop(task);
    });
    const late = (): void => {
      job.fail(deadlineExceeded(deadlineMs!));
      stop.abort();
    };
    const callOff = deadlineMs === undefined ? undefined : clock.after(Math.min(deadlineMs, LONGEST_TIMER), late);
    task.release = () => {
      callOff?.();
      signal?.removeEventListener("abort", cancel);
    };
    signal?.addEventListener("abort", cancel);
    this.ledger.add(task);
    if (signal?.aborted) cancel();
    this.wake();
    return channel;
  }

  /** @throws GenerationError OVERLOADED, DRAINING */
  requireRoom(tenant: string): void {
    if (this.#draining) throw draining();
    this.ledger.requireRoom(tenant);
  }

  /** Starts the loop unless it runs. */
  wake(): void {
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
      if (this.ledger.busy) this.wake();
    });
  }

  /** Takes nothing new from now on; resolves when all that was taken has been answered. */
  async drain(): Promise<void> {
    this.#draining = true;
    while (this.#running) await this.#running;
    this.#close();
  }

  /** Cancels what waits and runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#draining = true;
    for (const task of this.ledger.tasks()) {
      if (task instanceof ScoreTask) {
        this.ledger.endScore(task, draining());
      } else {
        task.job.cancel();
        this.ledger.stop(task);
      }
    }
    await this.drain();
  }

  #checkTokens({ tokens }: TextTask): void {
    const { maxKvTokens, maxTokensPerTenant = maxKvTokens } = this.#limits;
    const most = Math.min(maxKvTokens, maxTokensPerTenant);
    if (tokens > most) {
      const text = `prompt and new tokens are ${tokens} in all answers, and at most ${most} run together`;
      throw new InputError(
        "PROMPT_TOO_LONG",
        "generation",
        `${text}: shorten the prompt, or ask for fewer new tokens or a smaller n`,
      );
    }
  }

  /** Works until nothing is left to do. */
  async #run(): Promise<void> {
    const { clock } = this.#place;
    await clock.turn(); // requests that come together begin together
    this.#callOff();
    try {
      this.#open ??= this.#begin();
      const { loop } = this.#open;
      while (this.ledger.busy) await loop.turn();
      this.#callOff = clock.after(IDLE_MS, () => this.#close(), false);
    } catch (error) {
      this.ledger.fail(error); // nobody is left waiting, whatever went wrong
      this.#close();
    }
  }

  #begin(): Disposable & { readonly loop: Loop } {
    const open = this.#place.open();
    const loop = new Loop(open.engine, this.#limits, this.ledger, this.#place.clock);
    const dispose = (): void => {
      loop[Symbol.dispose]();
      open[Symbol.dispose]();
    };
    return { loop, [Symbol.dispose]: dispose };
  }

  #close(): void {
    this.#callOff();
    this.#open?.[Symbol.dispose]();
    this.#open = undefined;
  }
}

function draining(): GenerationError {
  return new GenerationError("DRAINING", "the server is shutting down; ask another one, or this one later");
}

function deadlineExceeded(ms: number): GenerationError {
  const text = `the answer was not there after ${ms} ms, as long as its request allows`;
  return new GenerationError("DEADLINE_EXCEEDED", `${text}: ask for fewer tokens, or allow more time`);
}
