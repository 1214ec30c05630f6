/** @file Fleets: all traffic is placed once, none takes too much, and sizes follow from what is asked. */
import { expect, test } from "vitest";
import { sum } from "../../base/index.ts";
import { meetsTarget, placeTenants, planFleet, sizeFleet } from "./fleet.ts";
import { modelEach } from "./profile.ts";
import { roundMethod, roundProfile, trafficOf } from "./testing.ts";
import { demandOf } from "./traffic.ts";

const method = roundMethod();
const profile = roundProfile(method);

test("every tenant's requests are placed once, and nobody has more than a quarter above the mean", () => {
  const traffic = trafficOf({ requestsPerSecond: 1, tenants: 5000, zipf: 1.1 });
  const placed = placeTenants(traffic, 40);
  const rates = new Float64Array(traffic.tenants);
  for (const { demand } of placed)
    for (const [i, tenant] of demand.tenants.entries()) rates[tenant]! += demand.rates[i]!;
  const wanted = demandOf(traffic).rates;
  expect(Math.max(...rates.map((rate, tenant) => Math.abs(rate - wanted[tenant]!)))).toBeLessThan(1e-9);
  expect(sum(placed.map(({ share }) => share))).toBeCloseTo(1, 8);
  expect(Math.max(...placed.map(({ share }) => share))).toBeLessThanOrEqual(1.25 / 40 + 1e-9);
  // The first tenant alone is more than what a server takes; most others are on one server.
  expect(wanted[0]).toBeGreaterThan(1.25 / 40);
  const places = sum(placed.map(({ demand }) => demand.tenants.length));
  expect(places).toBeLessThan(1.1 * traffic.tenants);
});

test("a fleet answers what is asked, and costs what its machines cost", async () => {
  const traffic = trafficOf({
    ...{ requestsPerSecond: 60, tenants: 200, zipf: 0.5, prompt: 20, answer: 20, seconds: 40 },
    residency: { maxResidentBytes: 2 ** 40 },
  });
  const forecast = await planFleet({ profile, method, traffic, servers: 4, price: 0.5 });
  expect(forecast.requestsPerSecond / 60).toBeCloseTo(1, 1);
  expect(forecast.tokensPerSecond / (60 * 20)).toBeCloseTo(1, 1);
  expect(forecast.costPerMillionTokens).toBeCloseTo((4 * 0.5) / ((forecast.tokensPerSecond * 3600) / 1e6), 10);
  expect(forecast.memoryBytes).toBeGreaterThan(2 ** 30 + 2 ** 27);
  expect(forecast.memoryFits).toBe(true);
});

test("sizes: a server less misses the target; models of their own need more of them", async () => {
  const traffic = trafficOf({
    ...{ requestsPerSecond: 60, tenants: 300, zipf: 0.8, prompt: 20, answer: 20, seconds: 10, warmupSeconds: 2 },
    ...{ residency: { maxResidentBytes: 2 ** 40, maxResident: 1000 }, target: { firstTokenP95Ms: 300 } },
  });
  const together = await sizeFleet({ profile, method, traffic });
  expect(meetsTarget(traffic, together)).toBe(true);
  const less = [1, 4].map((sample) => planFleet({ profile, method, traffic, servers: together.servers - 1, sample }));
  expect((await Promise.all(less)).every((one) => meetsTarget(traffic, one))).toBe(false);
  const apart = await sizeFleet({ profile, method: modelEach(profile), traffic });
  expect(apart.servers).toBeGreaterThan(together.servers);
  expect(apart.memoryBytes).toBeLessThan(profile.machine.memoryBytes);
});

test("what cannot be is said", async () => {
  const streams = trafficOf({ streams: 4 });
  await expect(planFleet({ profile, method, traffic: streams, servers: 2 })).rejects.toThrow("streams");
  const hopeless = trafficOf({ requestsPerSecond: 1, target: { firstTokenP95Ms: 1 }, seconds: 5 });
  await expect(sizeFleet({ profile, method, traffic: hopeless })).rejects.toThrow("no number of servers");
});
