/** @file The bench on the bundled model: the profile has everything, says what the methods are, and can be planned with. */
import { expect, test } from "vitest";
import { methods } from "../../methods/index.ts";
import { operators } from "../../runtime/index.ts";
import { MODEL } from "../http/testing.ts";
import { measureProfile } from "./bench.ts";
import { planFleet } from "./fleet.ts";
import { modelEach } from "./profile.ts";
import { trafficOf } from "./testing.ts";

test("measures the bundled model under two methods, and plans with that", { timeout: 120_000 }, async () => {
  const told: string[] = [];
  const profile = await measureProfile({
    ...{ model: MODEL, maxRows: 2, quick: true, onProgress: (what: string) => told.push(what) },
    methods: ["milora", "moelora"].map((name) => ({ name, options: { r: 8 } })),
  });
  expect(profile.methods.map(({ name }) => name)).toEqual(["bare", "milora", "moelora"]);
  expect(told).toEqual(expect.arrayContaining(["milora", "moelora", "HTTP"]));
  const joins = operators() !== undefined;
  for (const { name, joins: found, adapterBytes, read, step } of profile.methods) {
    const lowered = name === "bare" || methods.get(name)!.lower !== undefined;
    expect(found).toBe(name === "bare" || (joins && lowered));
    if (name !== "bare") expect(adapterBytes).toBeGreaterThan(100_000);
    expect(step.map(({ rows }) => rows)).toEqual([1, 2]);
    expect(read.map(({ tokens }) => tokens)).toEqual([8, 32]);
    for (const { ms } of read) expect(ms).toBeGreaterThan(0);
    for (const { one, each } of step) expect(Math.min(one, each)).toBeGreaterThan(0);
  }
  expect(profile.model.bytes).toBeGreaterThan(10 * 2 ** 20);
  expect(profile.model.kvBytesPerPosition).toBe(6 * 2 * 3 * 32 * 4);
  const traffic = trafficOf({ requestsPerSecond: 2, tenants: 20, prompt: 16, answer: 4, seconds: 20 });
  for (const method of [...profile.methods, modelEach(profile)]) {
    const forecast = await planFleet({ profile, method, traffic, servers: 1 });
    expect(forecast.requestsPerSecond).toBeCloseTo(2, -1);
    expect(forecast.firstTokenMs.p50).toBeGreaterThan(0);
  }
});
