/** @file What a scheduler is asked and what it tells. */
import type { GenerationRequest, GenerationResult, PromptLogprob, StreamedToken } from "../request.ts";

export interface ScheduledRequest extends GenerationRequest {
  /** Whose it is; tenants share the time fairly. */
  readonly tenant: string;
  /** Share of the tenant relative to others; default 1. */
  readonly weight?: number;
  /** Answers to the prompt, which is read once; default 1. With beams: the best of them, at most as many as beams. */
  readonly n?: number;
  /** Milliseconds from submission until the request fails with DEADLINE_EXCEEDED. */
  readonly deadlineMs?: number;
  /** The adapter's public name, for statistics only. */
  readonly label?: string;
}

/** One token of one of the answers. */
export interface ChoiceToken extends StreamedToken {
  /** 0 … n - 1. */
  readonly choice: number;
  /** With the last token of its answer. */
  readonly finishReason?: "stop" | "length";
  /** With the first token of all, where the request asks for them. */
  readonly promptLogprobs?: readonly (PromptLogprob | null)[];
}

/** Called synchronously from the loop: be quick. What one throws is dropped. */
export interface SchedulerObserver {
  /** A request leaves the queue. */
  admitted?(request: ScheduledRequest, waitedMs: number): void;
  /** Its first token, milliseconds after submission. */
  firstToken?(request: ScheduledRequest, ms: number): void;
  /** Every further token of an answer, milliseconds after the one before it. */
  token?(request: ScheduledRequest, msSinceLast: number): void;
  /** Once for every request that `submit` took. A cancelled one has results. */
  finished?(request: ScheduledRequest, outcome: readonly GenerationResult[] | Error): void;
  /** A step of all sequences that decode. */
  step?(step: { readonly rows: number; readonly adapters: number; readonly ms: number }): void;
}

export interface TenantStats {
  readonly waiting: number;
  readonly running: number;
  /** Tokens that were read for it and 2 · those that were generated, by its weight; see fairness.ts. */
  readonly counter: number;
}

export interface SchedulerStats {
  readonly waiting: number;
  readonly running: number;
  /** Sequences that decode, beams and choices counted. */
  readonly rows: number;
  /** Different adapters among them, the bare model as one. */
  readonly adapters: number;
  /** Positions of the key-value cache that are promised to them. */
  readonly kvTokens: number;
  /** Tenants that have something waiting or running. */
  readonly tenants: ReadonlyMap<string, TenantStats>;
  /** The same by the requests' `label`, the empty string where there is none. */
  readonly labels: ReadonlyMap<string, { readonly waiting: number; readonly running: number }>;
  readonly draining: boolean;
}
