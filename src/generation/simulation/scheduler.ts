/** @file The scheduler as it is, over an engine of which only is known how long it takes: for planning, on a virtual clock. */
import type { VirtualClock } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { GenerationResult } from "../request.ts";
import { Intake } from "../scheduler/intake.ts";
import { type SchedulerLimits, type SchedulerLimitsInput, schedulerLimitsSchema } from "../scheduler/limits.ts";
import type { ChoiceToken, SchedulerObserver, SchedulerStats } from "../scheduler/types.ts";
import { END, type EngineCosts, SimulatedBatch } from "./batch.ts";

/** Stands for an adapter; each is different from all others. */
export class SimulatedAdapter {
  disposed = false;

  dispose(): void {
    this.disposed = true;
  }
}

export interface SimulatedRequest {
  readonly tenant: string;
  readonly weight?: number;
  /** Without one the bare backbone answers. */
  readonly adapter?: SimulatedAdapter | undefined;
  /** Tokens. */
  readonly prompt: number;
  /** Tokens that its answer has, the one that ends it included. */
  readonly answer: number;
  /** Tokens that it asks for; default: as many as there will be. */
  readonly maxNewTokens?: number | undefined;
  readonly deadlineMs?: number | undefined;
}

/** What simulated work takes its time of. */
export interface SimulatedMachine {
  readonly clock: VirtualClock;
  /** Resolves when work of so many milliseconds is done; others may have had the machine before. */
  spend(ms: number): Promise<void>;
}

/**
 * Takes requests as `Scheduler` does: the same queue, shares, slots, limits and turns. Only the engine is simulated, so that
 * answers are of given lengths and take what `EngineCosts` says. Everything happens while the clock runs.
 */
export class SimulatedScheduler {
  readonly limits: SchedulerLimits;
  readonly #intake: Intake;
  readonly #answers = new WeakMap<readonly number[], number>();

  constructor(
    costs: EngineCosts,
    { clock, spend }: SimulatedMachine,
    limits: SchedulerLimitsInput = {},
    observer: SchedulerObserver = {},
  ) {
    this.limits = schedulerLimitsSchema.parse(limits);
    const simulated = { costs, spend, answerOf: (prompt: readonly number[]) => this.#answers.get(prompt)! };
    const engine = {
      batch: (maxRows: number) => new SimulatedBatch(simulated, maxRows),
      readPromptLogprobs: () => Promise.reject(new Error("probabilities of prompts are not simulated")),
      joinsOthers: () => costs.joins,
    };
    this.#intake = new Intake(this.limits, observer, {
      clock,
      context: { tokenizer: undefined, eosTokenIds: [END], clock },
      check: () => {},
      open: () => ({ engine, [Symbol.dispose]: () => {} }),
    });
  }

  /** See `Scheduler.submit`. */
  submit(request: SimulatedRequest): AsyncGenerator<ChoiceToken, readonly GenerationResult[]> {
    const { tenant, weight, adapter, answer, maxNewTokens = answer, deadlineMs } = request;
    const prompt = new Array<number>(request.prompt).fill(0);
    this.#answers.set(prompt, answer);
    return this.#intake.submit({
      ...{ tenant, prompt, options: { maxNewTokens } },
      ...(weight !== undefined && { weight }),
      ...(deadlineMs !== undefined && { deadlineMs }),
      // The scheduler asks of an adapter only which it is and whether it is still there.
      ...(adapter && { adapter: adapter as unknown as Adapter }),
    });
  }

  /** As `Scheduler.served`. */
  served(tenant: string): number {
    return this.#intake.ledger.served(tenant);
  }

  stats(): SchedulerStats {
    return { ...this.#intake.ledger.stats(), draining: this.#intake.draining };
  }
}
