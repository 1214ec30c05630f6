/** @file The scheduler: requests of many tenants under many adapters, answered together. */
import { setImmediate } from "node:timers/promises";
import { InputError } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import { type Engine, type OpenEngine, openEngine } from "../engine.ts";
import { GenerationError, Problems } from "../errors.ts";
import { checkExploration, type Exploration, type ExploreOptions, ExplorePlan } from "../explore.ts";
import { Job, jobContext } from "../job.ts";
import { checkRequests, type GenerationResult } from "../request.ts";
import type { ScoreOptions } from "../score.ts";
import { checkScoreRows, ScorePlan, type ScoreResult, type ScoreRow } from "../score-rows.ts";
import { Channel } from "./channel.ts";
import { Ledger } from "./ledger.ts";
import { type SchedulerLimits, type SchedulerLimitsInput, schedulerLimitsSchema } from "./limits.ts";
import { Loop } from "./loop.ts";
import { ScoreTask, TextTask, type WorkPlan } from "./task.ts";
import type { ChoiceToken, ScheduledRequest, SchedulerObserver, SchedulerStats } from "./types.ts";

/** How long a batch without work keeps its buffers and bound sessions for the next request, ms. */
const IDLE_MS = 2000;

/** A timer takes no more milliseconds, 25 days. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Whose work it is that is not a `ScheduledRequest`. */
interface Owner {
  readonly tenant: string;
  /** As of `ScheduledRequest`. */
  readonly weight?: number;
}

export interface ScheduledScoreOptions extends ScoreOptions, Owner {}
export interface ScheduledExploreOptions extends ExploreOptions, Owner {}

type WorkOptions = Owner & Pick<ScoreOptions, "signal" | "onProgress">;

/**
 * Answers requests, each to its own consumer, in one batch that requests join and leave between two steps. Tenants share
 * the time by their weights; nobody waits for ever. It uses the engine for a while after the last request: `drain` or dispose
 * it first.
 */
export class Scheduler implements AsyncDisposable {
  readonly limits: SchedulerLimits;
  readonly #engine: Engine;
  readonly #ledger: Ledger;
  #running: Promise<void> | undefined;
  /** From the first work until there has been none for a while; the engine counts as in use. */
  #open: { readonly loop: Loop; readonly engine: OpenEngine } | undefined;
  #idle: NodeJS.Timeout | undefined;
  #draining = false;

  constructor(engine: Engine, limits: SchedulerLimitsInput = {}, observer: SchedulerObserver = {}) {
    this.#engine = engine;
    this.limits = schedulerLimitsSchema.parse(limits);
    this.#ledger = new Ledger(this.limits, observer);
  }

  /**
   * Takes a request; its tokens come as they are chosen, those of several answers in turns. The return value has the
   * whole answers. Leaving the generator frees everything, also before its first step.
   *
   * This never throws. The generator throws at its first step: InputError what `Engine.stream` refuses; GenerationError
   * OVERLOADED (with `retryAfterSeconds`), DRAINING; and at any step DEADLINE_EXCEEDED, LOGITS_NOT_FINITE and what else
   * goes wrong.
   */
  submit(request: ScheduledRequest): AsyncGenerator<ChoiceToken, readonly GenerationResult[]> {
    const stop = new AbortController();
    const channel = new Channel<ChoiceToken, readonly GenerationResult[]>(() => stop.abort());
    let task: TextTask;
    try {
      this.#check(request);
      const { scope = request.tenant } = request;
      const job = new Job({ ...request, scope, signal: stop.signal }, jobContext(this.#engine.backbone), request.n);
      task = new TextTask(request, job, channel);
      this.#checkTokens(task);
      this.#requireRoom(request.tenant);
    } catch (error) {
      channel.fail(error);
      return channel;
    }
    const { job } = task;
    const { signal, deadlineMs } = request;
    const cancel = (): void => stop.abort();
    stop.signal.addEventListener("abort", () => {
      job.cancel(); // without effect where the deadline has passed
      this.#ledger.stop(task);
    });
    const late = (): void => {
      job.fail(deadlineExceeded(deadlineMs!));
      stop.abort();
    };
    const timer = deadlineMs === undefined ? undefined : setTimeout(late, Math.min(deadlineMs, LONGEST_TIMER));
    task.release = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", cancel);
    };
    signal?.addEventListener("abort", cancel);
    this.#ledger.add(task);
    if (signal?.aborted) cancel();
    this.#wake();
    return channel;
  }

  /**
   * As `Engine.score`, in turns with everything else: between two pieces of it others have theirs.
   *
   * @throws InputError, RuntimeError RUN_CANCELLED as `Engine.score`; GenerationError OVERLOADED, DRAINING
   */
  async score(
    rows: readonly ScoreRow[],
    adapter: Adapter | undefined,
    options: ScheduledScoreOptions,
  ): Promise<ScoreResult[]> {
    options.signal?.throwIfAborted();
    this.#requireRoom(options.tenant);
    using open = openEngine(this.#engine);
    checkScoreRows(rows, adapter, this.#engine.backbone, open.shared.context);
    const plan = new ScorePlan(
      open.shared,
      rows,
      adapter,
      this.limits.maxPrefillTokens,
      options.scope ?? options.tenant,
    );
    await this.#work(plan, rows.length, options);
    return plan.results;
  }

  /**
   * As `Engine.explore`, in turns with everything else; a long prompt in slices, as it would be read for an answer.
   *
   * @throws InputError, RuntimeError RUN_CANCELLED as `Engine.explore`; GenerationError OVERLOADED, DRAINING
   */
  async explore(
    prompts: readonly (readonly number[])[],
    adapter: Adapter,
    options: ScheduledExploreOptions,
  ): Promise<Exploration[]> {
    options.signal?.throwIfAborted();
    this.#requireRoom(options.tenant);
    using open = openEngine(this.#engine);
    checkExploration(open.shared, prompts, adapter);
    const { attention } = options;
    using plan = new ExplorePlan(open.shared, prompts, adapter, { attention, limit: this.limits.maxPrefillTokens });
    await this.#work(plan, prompts.length, options);
    return plan.results;
  }

  /** Resolves when all pieces of a plan have had their turn. @param rows what progress is told of, in all */
  async #work({ pieces }: WorkPlan, rows: number, options: WorkOptions): Promise<void> {
    if (pieces.length === 0) return;
    const { signal, onProgress } = options;
    let finished = rows - pieces.reduce((sum, piece) => sum + piece.rows, 0);
    let cancel: () => void = () => {};
    try {
      await new Promise<void>((resolve, reject) => {
        const task: ScoreTask = new ScoreTask(
          options,
          { pieces },
          {
            progress: () => {
              finished += pieces[task.done - 1]!.rows;
              onProgress?.(finished, rows);
            },
            end: (error) => (error === undefined ? resolve() : reject(error)),
          },
        );
        cancel = () => this.#ledger.endScore(task, signal!.reason);
        signal?.addEventListener("abort", cancel);
        this.#ledger.add(task);
        this.#wake();
      });
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
  }

  stats(): SchedulerStats {
    return { ...this.#ledger.stats(), draining: this.#draining };
  }

  /** Takes nothing new from now on; resolves when all that was taken has been answered, and the engine can be disposed. */
  async drain(): Promise<void> {
    this.#draining = true;
    while (this.#running) await this.#running;
    this.#close();
  }

  /** Cancels what waits and runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#draining = true;
    for (const task of this.#ledger.tasks()) {
      if (task instanceof ScoreTask) {
        this.#ledger.endScore(task, draining());
      } else {
        task.job.cancel();
        this.#ledger.stop(task);
      }
    }
    await this.drain();
  }

  #check(request: ScheduledRequest): void {
    const { n = 1, options, weight = 1, deadlineMs } = request;
    const { maxBatch } = this.limits;
    using open = openEngine(this.#engine);
    checkRequests([request], this.#engine.backbone, open.shared.context);
    const problems = new Problems();
    const wrong = (text: string): void => problems.add("SAMPLING_OPTIONS_INVALID", text);
    const { beams = 1 } = options;
    const width = beams > 1 ? beams : n;
    if (!Number.isInteger(n) || n < 1) wrong("n: an integer of at least 1");
    else if (beams > 1 && n > beams) wrong(`n: at most as many answers as beams (${beams})`);
    else if (width > maxBatch) wrong(`n, beams: at most ${maxBatch} sequences run together`);
    if (!(weight > 0 && weight < Number.POSITIVE_INFINITY)) wrong("weight: a number larger than 0");
    if (deadlineMs !== undefined && !(deadlineMs > 0)) wrong("deadlineMs: a number larger than 0");
    problems.throwIfAny("generation");
  }

  #checkTokens({ tokens }: TextTask): void {
    const { maxKvTokens, maxTokensPerTenant = maxKvTokens } = this.limits;
    const most = Math.min(maxKvTokens, maxTokensPerTenant);
    if (tokens > most) {
      const text = `prompt and new tokens are ${tokens} in all answers, and at most ${most} run together`;
      throw new InputError("PROMPT_TOO_LONG", "generation", `${text}: shorten the prompt, lower maxNewTokens or n`);
    }
  }

  /** @throws GenerationError OVERLOADED, DRAINING */
  #requireRoom(tenant: string): void {
    if (this.#draining) throw draining();
    this.#ledger.requireRoom(tenant);
  }

  /** Starts the loop unless it runs. */
  #wake(): void {
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
      if (this.#ledger.busy) this.#wake();
    });
  }

  /** Works until nothing is left to do. */
  async #run(): Promise<void> {
    await setImmediate(); // requests that come together begin together
    clearTimeout(this.#idle);
    try {
      this.#open ??= this.#begin();
      const { loop } = this.#open;
      while (this.#ledger.busy) await loop.turn();
      this.#idle = setTimeout(() => this.#close(), IDLE_MS).unref();
    } catch (error) {
      this.#ledger.fail(error); // nobody is left waiting, whatever went wrong
      this.#close();
    }
  }

  #begin() {
    const engine = openEngine(this.#engine);
    return { loop: new Loop(engine.shared, this.limits, this.#ledger), engine };
  }

  #close(): void {
    clearTimeout(this.#idle);
    this.#open?.loop[Symbol.dispose]();
    this.#open?.engine[Symbol.dispose]();
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
