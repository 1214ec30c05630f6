/** @file What a scheduler has taken on, whose it is, and what may begin next: queue, shares, slots and limits together. */
import type { Clock } from "../../base/index.ts";
import type { Adapter } from "../../methods/index.ts";
import { GenerationError } from "../errors.ts";
import { Fairness, INPUT_COST, OUTPUT_COST } from "./fairness.ts";
import type { SchedulerLimits } from "./limits.ts";
import { FairQueue, type Verdict } from "./queue.ts";
import { AdapterSlots } from "./slots.ts";
import { ScoreTask, TextTask } from "./task.ts";
import { Throughput } from "./throughput.ts";
import type { SchedulerObserver, SchedulerStats, TenantStats } from "./types.ts";

export type Task = TextTask | ScoreTask;

export class Ledger {
  readonly observer: SchedulerObserver;
  readonly #limits: SchedulerLimits;
  readonly #clock: Clock;
  readonly #fairness = new Fairness();
  readonly #queue = new FairQueue<Task>(this.#fairness);
  readonly #slots: AdapterSlots<Adapter | undefined>;
  readonly #throughput = new Throughput();
  readonly #running = new Set<TextTask>();
  /** Work since it was last measured. */
  #work = 0;

  constructor(limits: SchedulerLimits, observer: SchedulerObserver, clock: Clock) {
    this.#clock = clock;
    this.#limits = limits;
    this.#slots = new AdapterSlots(limits.maxAdaptersPerBatch);
    this.observer = quiet(observer);
  }

  /** Something waits or runs. */
  get busy(): boolean {
    return this.#queue.size + this.#running.size > 0;
  }

  /** Everything that waits or runs. */
  tasks(): Task[] {
    return [...this.#queue, ...this.#running];
  }

  /** @throws GenerationError OVERLOADED when one more may not wait */
  requireRoom(tenant: string): void {
    const { maxWaiting, maxWaitingPerTenant } = this.#limits;
    const own = this.#queue.sizeOf(tenant);
    const ofTenant = own >= maxWaitingPerTenant;
    if (this.#queue.size < maxWaiting && !ofTenant) return;
    const tasks = this.tasks();
    let work = tasks.reduce((sum, { remaining }) => sum + remaining, 0);
    if (ofTenant) {
      // Others get their shares meanwhile, but not more than all there is to do.
      const tenants = new Set(tasks.map((task) => task.tenant)).size;
      const ownWork = tasks.reduce((sum, task) => sum + (task.tenant === tenant ? task.remaining : 0), 0);
      work = Math.min(work, tenants * ownWork);
    }
    const retryAfterSeconds = this.#throughput.secondsFor(work);
    const who = ofTenant ? `${own} requests of this tenant` : `${this.#queue.size} requests`;
    throw new GenerationError("OVERLOADED", `${who} wait already; try again in ${retryAfterSeconds} s`, {
      retryAfterSeconds,
    });
  }

  add(task: Task): void {
    this.#fairness.enter(task.tenant);
    this.#queue.add(task);
  }

  /**
   * Takes what begins now out of the queue, in order of fairness, as far as limits allow.
   *
   * @param budget prompt tokens that may be read now; the first item may be longer
   * @param prompts those longer than `long` tokens are read by themselves, slice by slice, and may not begin now unless
   *   `mayBeLong`
   */
  pick(budget: number, prompts: { readonly long: number; readonly mayBeLong: boolean }): Task[] {
    this.#slots.keep((adapter) =>
      [...this.#queue].some((task) => task instanceof TextTask && task.adapter === adapter),
    );
    const picked: Task[] = [];
    let left = this.#limits.maxBatch - this.#rows;
    let read = 0;
    let { mayBeLong } = prompts;
    const isLong = ({ request, rows }: TextTask): boolean => rows > 0 && request.prompt.length > prompts.long;
    const look = (task: Task): Verdict => {
      if (task instanceof ScoreTask) return read > 0 ? "stop" : "serve";
      if (read > 0 && read + task.input > budget) return "stop";
      if (task.rows === 0) return "take";
      if (this.#atTenantLimit(task)) return "tenant";
      if (isLong(task) && !mayBeLong) return "pass";
      if (!this.#slots.admits(task.adapter, (adapter) => this.#remainingOf(adapter))) return "pass";
      if (task.rows > left || !this.#fitsCache(task)) return "stop";
      return "take";
    };
    for (let task = this.#queue.take(look); task; task = this.#queue.take(look)) {
      picked.push(task);
      if (task instanceof ScoreTask) break;
      this.#start(task);
      left -= task.rows;
      read += task.input;
      if (isLong(task)) mayBeLong = false;
    }
    return picked;
  }

  /** Counts generated tokens. */
  generated(task: TextTask, tokens: number): void {
    this.#charge(task, { output: tokens });
  }

  /** A piece of a score task is done. */
  scored(task: ScoreTask): void {
    this.#charge(task, { input: task.plan.pieces[task.done++]!.tokens });
    task.progress();
    if (task.done === task.plan.pieces.length) this.endScore(task);
  }

  /** Measures what was done since the last call. */
  worked(ms: number): void {
    this.#throughput.worked(this.#work, ms);
    this.#work = 0;
  }

  /** A task's job is over: ends it if it waits. One that runs is ended by the loop, when nothing runs for it any more. */
  stop(task: TextTask): void {
    if (this.#queue.remove(task)) this.#end(task);
  }

  /** Ends what runs and is over. */
  endOver(): void {
    for (const task of this.#running) {
      if (!task.job.over) continue;
      this.#running.delete(task);
      if (task.hasSlot) this.#slots.leave(task.adapter);
      this.#end(task);
    }
  }

  /** Ends a score task, with an error if it is not whole; when a piece of it runs, after that. */
  endScore(task: ScoreTask, error?: unknown): void {
    if (task.working) {
      task.failure ??= error;
      return;
    }
    if (!this.#queue.remove(task)) return;
    this.#fairness.leave(task.tenant);
    task.over = true;
    task.end(error);
  }

  /** Fails everything. */
  fail(error: unknown): void {
    for (const task of this.tasks()) {
      if (task instanceof ScoreTask) {
        this.endScore(task, error);
      } else {
        task.job.fail(error);
        this.stop(task);
      }
    }
    this.endOver();
  }

  /** What a tenant has been served, by its weight. */
  served(tenant: string): number {
    return this.#fairness.counter(tenant);
  }

  stats(): Omit<SchedulerStats, "draining"> {
    const tenants = new Map<string, TenantStats>();
    const labels = new Map<string, { waiting: number; running: number }>();
    const count = (task: Task, field: "waiting" | "running"): void => {
      const counter = this.#fairness.counter(task.tenant);
      const tenant = tenants.get(task.tenant) ?? { waiting: 0, running: 0, counter };
      tenants.set(task.tenant, { ...tenant, [field]: tenant[field] + 1 });
      const label = (task instanceof TextTask && task.request.label) || "";
      const of = labels.get(label) ?? { waiting: 0, running: 0 };
      labels.set(label, { ...of, [field]: of[field] + 1 });
    };
    for (const task of this.#queue) count(task, "waiting");
    for (const task of this.#running) count(task, "running");
    return {
      waiting: this.#queue.size,
      running: this.#running.size,
      rows: this.#rows,
      adapters: this.#slots.size,
      kvTokens: this.#rows * Math.max(0, ...[...this.#running].map(({ job }) => job.longest)),
      tenants,
      labels,
    };
  }

  /** Rows that the running requests have or will have. */
  get #rows(): number {
    let rows = 0;
    for (const task of this.#running) rows += task.rows;
    return rows;
  }

  #start(task: TextTask): void {
    this.#running.add(task);
    task.hasSlot = task.rows > 0;
    if (task.hasSlot) this.#slots.enter(task.adapter);
    this.#charge(task, { input: task.input });
    this.observer.admitted?.(task.request, this.#clock.now() - task.submitted);
  }

  #end(task: TextTask): void {
    task.release();
    this.#fairness.leave(task.tenant);
    const { job, request, channel } = task;
    if (job.error !== undefined) {
      const error = job.error instanceof Error ? job.error : new Error(String(job.error));
      this.observer.finished?.(request, error);
      channel.fail(error);
      return;
    }
    if (!job.cancelled) {
      const done = job.sequences.reduce((sum, { tokens }) => sum + tokens.length, 0);
      this.#throughput.ended(job.sequences.length * request.options.maxNewTokens, done);
    }
    const results = job.results();
    this.observer.finished?.(request, results);
    channel.close(results);
  }

  #charge(task: Task, tokens: { readonly input?: number; readonly output?: number }): void {
    this.#fairness.charge(task.tenant, tokens, task.weight);
    this.#work += (tokens.input ?? 0) * INPUT_COST + (tokens.output ?? 0) * OUTPUT_COST;
  }

  #atTenantLimit(task: TextTask): boolean {
    const own = [...this.#running].filter(({ tenant }) => tenant === task.tenant);
    const { maxRunningPerTenant, maxTokensPerTenant = Number.POSITIVE_INFINITY } = this.#limits;
    const tokens = own.reduce((sum, running) => sum + running.tokens, task.tokens);
    return own.length >= maxRunningPerTenant || tokens > maxTokensPerTenant;
  }

  /** Every row of the cache is as long as the longest. */
  #fitsCache(task: TextTask): boolean {
    let rows = task.rows;
    let longest = task.job.longest;
    for (const running of this.#running) {
      rows += running.rows;
      if (running.rows > 0) longest = Math.max(longest, running.job.longest);
    }
    return rows * longest <= this.#limits.maxKvTokens;
  }

  /** Tokens that the present sequences of an adapter may still take. */
  #remainingOf(adapter: Adapter | undefined): number {
    let most = 0;
    for (const task of this.#running)
      if (task.hasSlot && task.adapter === adapter) most = Math.max(most, task.stepsLeft);
    return most;
  }
}

/** The observer with what it throws dropped: telling must not end the work. */
function quiet(observer: SchedulerObserver): SchedulerObserver {
  const safely =
    <A extends unknown[]>(tell: (...args: A) => void) =>
    (...args: A): void => {
      try {
        tell(...args);
      } catch {
        // Whoever watches has to look after itself.
      }
    };
  return {
    ...(observer.admitted && { admitted: safely(observer.admitted.bind(observer)) }),
    ...(observer.firstToken && { firstToken: safely(observer.firstToken.bind(observer)) }),
    ...(observer.token && { token: safely(observer.token.bind(observer)) }),
    ...(observer.finished && { finished: safely(observer.finished.bind(observer)) }),
    ...(observer.step && { step: safely(observer.step.bind(observer)) }),
  };
}
