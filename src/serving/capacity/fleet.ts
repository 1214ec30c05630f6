/** @file Many servers: which tenants' requests come to which, what all of them do together, how many are needed, what that costs. */
import { deriveSeed, InputError, mean, Random, sum } from "../../base/index.ts";
import { type MethodProfile, MODEL_EACH, type Profile } from "./profile.ts";
import { type ServerForecast, simulateServer } from "./simulate.ts";
import { type Demand, demandOf, type Traffic } from "./traffic.ts";

/** A server takes at most so much more than the mean of all; what is more goes to the next one. */
const BOUND = 1.25;

/** Share of the time below which a server does not get quicker by having less to do. */
const IDLE = 0.01;

/** Of a machine's memory, what a server may take. */
const USABLE = 0.9;

export interface Share {
  readonly demand: Demand;
  /** Of all requests. */
  readonly share: number;
}

/**
 * Which of the traffic comes to which server: each tenant to a server of its own choice as long as that has room, then to
 * the next (consistent hashing with bounded loads; Mirrokni et al., 2018), so that few servers hold its adapter.
 */
export function placeTenants(traffic: Traffic, servers: number): Share[] {
  const { tenants, rates } = demandOf(traffic);
  if (servers === 1) return [{ demand: { tenants, rates }, share: 1 }];
  const most = BOUND / servers;
  const placed = Array.from({ length: servers }, () => ({ tenants: [] as number[], rates: [] as number[], share: 0 }));
  const random = new Random(deriveSeed(traffic.seed, "placement"));
  for (const [i, tenant] of tenants.entries()) {
    let left = rates[i]!;
    for (let at = random.integer(servers); left > 0; at = (at + 1) % servers) {
      const server = placed[at]!;
      const taken = Math.min(left, most - server.share);
      if (taken <= 0) continue;
      server.tenants.push(tenant);
      server.rates.push(taken);
      server.share += taken;
      left = left - taken < 1e-12 ? 0 : left - taken;
    }
  }
  return placed.map((server) => ({
    demand: { tenants: Uint32Array.from(server.tenants), rates: Float64Array.from(server.rates) },
    share: server.share,
  }));
}

export interface FleetQuestion {
  readonly profile: Profile;
  readonly method: MethodProfile;
  readonly traffic: Traffic;
  readonly servers: number;
  /** Servers that are simulated, of those with tenants; the others are taken to be as they are. Default 4. */
  readonly sample?: number;
  /** Of an hour of one machine, in any currency. */
  readonly price?: number | undefined;
}

export interface Quantiles {
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
}

export interface FleetForecast {
  readonly method: string;
  readonly servers: number;
  readonly simulated: number;
  readonly requestsPerSecond: number;
  /** Of all servers, generated. */
  readonly tokensPerSecond: number;
  readonly promptTokensPerSecond: number;
  /** Shares of the requests, by the code of the error. */
  readonly refused: Readonly<Record<string, number>>;
  readonly refusedShare: number;
  readonly firstTokenMs: Quantiles;
  readonly betweenTokensMs: Quantiles;
  readonly queueMs: Quantiles;
  /** Requests that wait in the queue of a server, on average. */
  readonly waiting: number;
  readonly busy: number;
  readonly rows: number;
  /** Requests whose adapter was in memory already. */
  readonly adapterHits: number;
  readonly adapterLoadsPerSecond: number;
  /** Of the server that takes the most. */
  readonly memoryBytes: number;
  readonly memoryFits: boolean;
  /** Of 1e6 generated tokens. */
  readonly costPerMillionTokens?: number;
}

/** @throws InputError CONFIG_INVALID for traffic that no server takes */
export async function planFleet(question: FleetQuestion): Promise<FleetForecast> {
  const { profile, method, servers, sample = 4 } = question;
  const traffic = withMemory(question);
  if (servers > 1 && traffic.streams !== undefined) {
    throw new InputError("CONFIG_INVALID", "traffic", "streams: only with one server; say requestsPerSecond");
  }
  const placed = placeTenants(traffic, servers)
    .filter(({ share }) => share > 0)
    .sort((a, b) => b.share - a.share);
  const forecasts: Weighed[] = [];
  for (const [i, { share, stands }] of representatives(placed, sample).entries()) {
    const seed = i === 0 ? traffic.seed : deriveSeed(traffic.seed, `server ${i}`);
    const forecast = await simulateServer({ profile, method, traffic: { ...traffic, seed }, ...share });
    forecasts.push({ ...forecast, stands });
  }
  return summarize(question, forecasts);
}

/** What a server does, and how many of its kind there are. */
interface Weighed extends ServerForecast {
  readonly stands: number;
}

/** One server of each part of a fleet, of the first part the one that most comes to. */
function representatives(placed: readonly Share[], sample: number): { share: Share; stands: number }[] {
  const parts = Math.min(sample, placed.length);
  return Array.from({ length: parts }, (_, i) => {
    const part = placed.slice(Math.round((i * placed.length) / parts), Math.round(((i + 1) * placed.length) / parts));
    const share = part[i === 0 ? 0 : part.length >> 1]!;
    return { share, stands: sum(part.map((one) => one.share)) / share.share };
  });
}

/** A server of a model for each tenant holds as many as fit. */
function withMemory({ profile, method, traffic }: Omit<FleetQuestion, "servers">): Traffic {
  if (method.name !== MODEL_EACH) return traffic;
  const free = Math.floor(USABLE * profile.machine.memoryBytes) - profile.processBytes;
  const maxResidentBytes = Math.max(free, method.adapterBytes);
  return { ...traffic, residency: { ...traffic.residency, maxResidentBytes, maxResident: 1_000_000 } };
}

function summarize(question: FleetQuestion, all: readonly Weighed[]): FleetForecast {
  const { profile, method, servers, price } = question;
  const total = (of: (one: ServerForecast) => number): number => sum(all.map(of));
  const perSecond = (of: (one: ServerForecast) => number): number =>
    sum(all.map((one) => (one.stands * of(one)) / one.seconds));
  const requests = Math.max(
    1,
    total((one) => one.requests),
  );
  const refused: Record<string, number> = {};
  for (const one of all) {
    for (const [code, times] of Object.entries(one.refused)) refused[code] = (refused[code] ?? 0) + times / requests;
  }
  const quantiles = (key: "firstTokenMs" | "betweenTokensMs" | "queueMs"): Quantiles => {
    const values = all.length === 1 ? all[0]![key] : Float64Array.from(all.flatMap((one) => [...one[key]])).sort();
    return { p50: quantile(values, 0.5), p95: quantile(values, 0.95), p99: quantile(values, 0.99) };
  };
  const hits = total(({ adapters }) => adapters.hits);
  const asked = hits + total(({ adapters }) => adapters.loads);
  const memory = Math.max(...all.map((one) => memoryOf(profile, method, one)));
  const tokensPerSecond = perSecond(({ tokens }) => tokens);
  return {
    ...{ method: method.name, servers, simulated: all.length },
    requestsPerSecond: perSecond((one) => one.requests),
    ...{ tokensPerSecond, promptTokensPerSecond: perSecond(({ promptTokens }) => promptTokens) },
    ...{ refused, refusedShare: sum(Object.values(refused)) },
    firstTokenMs: quantiles("firstTokenMs"),
    betweenTokensMs: quantiles("betweenTokensMs"),
    queueMs: quantiles("queueMs"),
    waiting: mean(all.map(({ queueMs, seconds }) => sum(queueMs) / (1000 * seconds))),
    busy: mean(all.map(({ busy }) => busy)),
    rows: mean(all.map(({ rows }) => rows)),
    adapterHits: asked === 0 ? 1 : hits / asked,
    adapterLoadsPerSecond: perSecond(({ adapters }) => adapters.loads),
    memoryBytes: memory,
    memoryFits: memory <= USABLE * profile.machine.memoryBytes,
    ...(price !== undefined && { costPerMillionTokens: (servers * price) / ((tokensPerSecond * 3600) / 1e6) }),
  };
}

function memoryOf({ processBytes, model }: Profile, { name }: MethodProfile, one: ServerForecast): number {
  const backbone = name === MODEL_EACH ? 0 : model.bytes; // there models are what is loaded
  return processBytes + backbone + one.adapters.bytes + one.kvTokens * model.kvBytesPerPosition;
}

/** Of sorted values; NaN for none. */
function quantile(values: Float64Array, share: number): number {
  return values[Math.min(values.length - 1, Math.floor(share * values.length))] ?? Number.NaN;
}

/** Whether a fleet does what the traffic's target says. */
export function meetsTarget({ target }: Traffic, forecast: FleetForecast): boolean {
  const { firstTokenMs, refusedShare, memoryFits } = forecast;
  return memoryFits && refusedShare <= target.refused && firstTokenMs.p95 <= target.firstTokenP95Ms;
}

/** Requests a second of one server that always has enough to do. */
async function mostOf(question: Omit<FleetQuestion, "servers">): Promise<number> {
  const { requestsPerSecond: _, ...traffic } = withMemory(question);
  const streams = traffic.limits.maxBatch;
  const closed = { ...traffic, streams, seconds: 20, warmupSeconds: 2 };
  const { answered, seconds } = await simulateServer({ ...question, traffic: closed });
  return Math.max(answered, 1) / seconds;
}

/**
 * The smallest fleet that meets the target; of more than a hundred servers, to a percent.
 * @throws InputError CONFIG_INVALID where no number of servers does
 */
export async function sizeFleet(question: Omit<FleetQuestion, "servers">): Promise<FleetForecast> {
  const { traffic, profile, method } = question;
  if (traffic.streams !== undefined) {
    throw new InputError("CONFIG_INVALID", "traffic", "streams: a fleet is sized for requestsPerSecond");
  }
  // While looking, only the server that most comes to: it decides.
  const look = (servers: number): Promise<FleetForecast> => planFleet({ ...question, servers, sample: 1 });
  let fails = 0;
  let meets = Math.max(1, Math.floor(traffic.requestsPerSecond! / (2 * (await mostOf(question)))));
  for (;;) {
    const forecast = await look(meets);
    if (meetsTarget(traffic, forecast)) break;
    fails = meets;
    meets *= 2;
    if (forecast.busy < IDLE || forecast.requestsPerSecond === 0) {
      const { firstTokenP95Ms, refused } = traffic.target;
      const wanted = `p95 of the first token ${firstTokenP95Ms} ms, at most ${refused} refused`;
      const text = `no number of servers under ${method.name} meets the target (${wanted}; ${profile.machine.cpu})`;
      throw new InputError("CONFIG_INVALID", "traffic", `${text}: allow more, or take another machine`);
    }
  }
  while (meets - fails > Math.max(1, meets / 100)) {
    const middle = (fails + meets) >> 1;
    if (meetsTarget(traffic, await look(middle))) meets = middle;
    else fails = middle;
  }
  // The others of the sample have their say, too: chance is theirs as well.
  for (;;) {
    const forecast = await planFleet({ ...question, servers: meets });
    if (meetsTarget(traffic, forecast)) return forecast;
    meets += Math.ceil(meets / 100);
  }
}
