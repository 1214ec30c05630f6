/** @file The scheduler: requests of many tenants under many adapters, answered together. */
import type { Adapter } from "../../methods/index.ts";
import type { Engine } from "../engine.ts";
import { GenerationError, Problems } from "../errors.ts";
import { choiceSeed, type GenerationResult } from "../request.ts";
import type { ScoreOptions } from "../score.ts";
import type { ScoreResult, ScoreRow } from "../score-rows.ts";
import { Channel } from "./channel.ts";
import { type SchedulerLimits, type SchedulerLimitsInput, schedulerLimitsSchema } from "./limits.ts";
import type { ChoiceToken, ScheduledRequest, SchedulerObserver, SchedulerStats, TenantStats } from "./types.ts";

interface Job {
  readonly request: ScheduledRequest;
  readonly channel: Channel<ChoiceToken, readonly GenerationResult[]>;
  readonly stop: AbortController;
  readonly submitted: number;
  last: number;
}

/** Answers requests, each to its own consumer, sharing the time among tenants. */
export class Scheduler implements AsyncDisposable {
  readonly limits: SchedulerLimits;
  readonly #engine: Engine;
  readonly #observer: SchedulerObserver;
  readonly #waiting: Job[] = [];
  readonly #running = new Map<Job, Promise<void>>();
  #draining = false;

  constructor(engine: Engine, limits: SchedulerLimitsInput = {}, observer: SchedulerObserver = {}) {
    this.#engine = engine;
    this.limits = schedulerLimitsSchema.parse(limits);
    this.#observer = observer;
  }

  /**
   * Takes a request; its tokens come as they are chosen, those of several answers in turns. The return value has the
   * whole answers. Leaving the loop early frees everything.
   *
   * The generator throws, at its first step: InputError what `Engine.stream` refuses; GenerationError OVERLOADED (with
   * `retryAfterSeconds`), DRAINING; later DEADLINE_EXCEEDED, LOGITS_NOT_FINITE and what else goes wrong.
   *
   
   */
  submit(request: ScheduledRequest): AsyncGenerator<ChoiceToken, readonly GenerationResult[]> {
    const stop = new AbortController();
    const submitted = performance.now();
    const channel = new Channel<ChoiceToken, readonly GenerationResult[]>(() => stop.abort());
    const job: Job = { request, channel, stop, submitted, last: submitted };
    try {
      this.#check(request);
    } catch (error) {
      channel.fail(error);
      return channel;
    }
    request.signal?.addEventListener("abort", () => stop.abort(), { signal: stop.signal });
    if (request.signal?.aborted) stop.abort();
    this.#waiting.push(job);
    this.#fill();
    return channel;
  }

  /** As `Engine.score`, in turns with everything else. */
  score(
    rows: readonly ScoreRow[],
    adapter: Adapter | undefined,
    options: ScoreOptions & { readonly tenant: string; readonly weight?: number },
  ): Promise<ScoreResult[]> {
    return this.#engine.score(rows, adapter, options);
  }

  stats(): SchedulerStats {
    const tenants = new Map<string, TenantStats>();
    const labels = new Map<string, { waiting: number; running: number }>();
    for (const [jobs, field] of [
      [this.#waiting, "waiting"],
      [this.#running.keys(), "running"],
    ] as const) {
      for (const { request } of jobs) {
        const tenant = tenants.get(request.tenant) ?? { waiting: 0, running: 0, counter: 0 };
        tenants.set(request.tenant, { ...tenant, [field]: tenant[field] + 1 });
        const label = labels.get(request.label ?? "") ?? { waiting: 0, running: 0 };
        labels.set(request.label ?? "", { ...label, [field]: label[field] + 1 });
      }
    }
    const running = this.#running.size;
    const adapters = new Set([...this.#running.keys()].map(({ request }) => request.adapter)).size;
    const counts = { waiting: this.#waiting.length, running, rows: running, adapters, kvTokens: 0 };
    return { ...counts, tenants, labels, draining: this.#draining };
  }

  /** Takes nothing new from now on; resolves when all that was taken has been answered. */
  async drain(): Promise<void> {
    this.#draining = true;
    while (this.#running.size > 0) await Promise.all(this.#running.values());
  }

  /** Cancels what waits and runs. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const { stop } of [...this.#waiting, ...this.#running.keys()]) stop.abort();
    await this.drain();
  }

  #check(request: ScheduledRequest): void {
    if (this.#draining) throw new GenerationError("DRAINING", "the server is shutting down; ask another one");
    const problems = new Problems();
    const { n = 1, options, weight = 1, deadlineMs } = request;
    const most = (options.beams ?? 1) > 1 ? options.beams! : this.limits.maxBatch;
    if (!(Number.isInteger(n) && n >= 1 && n <= most)) problems.add("SAMPLING_OPTIONS_INVALID", `n: from 1 to ${most}`);
    if (!(weight > 0 && weight < Number.POSITIVE_INFINITY)) {
      problems.add("SAMPLING_OPTIONS_INVALID", "weight: a number larger than 0");
    }
    if (deadlineMs !== undefined && !(deadlineMs > 0)) {
      problems.add("SAMPLING_OPTIONS_INVALID", "deadlineMs: a number larger than 0");
    }
    problems.throwIfAny("generation");
    const own = this.#waiting.filter(({ request: { tenant } }) => tenant === request.tenant).length;
    const free = this.#running.size < this.limits.maxBatch;
    if (!free && (this.#waiting.length >= this.limits.maxWaiting || own >= this.limits.maxWaitingPerTenant)) {
      throw new GenerationError("OVERLOADED", "too many requests are waiting; try again later", {
        retryAfterSeconds: 1,
      });
    }
  }

  #fill(): void {
    while (this.#waiting.length > 0 && this.#running.size < this.limits.maxBatch) {
      const job = this.#waiting.shift()!;
      const running = this.#run(job).finally(() => {
        this.#running.delete(job);
        this.#fill();
      });
      this.#running.set(job, running);
    }
  }

  async #run(job: Job): Promise<void> {
    const { request, channel, stop } = job;
    const { n = 1, deadlineMs } = request;
    const seed = request.options.seed ?? Math.floor(Math.random() * 2 ** 32);
    let late = false;
    const timer =
      deadlineMs === undefined
        ? undefined
        : setTimeout(() => {
            late = true;
            stop.abort();
          }, deadlineMs);
    this.#observer.admitted?.(request, performance.now() - job.submitted);
    try {
      const choices = Array.from({ length: n }, async (_, choice) => {
        const options = { ...request.options, seed: choiceSeed(seed, choice) };
        const stream = this.#engine.stream({ ...request, options, signal: stop.signal });
        for (;;) {
          const next = await stream.next();
          if (next.done) return next.value;
          channel.give({ ...next.value, choice });
          const now = performance.now();
          if (job.last === job.submitted) this.#observer.firstToken?.(request, now - job.submitted);
          else this.#observer.token?.(request, now - job.last);
          job.last = now;
        }
      });
      const results = await Promise.all(choices);
      if (late) throw new GenerationError("DEADLINE_EXCEEDED", `the answer took longer than ${deadlineMs} ms`);
      this.#observer.finished?.(request, results);
      channel.close(results);
    } catch (error) {
      this.#observer.finished?.(request, error as Error);
      channel.fail(error);
    } finally {
      clearTimeout(timer);
      stop.abort();
    }
  }
}
