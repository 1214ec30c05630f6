/** @file Order of examples, batches and padding. */
import { describe, expect, it } from "vitest";
import { batchOfStep, Collated, microBatches, Order, stepsPerEpoch, supervisedTokens } from "./batches.ts";
import type { Example } from "./data.ts";

const example = (length: number, promptLength: number, first = 1): Example => ({
  tokens: Int32Array.from({ length }, (_, i) => first + i),
  promptLength,
});

describe("Order", () => {
  it("visits every example once an epoch, otherwise in each, and alike from any position", () => {
    const order = new Order(50, 7, "train order");
    const epochs = [0, 1].map((e) => Array.from({ length: 50 }, (_, i) => order.at(e * 50 + i)));
    for (const epoch of epochs)
      expect(epoch.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => i));
    expect(epochs[0]).not.toEqual(epochs[1]);
    expect(epochs[0]).not.toEqual(Array.from({ length: 50 }, (_, i) => i));
    const again = new Order(50, 7, "train order");
    expect(again.at(73)).toBe(epochs[1]![23]);
    expect(again.at(2)).toBe(epochs[0]![2]);
    expect(Array.from({ length: 50 }, (_, i) => new Order(50, 8, "train order").at(i))).not.toEqual(epochs[0]);
  });
});

describe("batchOfStep", () => {
  it("covers each epoch exactly, with a smaller last batch", () => {
    const items = Array.from({ length: 10 }, (_, i) => i);
    const order = new Order(10, 0, "x");
    expect(stepsPerEpoch(10, 4)).toBe(3);
    for (const epoch of [0, 1, 2]) {
      const batches = [0, 1, 2].map((i) => batchOfStep(items, order, epoch * 3 + i, 4));
      expect(batches.map((batch) => batch.length)).toEqual([4, 4, 2]);
      expect(batches.flat().sort((a, b) => a - b)).toEqual(items);
    }
  });
});

describe("microBatches", () => {
  it("groups by length and keeps every example", () => {
    const batch = [3, 9, 4, 8, 5].map((n) => example(n, 1));
    expect(microBatches(batch, 2).map((part) => part.map(({ tokens }) => tokens.length))).toEqual([
      [9, 8],
      [5, 4],
      [3],
    ]);
    expect(batch.map(({ tokens }) => tokens.length)).toEqual([3, 9, 4, 8, 5]);
  });
});

describe("Collated", () => {
  it("pads on the right, masks the prompt and points at the position before each supervised token", () => {
    const batch = [example(5, 3, 10), example(3, 1, 20)];
    using collated = new Collated(batch, 768);
    expect(collated.tokens.shape).toEqual([2, 16]);
    const tokens = Array.from(collated.tokens.data as BigInt64Array, Number);
    expect(tokens.slice(0, 6)).toEqual([10, 11, 12, 13, 14, 0]);
    expect(tokens.slice(16, 20)).toEqual([20, 21, 22, 0]);
    const mask = Array.from(collated.promptMask.data as Float32Array);
    expect(mask.slice(0, 5)).toEqual([1, 1, 1, 0, 0]);
    expect(mask.slice(16, 19)).toEqual([1, 0, 0]);
    expect(mask.reduce((a, b) => a + b)).toBe(4);
    expect(collated.supervised).toBe(supervisedTokens(batch));
    expect(collated.positions.shape).toEqual([16]);
    const at = (name: "positions" | "labels") => Array.from(collated[name].data as BigInt64Array, Number);
    expect(at("positions").slice(0, 4)).toEqual([2, 3, 16, 17]);
    expect(at("labels").slice(0, 4)).toEqual([13, 14, 21, 22]);
    expect(Array.from(collated.weights.data as Float32Array)).toEqual([1, 1, 1, 1, ...new Array(12).fill(0)]);
  });

  it("never pads beyond the longest sequence allowed", () => {
    using collated = new Collated([example(18, 3)], 20);
    expect(collated.tokens.shape).toEqual([1, 20]);
  });
});
