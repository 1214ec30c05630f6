/** @file What is asked of a server or a fleet: how much, by whom, how long prompts and answers are. */
import { z } from "zod";
import { deriveSeed, Random, sum } from "../../base/index.ts";
import { schedulerLimitsSchema } from "../../generation/index.ts";
import { registryLimitsSchema } from "../adapters/index.ts";

const count = z.int().min(1);
const positive = z.number().positive();

const lengthSchema = z.union([
  count,
  z
    .strictObject({ min: count, max: count })
    .refine(({ min, max }) => min <= max, "min must not be more than max")
    .describe("all lengths alike"),
  z
    .strictObject({ median: positive, p95: positive, max: count.optional() })
    .refine(({ median, p95 }) => median <= p95, "median must not be more than p95")
    .describe("log-normal"),
]);

export const trafficSchema = z
  .strictObject({
    tenants: count.max(10_000_000).default(1).describe("each with adapters of its own"),
    adaptersPerTenant: count.default(1).describe("adapters of a tenant, all asked for alike"),
    zipf: z.number().min(0).max(10).default(0).describe("the i-th tenant asks in proportion to i^-zipf; 0: all alike"),
    weights: z
      .array(z.strictObject({ share: z.number().gt(0).max(1), weight: positive }))
      .default([])
      .describe("share of the tenants that have another weight than 1"),
    requestsPerSecond: positive.optional().describe("that come by chance, of all tenants"),
    arrivals: z.enum(["poisson", "even"]).default("poisson").describe("by chance, or one after another in equal times"),
    streams: count.optional().describe("instead: so many at a time, each asking again as soon as it is answered"),
    prompt: lengthSchema.default(64).describe("tokens of a prompt"),
    answer: lengthSchema.default(64).describe("tokens of an answer"),
    maxNewTokens: count.optional().describe("what requests ask for; default what the answer has"),
    deadlineSeconds: positive.optional().describe("after which an answer is given up"),
    seconds: positive.default(60).describe("that are measured"),
    warmupSeconds: z.number().min(0).default(10).describe("before that are not"),
    startWarm: z.boolean().default(true).describe("whether memory begins with the adapters that are asked for most"),
    seed: z.int().min(0).default(0),
    limits: schedulerLimitsSchema.prefault({}).describe("as of a server's config"),
    residency: registryLimitsSchema.prefault({}).describe("as of a server's config"),
    target: z
      .strictObject({
        firstTokenP95Ms: positive.default(1000),
        refused: z.number().min(0).max(1).default(0.001).describe("share of the requests that may be refused"),
      })
      .prefault({})
      .describe("what `milora plan --size` sizes a fleet for"),
  })
  .refine((traffic) => (traffic.requestsPerSecond === undefined) !== (traffic.streams === undefined), {
    message: "either requestsPerSecond or streams must be given",
  })
  .refine(({ weights }) => sum(weights.map(({ share }) => share)) <= 1, {
    message: "shares of the weights are more than 1 in all",
  });

export type Traffic = z.output<typeof trafficSchema>;
export type TrafficInput = z.input<typeof trafficSchema>;

/** What of the tenants comes to one server: their numbers, from 0, and requests a second of each, in any unit. */
export interface Demand {
  readonly tenants: Uint32Array;
  readonly rates: Float64Array;
}

/** All of the traffic; rates are shares, 1 in all. */
export function demandOf({ tenants, zipf }: Traffic): Demand {
  const rates = Float64Array.from({ length: tenants }, (_, i) => (i + 1) ** -zipf);
  const all = sum(rates);
  return { tenants: Uint32Array.from(rates.keys()), rates: rates.map((rate) => rate / all) };
}

/** Draws tenants by their rates. */
class TenantDraw {
  readonly #tenants: Uint32Array;
  readonly #cumulated: Float64Array;

  constructor({ tenants, rates }: Demand) {
    this.#tenants = tenants;
    let all = 0;
    this.#cumulated = rates.map((rate) => {
      all += rate;
      return all;
    });
  }

  /** @param uniform in [0, 1) */
  at(uniform: number): number {
    const wanted = uniform * this.#cumulated.at(-1)!;
    let low = 0;
    let high = this.#cumulated.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#cumulated[middle]! > wanted) high = middle;
      else low = middle + 1;
    }
    return this.#tenants[low]!;
  }
}

/** A request as it is drawn. */
export interface Drawn {
  readonly tenant: number;
  /** Which of the tenant's adapters. */
  readonly adapter: number;
  readonly prompt: number;
  readonly answer: number;
}

/** Draws requests one after another; the same ones from the same traffic. */
export class RequestDraw {
  readonly #traffic: Traffic;
  readonly #tenants: TenantDraw;
  readonly #random: Random;

  constructor(traffic: Traffic, demand: Demand = demandOf(traffic)) {
    this.#traffic = traffic;
    this.#tenants = new TenantDraw(demand);
    this.#random = new Random(deriveSeed(traffic.seed, "requests"));
  }

  next(): Drawn {
    const { prompt, answer, maxNewTokens, adaptersPerTenant } = this.#traffic;
    const tenant = this.#tenants.at(this.#random.uniform());
    const most = maxNewTokens ?? Number.POSITIVE_INFINITY;
    return {
      ...{ tenant, adapter: adaptersPerTenant === 1 ? 0 : this.#random.integer(adaptersPerTenant) },
      ...{ prompt: lengthOf(prompt, this.#random), answer: Math.min(most, lengthOf(answer, this.#random)) },
    };
  }
}

/** When requests come, ms from the start; to the end of what is measured. @param share of them that comes here */
export function* arrivalsOf(traffic: Traffic, share = 1): Iterable<number> {
  const { seed, arrivals, warmupSeconds, seconds } = traffic;
  const mean = 1000 / (traffic.requestsPerSecond! * share);
  const random = new Random(deriveSeed(seed, "arrivals"));
  const gap = (): number => (arrivals === "even" ? mean : -Math.log(1 - random.uniform()) * mean);
  for (let at = gap(); at < 1000 * (warmupSeconds + seconds); at += gap()) yield at;
}

/** The weight of a tenant: the first shares of every hundred tenants, so that each has some of the large ones. */
export function weightOf(traffic: Traffic, tenant: number): number {
  let place = (tenant * 0.6180339887498949) % 1; // spread evenly over [0, 1)
  for (const { share, weight } of traffic.weights) {
    if (place < share) return weight;
    place -= share;
  }
  return 1;
}

/** Draws a length. */
function lengthOf(length: Traffic["prompt"], random: Random): number {
  if (typeof length === "number") return length;
  if ("min" in length) return length.min + random.integer(length.max - length.min + 1);
  const { median, p95, max = Number.POSITIVE_INFINITY } = length;
  const sigma = Math.log(p95 / median) / P95_OF_NORMAL;
  return Math.min(max, Math.max(1, Math.round(median * Math.exp(sigma * random.normal()))));
}

const P95_OF_NORMAL = 1.6448536269514722;
