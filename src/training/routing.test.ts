/** @file Routing metrics against cases that are worked out by hand. */
import { expect, test } from "vitest";
import { entropyOf, mutualInformation, RoutingTally } from "./routing.ts";

test("entropy in bits", () => {
  expect(entropyOf([1, 1])).toBe(1);
  expect(entropyOf([0.5, 0.25, 0.25])).toBe(1.5);
  expect(entropyOf([3, 0, 0])).toBe(0);
  expect(entropyOf([])).toBe(0);
  expect(entropyOf(new Array<number>(7).fill(1 / 7))).toBeCloseTo(Math.log2(7), 12);
});

test("mutual information: all, none, half, of a binary label", () => {
  expect(mutualInformation([0, 0, 1, 1], [5, 5, 3, 3])).toBe(1);
  expect(mutualInformation([0, 0, 1, 1], [1, 2, 1, 2])).toBe(0);
  expect(mutualInformation([0, 0, 1, 1], [9, 9, 9, 9])).toBe(0);
  // p(a, b) = 1/4, 1/4, 1/2, 0: H(A) = 1, H(B) = H(1/4) = 0.8113, H(A, B) = 1.5
  expect(mutualInformation([0, 0, 1, 1], [0, 1, 0, 0])).toBeCloseTo(1 + 0.8112781 - 1.5, 6);
});

test("four rows, two layers, two experts", () => {
  const tally = new RoutingTally(["q", "v"]);
  const even = [0.5, 0.5];
  const sure = [1, 0];
  // Layer 0 follows the label, layer 1 does not; in layer 1 the third row has both experts.
  tally.add("yes", [1, 0, 1, 0], [...even, ...sure]);
  tally.add("yes", [1, 0, 0, 1], [...even, ...sure]);
  tally.add("no", [0, 0.7, 1, 1], [...even, ...even]);
  tally.add("no", [0, 1, 0, 1], [...sure, ...sure]);
  expect(tally.metrics()).toMatchObject({
    rows: 4,
    experts: ["q", "v"],
    expert_shares: [
      [0.5, 0.5],
      [0.4, 0.6],
    ],
    entropy: [0.75, 0.25],
    routes: 4,
    layer_routes: [2, 3],
    label_entropy: 1,
    mutual_information: [1, 0.5], // layer 1: H(route) = 1.5, H(label, route) = 2
    route_mutual_information: 1,
    route_mutual_information_by_chance: 1, // four routes for four rows always tell the label
  });
});

test("what a layer tells by chance is far below what it tells where routes follow labels", () => {
  const tally = new RoutingTally(["q", "v"]);
  for (let i = 0; i < 64; i++) tally.add(String(i % 2), i % 2 ? [1, 0] : [0, 1], [0.5, 0.5]);
  const { mutual_information, mutual_information_by_chance } = tally.metrics()!;
  expect(mutual_information).toEqual([1]);
  expect(mutual_information_by_chance[0]).toBeGreaterThan(0);
  expect(mutual_information_by_chance[0]).toBeLessThan(0.1);
});

test("one route for all tells nothing; no rows, no metrics", () => {
  const tally = new RoutingTally(["q", "v"]);
  expect(tally.metrics()).toBeUndefined();
  for (const label of ["a", "b", "c"]) tally.add(label, [1, 0], [1, 0]);
  expect(tally.metrics()).toMatchObject({
    routes: 1,
    expert_shares: [[1, 0]],
    entropy: [0],
    mutual_information: [0],
    mutual_information_by_chance: [0],
  });
});
