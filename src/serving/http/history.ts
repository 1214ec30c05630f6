/** @file The last hour of a server, a point a second, in memory that does not grow. */
import type { Scheduler, SchedulerObserver } from "../../generation/index.ts";
import type { ServerHistory } from "../studio/types.ts";

/** Seconds that are kept. */
export const HISTORY_SECONDS = 3600;
/** Times that a second's percentiles are of; of more, the last ones. */
const SAMPLES = 4096;

type Column = Exclude<keyof ServerHistory, "from">;
/** A second in which nothing happened; NaN: no time of it is known. */
const QUIET: Readonly<Record<Column, number>> = {
  ...{ waiting: 0, running: 0, tokens: 0, requests: 0, errors: 0 },
  ...{ firstTokenP50: Number.NaN, firstTokenP95: Number.NaN },
  ...{ betweenTokensP50: Number.NaN, betweenTokensP95: Number.NaN },
};

/** Times of the second that goes on, in milliseconds. */
class Samples {
  readonly #values = new Float64Array(SAMPLES);
  #count = 0;

  add(ms: number): void {
    this.#values[this.#count++ % SAMPLES] = ms;
  }

  /** The median and the 95th percentile of all since the last call; NaN when there were none. */
  take(): [number, number] {
    const values = this.#values.subarray(0, Math.min(this.#count, SAMPLES)).sort();
    this.#count = 0;
    const at = (share: number): number => values[Math.ceil(share * values.length) - 1] ?? Number.NaN;
    return [at(0.5), at(0.95)];
  }
}

/** What the scheduler and the routes tell, summed up each second. */
export class History implements Disposable {
  readonly #now: () => number;
  readonly #rings: Readonly<Record<Column, Float64Array>>;
  readonly #firstToken = new Samples();
  readonly #betweenTokens = new Samples();
  #counts = { tokens: 0, requests: 0, errors: 0 };
  /** Seconds since 1970: the first that there is a point of, and the one that goes on. */
  readonly #first: number;
  #second: number;
  #stats: Pick<Scheduler, "stats"> | undefined;
  #timer: NodeJS.Timeout | undefined;

  /** @param now milliseconds since 1970 that never go back; default by the clock that the process began with */
  constructor(now = (): number => performance.timeOrigin + performance.now()) {
    this.#now = now;
    this.#first = Math.floor(now() / 1000);
    this.#second = this.#first;
    const ring = (): Float64Array => new Float64Array(HISTORY_SECONDS);
    this.#rings = Object.fromEntries(Object.keys(QUIET).map((name) => [name, ring()])) as Record<Column, Float64Array>;
  }

  /** What the scheduler tells as it goes. */
  get observer(): SchedulerObserver {
    return {
      firstToken: (_, ms) => {
        this.#counts.tokens++;
        this.#firstToken.add(ms);
      },
      token: (_, ms) => {
        this.#counts.tokens++;
        this.#betweenTokens.add(ms);
      },
    };
  }

  /** A request that gives the model work was answered. */
  answered(failed: boolean): void {
    this.#counts.requests++;
    if (failed) this.#counts.errors++;
  }

  /** Begins to write a point each second. */
  watch(scheduler: Pick<Scheduler, "stats">): void {
    this.#stats = scheduler;
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.tick(), 1000).unref();
  }

  /** Writes points for the seconds that are over. */
  tick(): void {
    const now = Math.floor(this.#now() / 1000);
    if (now <= this.#second) return;
    const { waiting = 0, running = 0 } = this.#stats?.stats() ?? {};
    const [firstTokenP50, firstTokenP95] = this.#firstToken.take();
    const [betweenTokensP50, betweenTokensP95] = this.#betweenTokens.take();
    const point: Record<Column, number> = {
      ...{ waiting, running, ...this.#counts },
      ...{ firstTokenP50, firstTokenP95, betweenTokensP50, betweenTokensP95 },
    };
    this.#counts = { tokens: 0, requests: 0, errors: 0 };
    this.#second = Math.max(this.#second, now - HISTORY_SECONDS);
    // Where the process was held up for seconds, what came in them is told with the first.
    for (let filled = point; this.#second < now; this.#second++) {
      const at = this.#second % HISTORY_SECONDS;
      for (const [name, ring] of Object.entries(this.#rings)) ring[at] = filled[name as Column];
      filled = { ...QUIET, waiting, running };
    }
  }

  /** The last `seconds` that are over, or as many as there are. */
  read(seconds: number): ServerHistory {
    this.tick();
    const kept = Math.max(this.#first, this.#second - HISTORY_SECONDS);
    const from = Math.max(kept, this.#second - seconds);
    const column = (name: Column): number[] => {
      const ring = this.#rings[name];
      return Array.from({ length: this.#second - from }, (_, index) => ring[(from + index) % HISTORY_SECONDS]!);
    };
    const times = (name: Column): (number | null)[] => column(name).map((ms) => (Number.isNaN(ms) ? null : ms));
    return {
      from,
      ...{ waiting: column("waiting"), running: column("running"), tokens: column("tokens") },
      ...{ requests: column("requests"), errors: column("errors") },
      ...{ firstTokenP50: times("firstTokenP50"), firstTokenP95: times("firstTokenP95") },
      ...{ betweenTokensP50: times("betweenTokensP50"), betweenTokensP95: times("betweenTokensP95") },
    };
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/** Tells both. */
export function both(one: SchedulerObserver, other: SchedulerObserver): SchedulerObserver {
  return {
    admitted(request, ms) {
      one.admitted?.(request, ms);
      other.admitted?.(request, ms);
    },
    firstToken(request, ms) {
      one.firstToken?.(request, ms);
      other.firstToken?.(request, ms);
    },
    token(request, ms) {
      one.token?.(request, ms);
      other.token?.(request, ms);
    },
    finished(request, outcome) {
      one.finished?.(request, outcome);
      other.finished?.(request, outcome);
    },
    step(step) {
      one.step?.(step);
      other.step?.(step);
    },
  };
}
