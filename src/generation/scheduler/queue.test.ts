/** @file The queue's order and its verdicts; slots of adapters, where no cold one starves; the estimate of waiting times. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Fairness } from "./fairness.ts";
import { FairQueue } from "./queue.ts";
import { AdapterSlots } from "./slots.ts";
import { Throughput } from "./throughput.ts";

interface Item {
  readonly tenant: string;
  readonly name: string;
}
const item = (name: string): Item => ({ tenant: name[0]!, name });

function queueOf(...names: string[]): { queue: FairQueue<Item>; fairness: Fairness } {
  const fairness = new Fairness();
  const queue = new FairQueue<Item>(fairness);
  for (const name of names) {
    fairness.enter(name[0]!);
    queue.add(item(name));
  }
  return { queue, fairness };
}

describe("the queue", () => {
  test("the tenant that has had least, then who came first, within a tenant in order", () => {
    const { queue, fairness } = queueOf("b1", "a1", "b2", "c1", "a2");
    fairness.charge("b", { input: 5 }, 1);
    const order = Array.from({ length: 6 }, () => queue.take(() => "take")?.name);
    expect(order).toEqual(["a1", "c1", "a2", "b1", "b2", undefined]);
    expect(queue.size).toBe(0);
  });
  test("verdicts", () => {
    const { queue } = queueOf("a1", "a2", "b1", "c1");
    expect(queue.take(({ name }) => (name === "a1" ? "pass" : "take"))?.name).toBe("a2");
    expect(queue.take(({ tenant }) => (tenant === "a" ? "tenant" : "take"))?.name).toBe("b1");
    expect(queue.take(({ tenant }) => (tenant === "a" ? "stop" : "take"))).toBeUndefined();
    expect(queue.take(() => "serve")?.name).toBe("a1");
    expect([...queue].map(({ name }) => name)).toEqual(["a1", "c1"]);
    expect(queue.sizeOf("a")).toBe(1);
  });

  test("what is removed is gone", () => {
    const { queue } = queueOf("a1");
    const [only] = [...queue];
    expect(queue.remove(only!)).toBe(true);
    expect(queue.remove(only!)).toBe(false);
    expect(queue.size).toBe(0);
  });
});

describe("slots of adapters", () => {
  test("a cold adapter has its turn when the sequences that run are over, however hot the others are", () => {
    const slots = new AdapterSlots<string>(2);
    const left: Record<string, number> = { hot: 9, warm: 4 };
    for (const adapter of ["hot", "warm", "hot"]) slots.enter(adapter);
    expect(slots.admits("cold", (holder) => left[holder]!)).toBe(false);
    // The one that is free soonest takes nothing new, the other goes on.
    expect(slots.admits("warm", () => 0)).toBe(false);
    expect(slots.admits("hot", () => 0)).toBe(true);
    slots.leave("warm");
    expect(slots.admits("warm", () => 0)).toBe(false);
    expect(slots.admits("third", () => 0)).toBe(false); // asked later: has the next
    expect(slots.admits("cold", () => 0)).toBe(true);
    slots.enter("cold");
    expect(slots.size).toBe(2);
    expect(slots.admits("hot", () => 0)).toBe(false); // promised to the third
  });

  test("promises to those who went are taken back", () => {
    const slots = new AdapterSlots<string>(1);
    slots.enter("hot");
    slots.admits("cold", () => 1);
    slots.keep(() => false);
    expect(slots.admits("hot", () => 1)).toBe(true);
    slots.admits("cold", () => 1);
    slots.leave("hot");
    slots.keep(() => false);
    expect(slots.admits("other", () => 1)).toBe(true);
  });

  test("everyone has a turn, whoever keeps coming", () => {
    const adapters = ["a", "b", "c", "d", "e"];
    const request = fc.record({ adapter: fc.nat(2), steps: fc.integer({ min: 2, max: 6 }) });
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 3 }),
        fc.array(request, { minLength: 60, maxLength: 60 }),
        (most, script) => {
          const slots = new AdapterSlots<string>(most);
          const fairness = new Fairness();
          const queue = new FairQueue<Item & { steps: number; adapter: string; since: number }>(fairness);
          let running: { adapter: string; left: number }[] = [];
          // The first adapters are as many as there are slots and always have more to do; the others ask once.
          const submit = (adapter: string, steps: number, at: number): void => {
            fairness.enter("x");
            queue.add({ tenant: "x", name: adapter, adapter, steps, since: at });
          };
          for (const adapter of adapters) submit(adapter, 3, 0);
          script.forEach(({ adapter: hot, steps }, at) => {
            for (let i = 0; i < most; i++) submit(adapters[i]!, 2 + ((steps + i * hot) % 5), at);
            slots.keep((adapter) => [...queue].some((one) => one.adapter === adapter));
            const remaining = (adapter: string): number =>
              Math.max(...running.filter((one) => one.adapter === adapter).map(({ left }) => left));
            while (running.length < 12) {
              const next = queue.take(({ adapter }) => (slots.admits(adapter, remaining) ? "take" : "pass"));
              if (!next) break;
              slots.enter(next.adapter);
              running.push({ adapter: next.adapter, left: next.steps });
            }
            expect(slots.size).toBeLessThanOrEqual(most);
            for (const one of running) if (--one.left === 0) slots.leave(one.adapter);
            running = running.filter(({ left }) => left > 0);
          });
          // Those who were there first all had their turn.
          const firsts = adapters.filter((adapter) =>
            [...queue].some((one) => one.adapter === adapter && one.since === 0),
          );
          expect(firsts).toEqual([]);
        },
      ),
      { numRuns: 40 },
    );
  });
});

describe("the estimate of waiting times", () => {
  test("work by measured speed, as far as answers go on average", () => {
    const throughput = new Throughput();
    expect(throughput.secondsFor(1e6)).toBe(1);
    for (let i = 0; i < 100; i++) throughput.worked(50, 100); // 500 a second
    expect(throughput.secondsFor(5000)).toBe(10);
    for (let i = 0; i < 200; i++) throughput.ended(100, 50);
    expect(throughput.secondsFor(5000)).toBe(5);
    expect(throughput.secondsFor(1)).toBe(1);
    expect(throughput.secondsFor(1e9)).toBe(120);
  });
});
