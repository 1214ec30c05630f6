/** @file The simulation against closed forms: a queue of one place, full batches, a cache of adapters; and what holds for all traffic. */
import { describe, expect, test } from "vitest";
import { mean, sum } from "../../base/index.ts";
import type { MethodProfile } from "./profile.ts";
import { type ServerForecast, simulateServer } from "./simulate.ts";
import { roundMethod, roundProfile, trafficOf } from "./testing.ts";
import { type TrafficInput, weightOf } from "./traffic.ts";

function simulate(input: TrafficInput, over: Partial<MethodProfile> = {}): Promise<ServerForecast> {
  const method = roundMethod(over);
  return simulateServer({ profile: roundProfile(method), method, traffic: trafficOf(input) });
}

const patient = { maxWaiting: 100_000, maxWaitingPerTenant: 100_000 };

describe("closed forms", () => {
  test.each([0.5, 0.8])("answers of one token, one at a time, at load %d: M/D/1", async (load) => {
    const service = 10; // of 50 tokens
    const { firstTokenMs, requests, busy } = await simulate(
      {
        ...{ requestsPerSecond: (1000 * load) / service, prompt: 50, answer: 1, seconds: 300, warmupSeconds: 20 },
        limits: { maxBatch: 1, ...patient },
      },
      { name: "bare", joins: false },
    );
    expect(requests).toBeGreaterThan(10_000);
    const waited = (load * service) / (2 * (1 - load));
    expect(mean([...firstTokenMs]) / (service + waited)).toBeCloseTo(1, 1);
    expect(busy).toBeCloseTo(load, 1);
  });

  test("full batches: rows · tokens by the time of the pass and the steps", async () => {
    const rows = 16;
    const answer = 41;
    const result = await simulate({
      ...{ streams: rows, tenants: 1, prompt: 10, answer, seconds: 60, warmupSeconds: 5 },
      limits: { maxBatch: rows },
    });
    const round = 5 + (10 * rows) / 10 + (answer - 1) * (10 + rows); // ms
    expect(result.tokens / result.seconds / ((1000 * rows * answer) / round)).toBeCloseTo(1, 2);
    expect(result.rows).toBe(rows);
    expect(result.busy).toBeGreaterThan(0.99);
    expect(result.betweenTokensMs[1000]).toBeCloseTo(10 + rows, 5);
  });

  test("adapters that do not run together take a step each", async () => {
    const input: TrafficInput = {
      ...{ streams: 8, tenants: 10_000, prompt: 10, answer: 101, seconds: 40 },
      limits: { maxBatch: 8 },
      startWarm: false,
      residency: { maxResidentBytes: 2 ** 40 },
    };
    const together = await simulate(input, { loadMs: 0 });
    const apart = await simulate(input, { joins: false, loadMs: 0 });
    expect(together.betweenTokensMs.at(together.betweenTokensMs.length >> 1)).toBeCloseTo(9 + 2 * 8, 5);
    expect(apart.betweenTokensMs.at(apart.betweenTokensMs.length >> 1)).toBeCloseTo(8 * 11, 5);
  });

  test("adapters in memory: Che's approximation of a least-recently-used cache", async () => {
    const tenants = 400;
    const places = 60;
    const zipf = 0.9;
    const { adapters, requests } = await simulate(
      {
        ...{ requestsPerSecond: 100, tenants, zipf, prompt: 10, answer: 1, seconds: 200, warmupSeconds: 20 },
        residency: { maxResident: places, maxResidentBytes: 2 ** 40 },
        limits: patient,
      },
      { read: [{ tokens: 10, ms: 0.1 }], loadMs: 0.1 },
    );
    const weights = Array.from({ length: tenants }, (_, i) => (i + 1) ** -zipf);
    const shares = weights.map((weight) => weight / sum(weights));
    let low = 0;
    let high = 1e6;
    const held = (age: number): number => sum(shares.map((share) => 1 - Math.exp(-share * age)));
    for (let i = 0; i < 100; i++) {
      const middle = (low + high) / 2;
      if (held(middle) < places) low = middle;
      else high = middle;
    }
    const expected = sum(shares.map((share) => share * (1 - Math.exp(-share * low))));
    expect(adapters.hits + adapters.loads).toBe(requests);
    expect(adapters.hits / requests).toBeCloseTo(expected, 1);
    expect(Math.abs(adapters.hits / requests - expected)).toBeLessThan(0.02);
    expect(adapters.bytes).toBe(places * 2 ** 20);
  });
});

describe("for all traffic", () => {
  const wild: TrafficInput = {
    ...{ requestsPerSecond: 30, tenants: 60, zipf: 1, warmupSeconds: 0, seconds: 40 },
    prompt: { median: 80, p95: 600, max: 2000 },
    answer: { min: 1, max: 60 },
    ...{ maxNewTokens: 64, deadlineSeconds: 4 },
    limits: { maxWaiting: 40, maxWaitingPerTenant: 8, maxAdaptersPerBatch: 4, maxTokensPerTenant: 6000 },
    residency: { maxResident: 12, maxResidentBytes: 14 * 2 ** 20, leaseTimeoutMs: 800 },
  };

  test.each([0, 1, 2])("every request ends once, seed %d", async (seed) => {
    const { requests, answered, refused, firstTokenMs, tokens, served } = await simulate({ ...wild, seed });
    expect(requests).toBeGreaterThan(1000);
    expect(answered + sum(Object.values(refused))).toBe(requests);
    expect(Object.keys(refused)).toEqual(expect.arrayContaining(["OVERLOADED", "DEADLINE_EXCEEDED"]));
    expect(firstTokenMs.length).toBeGreaterThanOrEqual(answered);
    expect(sum(served.values())).toBeGreaterThan(2 * tokens);
  });

  test("the same seed gives the same, another one something else", async () => {
    const first = await simulate(wild);
    expect(await simulate(wild)).toEqual(first);
    expect(await simulate({ ...wild, seed: 1 })).not.toEqual(first);
  });
});

describe("shares of tenants who all want more than they get", () => {
  const tenants = 8;
  const crowd: TrafficInput = {
    ...{ requestsPerSecond: 120, tenants, zipf: 1, seconds: 60, warmupSeconds: 10 },
    prompt: { min: 10, max: 200 },
    answer: { min: 10, max: 80 },
    limits: { maxWaitingPerTenant: 10, maxWaiting: 80, maxBatch: 4, maxAdaptersPerBatch: 4 },
  };

  test("equal weights: Jain's index is at least 0.95", async () => {
    const { served } = await simulate(crowd);
    expect(served.size).toBe(tenants);
    expect(jain([...served.values()])).toBeGreaterThan(0.95);
  });

  test("by weight", async () => {
    const weights = [{ share: 0.4, weight: 3 }];
    const traffic = trafficOf({ ...crowd, weights });
    const { served } = await simulate({ ...crowd, weights });
    const byWeight = [...served].map(([tenant, work]) => work / weightOf(traffic, tenant));
    expect(new Set([...served.keys()].map((tenant) => weightOf(traffic, tenant)))).toEqual(new Set([1, 3]));
    expect(jain(byWeight)).toBeGreaterThan(0.95);
    expect(jain([...served.values()])).toBeLessThan(0.9);
  });

  function jain(shares: readonly number[]): number {
    return sum(shares) ** 2 / (shares.length * sum(shares.map((share) => share * share)));
  }
});
