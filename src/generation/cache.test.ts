/** @file The key-value cache: rows are copied and kept position by position, buffers are reused. */
import { afterEach, expect, test } from "vitest";
import { SHAPES } from "../models/index.ts";
import { initialCapacity, type KvCache } from "./cache.ts";
import { BufferPool } from "./pool.ts";

const config = { ...SHAPES["smollm2-135m"], numLayers: 2, numKvHeads: 2, headDim: 6 };
/** Features a head takes in the cache: the next multiple of 8. */
const WIDTH = 8;
const opened: Disposable[] = [];
const using = <T extends Disposable>(value: T): T => {
  opened.push(value);
  return value;
};
afterEach(() => {
  for (const one of opened.splice(0).reverse()) one[Symbol.dispose]();
});

/** All values of one row, [layer][key|value][head][position][dim] flattened; cut to `length` positions. */
function read(cache: KvCache, row: number, start: number, end: number): number[] {
  return cache.layers(row, 1).flatMap(({ key, value }) =>
    [key, value].flatMap((tensor) => {
      const data = tensor.data as Float32Array;
      const values: number[] = [];
      for (let head = 0; head < 2; head++) {
        values.push(...data.subarray((head * cache.capacity + start) * WIDTH, (head * cache.capacity + end) * WIDTH));
      }
      tensor.dispose();
      return values;
    }),
  );
}

function fill(cache: KvCache): void {
  let next = 1;
  for (const { key, value } of cache.layers(0, cache.rows)) {
    for (const tensor of [key, value]) {
      (tensor.data as Float32Array).forEach((_, i, data) => {
        data[i] = next++;
      });
      tensor.dispose();
    }
  }
}

test("copying a row copies just the given positions, of every layer and head", () => {
  const cache = using(using(new BufferPool()).cache(config, 3, 5));
  fill(cache);
  const before = [0, 1, 2].map((row) => read(cache, row, 0, 5));
  cache.copyRow(2, 0, 1, 4);
  expect(read(cache, 0, 1, 4)).toEqual(read(cache, 2, 1, 4));
  expect(read(cache, 0, 0, 1)).toEqual(before[0]!.filter((_, i) => i % (5 * WIDTH) < WIDTH));
  expect(read(cache, 0, 4, 5)).toEqual(before[0]!.filter((_, i) => i % (5 * WIDTH) >= 4 * WIDTH));
  expect(read(cache, 1, 0, 5)).toEqual(before[1]);
  expect(read(cache, 2, 0, 5)).toEqual(before[2]);
});

test("growing keeps the used positions and stays within the limit", () => {
  const cache = using(using(new BufferPool()).cache(config, 2, 5));
  fill(cache);
  const before = [0, 1].map((row) => read(cache, row, 0, 3));
  cache.grow({ rows: 2, positions: 6 }, { rows: 2, positions: 100 }, { rows: 2, positions: 3 });
  expect(cache.capacity).toBe(64);
  expect([0, 1].map((row) => read(cache, row, 0, 3))).toEqual(before);
  cache.grow({ rows: 2, positions: 65 }, { rows: 2, positions: 70 }, { rows: 2, positions: 3 });
  expect(cache.capacity).toBe(70);
  expect([0, 1].map((row) => read(cache, row, 0, 3))).toEqual(before);
});

test("rows are added with what the others hold, and one long sequence does not make room for many", () => {
  const cache = using(using(new BufferPool()).cache(config, 2, 5));
  fill(cache);
  const before = [0, 1].map((row) => read(cache, row, 0, 4));
  const limit = { rows: 16, positions: 4096 };
  for (const rows of [3, 4, 9]) {
    cache.grow({ rows, positions: 5 }, limit, { rows: 2, positions: 4 });
    expect(cache.rows).toBeGreaterThanOrEqual(rows);
    expect([0, 1].map((row) => read(cache, row, 0, 4))).toEqual(before);
  }
  expect(cache.capacity).toBe(5);
  cache.grow({ rows: 2, positions: 4000 }, limit, { rows: 2, positions: 4 });
  expect(cache.capacity).toBeGreaterThanOrEqual(4000);
  expect(cache.rows * cache.capacity).toBeLessThanOrEqual(2 * 2 * 4000);
  expect([0, 1].map((row) => read(cache, row, 0, 4))).toEqual(before);
  cache.grow({ rows: 12, positions: 20 }, limit, { rows: 2, positions: 4 });
  expect(cache.rows * cache.capacity).toBeLessThanOrEqual(2 * 12 * 64);
  expect([0, 1].map((row) => read(cache, row, 0, 4))).toEqual(before);
});

test("a pool gives a returned buffer again, but not a huge one for a small need", () => {
  const pool = using(new BufferPool());
  const first = pool.take(1000);
  pool.give(first);
  expect(pool.take(400)).toBe(first);
  pool.give(first);
  const other = using(pool.take(10));
  expect(other).not.toBe(first);
});

test("a pool tells the bytes of its buffers, in use or not, until they go", () => {
  const pool = using(new BufferPool(1));
  const [small, large] = [pool.take(100), pool.take(1000)];
  expect(pool.bytes).toBe(4 * 1100);
  pool.give(small);
  expect(pool.bytes).toBe(4 * 1100);
  pool.give(large); // one is kept
  expect([small.disposed, large.disposed]).toEqual([true, false]);
  expect(pool.bytes).toBe(4 * 1000);
  pool[Symbol.dispose]();
  expect(pool.bytes).toBe(0);
});

test("a cache starts with what is needed, or with room for the beginning of a long answer", () => {
  expect(initialCapacity(10, 40)).toBe(40);
  expect(initialCapacity(10, 4000)).toBe(320);
});
