/** @file One server under some traffic, simulated: its scheduler and its residency of adapters as they are, on a virtual clock. */
import { MiloraError, VirtualClock } from "../../base/index.ts";
import { SimulatedAdapter, SimulatedScheduler } from "../../generation/index.ts";
import { Gate, PARALLEL_LOADS, TURN_MS } from "../adapters/load.ts";
import { Residency } from "../adapters/residency.ts";
import { costsOf, type MethodProfile, type Profile } from "./profile.ts";
import { arrivalsOf, type Demand, demandOf, RequestDraw, type Traffic, weightOf } from "./traffic.ts";

export interface ServerTraffic {
  readonly profile: Profile;
  readonly method: MethodProfile;
  readonly traffic: Traffic;
  /** What of the traffic comes here; default all. */
  readonly demand?: Demand;
  /** Of `traffic.requestsPerSecond` comes here; default 1. */
  readonly share?: number;
}

/** What one server does in the seconds that count. */
export interface ServerForecast {
  readonly requests: number;
  readonly answered: number;
  /** By the code of the error. */
  readonly refused: Readonly<Record<string, number>>;
  readonly promptTokens: number;
  readonly tokens: number;
  readonly seconds: number;
  /** From a request's arrival to its first token, ms. */
  readonly firstTokenMs: Float64Array;
  readonly betweenTokensMs: Float64Array;
  /** In the queue, without what waiting for the adapter took. */
  readonly queueMs: Float64Array;
  /** Share of the time in which there was something to do. */
  readonly busy: number;
  /** Rows of a step, on average. */
  readonly rows: number;
  readonly adapters: {
    readonly hits: number;
    readonly loads: number;
    readonly evictions: number;
    readonly bytes: number;
  };
  readonly kvTokens: number;
  /** Tokens that were read and 2 · those that were generated, by tenant. */
  readonly served: ReadonlyMap<number, number>;
  /** When the last request had ended. */
  readonly endedAfterSeconds: number;
}

/** A machine that does one thing at a time, in the order in which it was asked to. */
class Processor {
  readonly #clock: VirtualClock;
  #freeAt = 0;
  #busyMs = 0;

  constructor(clock: VirtualClock) {
    this.#clock = clock;
  }

  get busyMs(): number {
    return this.#busyMs;
  }

  readonly spend = (ms: number): Promise<void> => {
    const now = this.#clock.now();
    this.#freeAt = Math.max(now, this.#freeAt) + ms;
    this.#busyMs += ms;
    return this.#clock.sleep(this.#freeAt - now);
  };
}

/** Runs the traffic to the last answer. The same arguments give the same result. */
export async function simulateServer(asked: ServerTraffic): Promise<ServerForecast> {
  return new SimulatedServer(asked).run();
}

class SimulatedServer {
  readonly #asked: ServerTraffic;
  readonly #clock = new VirtualClock();
  readonly #machine = new Processor(this.#clock);
  readonly #scheduler: SimulatedScheduler;
  readonly #residency: Residency<SimulatedAdapter>;
  readonly #draw: RequestDraw;
  readonly #from: number;
  readonly #to: number;
  readonly #first: number[] = [];
  readonly #between: number[] = [];
  readonly #queue: number[] = [];
  readonly #refused: Record<string, number> = {};
  readonly #served = new Map<number, number>();
  #warming = false;
  #requests = 0;
  #answered = 0;
  #promptTokens = 0;
  #tokens = 0;
  #steps = 0;
  #rows = 0;
  #adapterBytes = 0;
  #kvTokens = 0;
  #endedAt = 0;
  #looked = Number.NEGATIVE_INFINITY;

  constructor(asked: ServerTraffic) {
    const { profile, method, traffic } = asked;
    this.#asked = asked;
    this.#draw = new RequestDraw(traffic, asked.demand);
    this.#from = 1000 * traffic.warmupSeconds;
    this.#to = this.#from + 1000 * traffic.seconds;
    this.#scheduler = new SimulatedScheduler(
      costsOf(profile, method),
      { clock: this.#clock, spend: this.#machine.spend },
      traffic.limits,
      {
        admitted: (_, waitedMs) => {
          if (this.#counts) this.#queue.push(waitedMs);
        },
        step: ({ rows }) => {
          if (!this.#counts) return;
          this.#steps++;
          this.#rows += rows;
        },
      },
    );
    const gate = new Gate(PARALLEL_LOADS);
    this.#residency = new Residency({
      ...{ maxBytes: traffic.residency.maxResidentBytes, maxAdapters: traffic.residency.maxResident },
      ...{ waitMs: traffic.residency.leaseTimeoutMs, clock: this.#clock, forget: () => {} },
      load: async (_, { reserve }, signal) => {
        using _place = await gate.enter();
        signal.throwIfAborted();
        await reserve(method.adapterBytes);
        for (let left = this.#warming ? 0 : method.loadMs; left > 0; left -= TURN_MS) {
          await this.#machine.spend(Math.min(left, TURN_MS));
        }
        return new SimulatedAdapter();
      },
    });
  }

  async run(): Promise<ServerForecast> {
    const { traffic, share = 1 } = this.#asked;
    if (traffic.startWarm && this.#asked.method.name !== "bare") await this.#warm();
    const began: { stats: Residency["stats"]; busyMs: number }[] = [];
    const note = (): void => void began.push({ stats: this.#residency.stats, busyMs: this.#machine.busyMs });
    this.#clock.after(this.#from, note);
    this.#clock.after(this.#to, note);
    if (traffic.streams === undefined) void this.#arrive(share);
    else for (let i = 0; i < traffic.streams; i++) void this.#stream();
    await this.#clock.run();
    const [start, end] = began as [(typeof began)[0], (typeof began)[0]];
    const of = (key: "hits" | "loads" | "evictions"): number => end.stats[key] - start.stats[key];
    return {
      ...{ requests: this.#requests, answered: this.#answered, refused: this.#refused },
      ...{ promptTokens: this.#promptTokens, tokens: this.#tokens, seconds: traffic.seconds },
      firstTokenMs: Float64Array.from(this.#first).sort(),
      betweenTokensMs: Float64Array.from(this.#between).sort(),
      queueMs: Float64Array.from(this.#queue).sort(),
      busy: Math.min(1, (end.busyMs - start.busyMs) / (this.#to - this.#from)),
      rows: this.#steps === 0 ? 0 : this.#rows / this.#steps,
      adapters: { hits: of("hits"), loads: of("loads"), evictions: of("evictions"), bytes: this.#adapterBytes },
      ...{ kvTokens: this.#kvTokens, served: this.#served },
      endedAfterSeconds: this.#endedAt / 1000,
    };
  }

  /** Whether it is one of the seconds that count. */
  get #counts(): boolean {
    const now = this.#clock.now();
    return now >= this.#from && now < this.#to;
  }

  /** Fills memory, in no time, with what is asked for most; that last, as the latest in use. */
  async #warm(): Promise<void> {
    const { traffic, method, demand = demandOf(traffic) } = this.#asked;
    const { maxResident, maxResidentBytes } = traffic.residency;
    const places = Math.min(maxResident, Math.floor(maxResidentBytes / Math.max(1, method.adapterBytes)));
    const most = [...demand.rates.keys()].sort((a, b) => demand.rates[b]! - demand.rates[a]!);
    const first = most.slice(0, Math.ceil(places / traffic.adaptersPerTenant));
    const names = first.flatMap((i) => [...adaptersOf(demand.tenants[i]!, traffic)]).slice(0, places);
    this.#warming = true;
    for (const name of names.reverse()) (await this.#residency.acquire(name)).release();
    this.#warming = false;
  }

  async #arrive(share: number): Promise<void> {
    for (const at of arrivalsOf(this.#asked.traffic, share)) {
      await this.#clock.sleep(at - this.#clock.now());
      void this.#serve();
    }
  }

  async #stream(): Promise<void> {
    while (this.#clock.now() < this.#to) if (!(await this.#serve())) await this.#clock.sleep(1000);
  }

  /** One request, from its arrival to its end, as `http/openai/call.ts` has it. */
  async #serve(): Promise<boolean> {
    const { traffic, method, profile } = this.#asked;
    const { maxNewTokens, deadlineSeconds } = traffic;
    const { tenant, adapter: own, prompt, answer } = this.#draw.next();
    const arrived = this.#clock.now();
    const counts = this.#counts;
    if (counts) this.#requests++;
    let release: () => void = () => {};
    try {
      await this.#machine.spend(profile.http.requestMs);
      let adapter: SimulatedAdapter | undefined;
      const claim = (): number => this.#scheduler.served(String(tenant));
      if (method.name !== "bare")
        ({ adapter, release } = await this.#residency.acquire(nameOf(tenant, own), { claim }));
      let last: number | undefined;
      const tokens = this.#scheduler.submit({
        ...{ tenant: String(tenant), weight: weightOf(traffic, tenant), adapter, prompt, answer, maxNewTokens },
        ...(deadlineSeconds !== undefined && { deadlineMs: 1000 * deadlineSeconds }),
      });
      for await (const _ of tokens) {
        const now = this.#clock.now();
        if (last === undefined) this.#serveTokens(tenant, { read: prompt });
        if (counts && last === undefined) this.#first.push(now - arrived);
        if (counts && last !== undefined) this.#between.push(now - last);
        this.#serveTokens(tenant, { generated: 1 });
        last = now;
      }
      if (counts) this.#answered++;
      return true;
    } catch (error) {
      if (!(error instanceof MiloraError)) throw error;
      if (counts) this.#refused[error.code] = (this.#refused[error.code] ?? 0) + 1;
      return false;
    } finally {
      release();
      this.#endedAt = this.#clock.now();
      this.#look();
    }
  }

  #serveTokens(tenant: number, { read = 0, generated = 0 }): void {
    if (!this.#counts) return;
    this.#promptTokens += read;
    this.#tokens += generated;
    this.#served.set(tenant, (this.#served.get(tenant) ?? 0) + read + 2 * generated);
  }

  /** Looks at memory, now and then. */
  #look(): void {
    if (this.#clock.now() < this.#looked + 100) return;
    this.#looked = this.#clock.now();
    this.#kvTokens = Math.max(this.#kvTokens, this.#scheduler.stats().kvTokens);
    this.#adapterBytes = Math.max(this.#adapterBytes, this.#residency.stats.residentBytes);
  }
}

function nameOf(tenant: number, adapter: number): string {
  return `${tenant}/${adapter}`;
}

function* adaptersOf(tenant: number, { adaptersPerTenant }: Traffic): Iterable<string> {
  for (let adapter = 0; adapter < adaptersPerTenant; adapter++) yield nameOf(tenant, adapter);
}
