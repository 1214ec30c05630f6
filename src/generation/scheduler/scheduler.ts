/** @file The scheduler: requests of many tenants under many adapters, answered together. */
import { machineClock } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import { type Engine, openEngine } from "../engine.ts";
import { Problems } from "../errors.ts";
import { checkExploration, type Exploration, type ExploreOptions, ExplorePlan } from "../explore.ts";
import { jobContext } from "../job.ts";
import { checkRequests, type GenerationResult } from "../request.ts";
import type { ScoreOptions } from "../score.ts";
import { checkScoreRows, ScorePlan, type ScoreResult, type ScoreRow } from "../score-rows.ts";
import { Intake } from "./intake.ts";
import { type SchedulerLimits, type SchedulerLimitsInput, schedulerLimitsSchema } from "./limits.ts";
import { loopEngine } from "./loop.ts";
import { ScoreTask, type WorkPlan } from "./task.ts";
import type { ChoiceToken, ScheduledRequest, SchedulerObserver, SchedulerStats } from "./types.ts";

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
  readonly #intake: Intake;

  constructor(engine: Engine, limits: SchedulerLimitsInput = {}, observer: SchedulerObserver = {}) {
    this.#engine = engine;
    this.limits = schedulerLimitsSchema.parse(limits);
    this.#intake = new Intake(this.limits, observer, {
      clock: machineClock,
      get context() {
        return jobContext(engine.backbone);
      },
      check: (request) => this.#check(request),
      open: () => {
        const open = openEngine(engine);
        return { engine: loopEngine(open.shared), [Symbol.dispose]: () => open[Symbol.dispose]() };
      },
    });
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
    return this.#intake.submit(request);
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
    this.#intake.requireRoom(options.tenant);
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
    this.#intake.requireRoom(options.tenant);
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
    const { ledger } = this.#intake;
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
        cancel = () => ledger.endScore(task, signal!.reason);
        signal?.addEventListener("abort", cancel);
        ledger.add(task);
        this.#intake.wake();
      });
    } finally {
      signal?.removeEventListener("abort", cancel);
    }
  }

  /** What a tenant has been served, by its weight: tokens that were read for it and 2 · those that were generated. */
  served(tenant: string): number {
    return this.#intake.ledger.served(tenant);
  }

  stats(): SchedulerStats {
    return { ...this.#intake.ledger.stats(), draining: this.#intake.draining };
  }

  /** Takes nothing new from now on; resolves when all that was taken has been answered, and the engine can be disposed. */
  drain(): Promise<void> {
    return this.#intake.drain();
  }

  /** Cancels what waits and runs. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.#intake[Symbol.asyncDispose]();
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
}
