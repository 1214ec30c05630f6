/** @file Fair shares, without a model: what saturated tenants get by their weights, and that rest saves up nothing. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { Random } from "../../base/index.ts";
import { Fairness } from "./fairness.ts";
import { FairQueue } from "./queue.ts";

/** Jain's index of fairness: 1 when all are equal, 1 / n when one has all. */
function jain(values: readonly number[]): number {
  const sum = values.reduce((a, b) => a + b, 0);
  return sum ** 2 / (values.length * values.reduce((a, b) => a + b * b, 0));
}

interface Item {
  readonly tenant: string;
  readonly input: number;
  readonly output: number;
}

/** Serves saturated tenants with `rows` at a time, a token of each in every step; returns work by tenant. */
function serve(weights: readonly number[], rows: number, seed: number, steps: number): number[] {
  const random = new Random(seed);
  const fairness = new Fairness();
  const queue = new FairQueue<Item>(fairness);
  const tenants = weights.map((_, index) => `t${index}`);
  // Tenants differ in what they ask for: long prompts, long answers.
  const submit = (tenant: number): void => {
    fairness.enter(tenants[tenant]!);
    queue.add({
      tenant: tenants[tenant]!,
      input: 1 + random.integer(tenant % 2 ? 200 : 20),
      output: 1 + random.integer(tenant % 3 ? 10 : 80),
    });
  };
  for (const tenant of tenants.keys()) for (let i = 0; i < 3; i++) submit(tenant);
  const served = weights.map(() => 0);
  let running: { item: Item; left: number }[] = [];
  for (let step = 0; step < steps; step++) {
    while (running.length < rows) {
      const item = queue.take(() => "take")!;
      const tenant = tenants.indexOf(item.tenant);
      fairness.charge(item.tenant, { input: item.input }, weights[tenant]!);
      served[tenant]! += item.input;
      running.push({ item, left: item.output });
      submit(tenant);
    }
    for (const one of running) {
      const tenant = tenants.indexOf(one.item.tenant);
      fairness.charge(one.item.tenant, { output: 1 }, weights[tenant]!);
      served[tenant]! += 2;
      if (--one.left === 0) fairness.leave(one.item.tenant);
    }
    running = running.filter(({ left }) => left > 0);
  }
  return served;
}

test("equal weights: whatever tenants ask for, they get the same", () => {
  fc.assert(
    fc.property(fc.integer({ min: 2, max: 9 }), fc.integer({ min: 1, max: 16 }), fc.nat(), (count, rows, seed) => {
      expect(jain(serve(new Array<number>(count).fill(1), rows, seed, 3000))).toBeGreaterThan(0.95);
    }),
    { numRuns: 25 },
  );
});

test("weights 1 : 3 : 6 are the ratio of what is served", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 8 }), fc.nat(), (rows, seed) => {
      const [one, three, six] = serve([1, 3, 6], rows, seed, 8000);
      expect(Math.abs(three! / one! - 3)).toBeLessThan(0.3);
      expect(Math.abs(six! / one! - 6)).toBeLessThan(0.6);
    }),
    { numRuns: 15 },
  );
});

test("who comes back is lifted to the least of the active ones, and keeps what is above it", () => {
  const fairness = new Fairness();
  fairness.enter("busy");
  fairness.enter("other");
  fairness.charge("busy", { input: 100, output: 50 }, 2);
  fairness.charge("other", { output: 40 }, 1);
  expect(fairness.counter("busy")).toBe(100); // (100 · 1 + 50 · 2) / 2
  fairness.enter("rested");
  expect(fairness.counter("rested")).toBe(80);
  fairness.leave("rested");
  fairness.leave("busy");
  fairness.enter("busy");
  expect(fairness.counter("busy")).toBe(100);
  // Where nobody is active the last that rested sets the level.
  for (const tenant of ["busy", "other"]) fairness.leave(tenant);
  fairness.enter("new");
  expect(fairness.counter("new")).toBe(80);
});

test("many tenants that come once are forgotten", () => {
  const fairness = new Fairness();
  fairness.enter("stays");
  fairness.charge("stays", { input: 5 }, 1);
  for (let i = 0; i < 20_000; i++) {
    fairness.enter(`t${i}`);
    fairness.leave(`t${i}`);
  }
  expect(fairness.size).toBeLessThan(5000);
  expect(fairness.counter("stays")).toBe(5);
});
