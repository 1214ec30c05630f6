/** @file What a scheduler has taken on: a request for text or for scores, from submission to its end. */
import type { Clock } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { Emission, Job } from "../job.ts";
import type { GenerationResult } from "../request.ts";
import type { ScorePiece } from "../score-rows.ts";
import type { Channel } from "./channel.ts";
import { INPUT_COST, OUTPUT_COST } from "./fairness.ts";
import type { ChoiceToken, ScheduledRequest, SchedulerObserver } from "./types.ts";

/** A request for text. */
export class TextTask {
  readonly request: ScheduledRequest;
  readonly job: Job;
  readonly channel: Channel<ChoiceToken, readonly GenerationResult[]>;
  readonly tenant: string;
  readonly weight: number;
  readonly adapter: Adapter | undefined;
  readonly submitted: number;
  readonly #clock: Clock;
  /** It has an adapter slot of the batch. */
  hasSlot = false;
  /** Undoes what would end it: its timer, and listening to its signal. */
  release: () => void = () => {};
  /** Tokens that were given, and when the last of them, by answer. */
  readonly #given: number[] = [];
  readonly #lastAt: number[] = [];

  constructor(
    request: ScheduledRequest,
    job: Job,
    channel: Channel<ChoiceToken, readonly GenerationResult[]>,
    clock: Clock,
  ) {
    this.#clock = clock;
    this.submitted = clock.now();
    this.request = request;
    this.job = job;
    this.channel = channel;
    this.tenant = request.tenant;
    this.weight = request.weight ?? 1;
    this.adapter = request.adapter;
  }

  /** Rows of the batch that it takes. */
  get rows(): number {
    return this.job.isPromptOnly ? 0 : this.job.width;
  }

  /** Tokens that are read for it; those of a prompt whose probabilities are told before an answer, twice. */
  get input(): number {
    const { prompt, promptLogprobs } = this.request;
    return promptLogprobs && !this.job.isPromptOnly ? 2 * prompt.length : prompt.length;
  }

  /** Positions that prompt and answers take at most. */
  get tokens(): number {
    return this.rows * this.job.longest;
  }

  /** Work that it may still be, counted as fairness does. */
  get remaining(): number {
    const { sequences, width, request, search } = this.job;
    const { maxNewTokens } = request.options;
    if (search) return this.input * INPUT_COST + width * maxNewTokens * OUTPUT_COST;
    const generated = sequences.reduce((sum, { tokens }) => sum + tokens.length, 0);
    const input = generated > 0 ? 0 : this.input * INPUT_COST;
    return input + (width * maxNewTokens - generated) * OUTPUT_COST;
  }

  /** Steps that its longest answer may still take. */
  get stepsLeft(): number {
    const generated = Math.min(
      ...this.job.sequences.map((one) => (one.finished ? Number.MAX_VALUE : one.tokens.length)),
    );
    return Math.max(0, this.request.options.maxNewTokens - generated);
  }

  /** Gives a token to the consumer. */
  give({ choice, token }: Emission, observer: SchedulerObserver): void {
    const { promptLogprobs, finishReason, tokens } = this.job.sequences[choice]!;
    const first = this.#given.length === 0;
    const given = (this.#given[choice] ?? 0) + 1;
    this.#given[choice] = given;
    const ended = given === tokens.length && finishReason !== "cancelled" && finishReason;
    this.channel.give({
      ...token,
      choice,
      ...(first && promptLogprobs && { promptLogprobs }),
      ...(ended && { finishReason: ended }),
    });
    const at = this.#clock.now();
    const last = this.#lastAt[choice];
    this.#lastAt[choice] = at;
    if (first) observer.firstToken?.(this.request, at - this.submitted);
    else if (last !== undefined) observer.token?.(this.request, at - last);
  }
}

/** Work in pieces, between which others have their turn. */
export interface WorkPlan {
  readonly pieces: readonly ScorePiece[];
}

/** A request for scores, or for what routers do. */
export class ScoreTask {
  readonly tenant: string;
  readonly weight: number;
  readonly plan: WorkPlan;
  /** Pieces that have been done. */
  done = 0;
  over = false;
  /** A piece is being worked on. */
  working = false;
  /** Why it is to end when that piece is over. */
  failure: unknown;
  readonly signal: AbortSignal | undefined;
  readonly end: (error?: unknown) => void;
  readonly progress: () => void;

  constructor(
    owner: { readonly tenant: string; readonly weight?: number | undefined; readonly signal?: AbortSignal | undefined },
    plan: WorkPlan,
    told: { end(error?: unknown): void; progress(): void },
  ) {
    this.tenant = owner.tenant;
    this.weight = owner.weight ?? 1;
    this.signal = owner.signal;
    this.plan = plan;
    this.end = told.end;
    this.progress = told.progress;
  }

  get remaining(): number {
    return this.plan.pieces.slice(this.done).reduce((sum, { tokens }) => sum + tokens * INPUT_COST, 0);
  }
}
