/** @file The virtual clock: events in their order, called off, and asked for by those before them. */
import { expect, test } from "vitest";
import { VirtualClock } from "./clock.ts";
import { Random } from "./random.ts";

test("events happen in their order, those of one time as they were asked for", async () => {
  const clock = new VirtualClock();
  const random = new Random(1);
  const told: { at: number; order: number }[] = [];
  for (let order = 0; order < 1000; order++) {
    const at = random.integer(100);
    clock.after(at, () => told.push({ at: clock.now(), order }));
  }
  await clock.run();
  expect(told).toHaveLength(1000);
  expect(told).toEqual(told.toSorted((a, b) => a.at - b.at || a.order - b.order));
  expect(clock.now()).toBe(99);
});

test("what follows from an event is done before the next", async () => {
  const clock = new VirtualClock();
  const told: string[] = [];
  const walk = async (name: string, steps: number[]): Promise<void> => {
    for (const ms of steps) {
      await clock.sleep(ms);
      for (let i = 0; i < 50; i++) await Promise.resolve();
      told.push(`${name} ${clock.now()}`);
    }
  };
  void walk("a", [2, 2, 2]);
  void walk("b", [3, 3]);
  await clock.run();
  expect(told).toEqual(["a 2", "b 3", "a 4", "b 6", "a 6"]);
});

test("what was called off does not happen", async () => {
  const clock = new VirtualClock();
  const told: string[] = [];
  const callOff = clock.after(2, () => told.push("late"));
  clock.after(1, callOff);
  clock.after(3, () => told.push("last"));
  await clock.run();
  expect(told).toEqual(["last"]);
});
