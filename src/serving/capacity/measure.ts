/** @file What an engine's scheduler takes: prompts that are read, steps of sequences that decode, and both in turns. */
import { readFileSync } from "node:fs";
import { deriveSeed, median, Random } from "../../base/index.ts";
import { type Engine, type ScheduledRequest, Scheduler } from "../../generation/index.ts";
import type { Adapter } from "../../methods/index.ts";

/** Tokens of the prompts before steps that are measured. */
const STEP_PROMPT = 16;
/** Steps that are not counted after rows have come. */
const SETTLE = 3;
const MOST_STEPS = 2048;

export interface Patience {
  /** Of a single number. */
  readonly ms: number;
  /** Of what is measured at least, whatever it takes. */
  readonly least: number;
}

/** A step as it was measured. */
export interface Step {
  readonly rows: number;
  readonly adapters: number;
  readonly ms: number;
  /** When it had ended. */
  readonly at: number;
  /** Rows had come or gone since the one before. */
  readonly changed: boolean;
}

/** A scheduler of its own over an engine. The engine does nothing else meanwhile. */
export class Meter implements AsyncDisposable {
  readonly maxRows: number;
  readonly #scheduler: Scheduler;
  readonly #patience: Patience;
  readonly #random = new Random(deriveSeed(0, "bench"));
  readonly #engine: Engine;
  #steps: Step[] = [];
  #changed = false;

  constructor(engine: Engine, maxRows: number, patience: Patience) {
    this.maxRows = maxRows;
    this.#patience = patience;
    this.#engine = engine;
    const limits = { maxBatch: maxRows, maxAdaptersPerBatch: maxRows, maxKvTokens: 2 ** 30 };
    this.#scheduler = new Scheduler(engine, limits, {
      admitted: () => {
        this.#changed = true;
      },
      finished: () => {
        this.#changed = true;
      },
      step: (step) => {
        this.#steps.push({ ...step, at: performance.now(), changed: this.#changed });
        this.#changed = false;
      },
    });
  }

  /** Milliseconds to the first token of a prompt; with several adapters, of a prompt under each, until all are there. */
  async read(tokens: number, adapters: readonly (Adapter | undefined)[]): Promise<number> {
    const times = await this.#repeat(async () => {
      const began = performance.now();
      await Promise.all(adapters.map((adapter) => this.#answer(this.#prompt(tokens), adapter, 1)));
      return performance.now() - began;
    });
    return median(times);
  }

  /**
   * Milliseconds from one step to the next, of as many rows as there are adapters.
   * @returns and the positions that a row had in the cache
   */
  async step(
    adapters: readonly (Adapter | undefined)[],
    prompt = STEP_PROMPT,
  ): Promise<{ ms: number; positions: number }> {
    const { ms, least } = this.#patience;
    this.#steps = [];
    const stops = adapters.map(() => new AbortController());
    const answers = adapters.map((adapter, i) => {
      const most = Math.min(MOST_STEPS, this.#engine.contextOf(adapter) - prompt);
      return this.#answer(this.#prompt(prompt), adapter, most, stops[i]!.signal);
    });
    let over = false;
    const ended = Promise.all(answers).finally(() => {
      over = true;
    });
    const full = (): Step[] => this.#steps.filter(({ rows }) => rows === adapters.length);
    const enough = (): boolean => {
      const steps = full();
      const [first] = steps;
      return steps.length > SETTLE + 2 * least && performance.now() - first!.at > ms;
    };
    while (!over && !enough()) await new Promise((resolve) => setTimeout(resolve, 2));
    for (const stop of stops) stop.abort();
    await ended;
    const counted = full().slice(SETTLE);
    const gaps = counted.slice(1).map(({ at }, i) => at - counted[i]!.at);
    return { ms: median(gaps), positions: prompt + SETTLE + counted.length / 2 };
  }

  /** Milliseconds of the main thread for a request when all rows are always wanted. @param adapters one is drawn for each */
  async busy(load: ClosedLoad, adapters: readonly (Adapter | undefined)[]): Promise<number> {
    const draw = new Random(deriveSeed(1, "bench"));
    const { busyMs } = await closedLoop(load, this.#patience, async () => {
      await this.#answer(this.#prompt(load.prompt), adapters[draw.integer(adapters.length)], load.answer);
    });
    return busyMs;
  }

  /** The steps of sequences that come and go all the time: answers are `load.answer` long on average, not all alike. */
  async comings(load: ClosedLoad, adapters: readonly (Adapter | undefined)[]): Promise<readonly Step[]> {
    const draw = new Random(deriveSeed(2, "bench"));
    this.#steps = [];
    await closedLoop(load, this.#patience, async () => {
      const answer = 1 + draw.integer(2 * load.answer - 1);
      await this.#answer(this.#prompt(load.prompt), adapters[draw.integer(adapters.length)], answer);
    });
    return this.#steps.slice(load.answer);
  }

  /** Arbitrary tokens that no other prompt has. */
  #prompt(tokens: number): number[] {
    return Array.from({ length: tokens }, () => this.#random.integer(this.#engine.backbone.config.vocabSize));
  }

  async #answer(
    prompt: readonly number[],
    adapter: Adapter | undefined,
    maxNewTokens: number,
    signal?: AbortSignal,
  ): Promise<void> {
    const request: ScheduledRequest = {
      ...{ tenant: "bench", prompt, options: { maxNewTokens, eosTokenIds: [] } },
      ...(adapter && { adapter }),
      ...(signal && { signal }),
    };
    for await (const _ of this.#scheduler.submit(request)) {
      // what a consumer does is small
    }
  }

  /** Once to warm up, then until the time is up. */
  async #repeat(run: () => Promise<number>): Promise<number[]> {
    const { ms, least } = this.#patience;
    await run();
    const began = performance.now();
    const times: number[] = [];
    while (times.length < least || performance.now() - began < ms) times.push(await run());
    return times;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#scheduler[Symbol.asyncDispose]();
  }
}

export interface ClosedLoad {
  readonly streams: number;
  readonly prompt: number;
  readonly answer: number;
}

/** Processor time of this thread; where the system does not tell, the time in which its event loop had something to do. */
function busyMsNow(): number {
  try {
    const nanoseconds = readFileSync("/proc/thread-self/schedstat", "utf8").split(" ")[0];
    return Number(nanoseconds) / 1e6;
  } catch {
    return performance.eventLoopUtilization().active;
  }
}

/**
 * Streams that each ask again as soon as they are answered; each asks once before it counts.
 * @returns milliseconds that the main thread was busy for a request
 */
export async function closedLoop(
  load: ClosedLoad,
  patience: Patience,
  ask: () => Promise<void>,
): Promise<{ readonly busyMs: number }> {
  const { streams } = load;
  const duration = 4 * patience.ms;
  let asked = 0;
  let began = Number.NaN;
  let over = false;
  let ended = 0;
  let busyMs = Number.NaN;
  let start = busyMsNow();
  const one = async (): Promise<void> => {
    await ask();
    if (++asked === streams) {
      began = performance.now();
      start = busyMsNow();
    }
    while (!over) {
      await ask();
      if (over || Number.isNaN(began)) continue;
      ended++;
      busyMs = (busyMsNow() - start) / ended;
      // From one end to another, all streams asking all the time.
      over = performance.now() - began > duration && ended >= 2 * streams;
    }
  };
  await Promise.all(Array.from({ length: streams }, one));
  return { busyMs };
}
