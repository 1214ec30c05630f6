/** @file Tests of items of Linear and LowRank that are for many rows, with gates that come from the graph. */
import { describe, expect, test } from "vitest";
import { Random } from "../../base/index.ts";
import { operators, Tensor } from "../index.ts";
import { type Change, Changes, changesOf, checkLinear, FORMS, linear, lowRank, RANKS, WIDTH } from "./items.ts";
import { expectNear, expectSame, floats, matrix, normals, weightOf } from "./operators.ts";

const GATES = Float32Array.of(0.5, 0, -1.25, 1, 0.03);

/** Some for one row, most for more of them, with experts of which one is off. */
function ranges(seed: number, M: number, N: number): Change[] {
  const random = new Random(seed + 100);
  return changesOf(seed, Math.min(M, 6), N).map((change) => {
    const row = random.integer(M);
    const expert = random.integer(GATES.length + 2) - 1;
    const rest = expert < 0 || expert >= GATES.length ? {} : { expert };
    return { ...change, row, rows: 1 + random.integer(M - row), ...rest };
  });
}

export function rangeTests(): void {
  describe("items for ranges of rows", () => {
    test.each(RANKS.flatMap((rank) => FORMS.map((form) => [rank, form] as const)))("rank %d, %s", (rank, form) => {
      for (const [K, N] of [
        [100, 83],
        [576, 320],
        [7, 3],
      ] as const) {
        const weight = weightOf(rank, { K, N, bits: 4, block: 32 });
        using products = linear(weight, true);
        const change = { first: 0, outputs: N, rank, form, factor: 0.5 };
        for (const M of [3, 4, 29]) {
          checkLinear(products, weight, M, [{ ...change, row: 0, rows: M }], { gates: GATES });
          const parts = [
            { ...change, row: 1, rows: M - 1, scaled: true, expert: 0 },
            { ...change, row: 0, rows: 1, biased: true, gate: 0.3, expert: 2 },
            { ...change, row: 0, rows: M, expert: 1 },
            { ...change, row: 0, rows: M - 1, expert: 4 },
          ];
          checkLinear(products, weight, M, parts, { gates: GATES });
        }
      }
    });

    test("any of them, at any place, with one thread as with two", () => {
      const weight = weightOf(9, { K: 320, N: 210, bits: 4, block: 32 });
      using products = linear(weight, true);
      for (let seed = 0; seed < 32; seed++) {
        const M = [1, 2, 3, 4, 17, 40, 70, 131][seed % 8]!;
        const changes = ranges(seed, M, 210);
        const both = checkLinear(products, weight, M, changes, { seed, gates: GATES });
        operators()!.useThreads(1);
        const one = checkLinear(products, weight, M, changes, { seed, gates: GATES });
        operators()!.useThreads(2);
        expectSame(one, both);
      }
    });

    test.each([false, true])("in LowRank (y of an operator: %s)", (before) => {
      const [K, N] = [100, 83];
      using session = lowRank(K, N, before, true);
      using gates = Tensor.from("float32", [GATES.length], GATES);
      for (let seed = 0; seed < 24; seed++) {
        const M = [1, 3, 4, 17, 64, 100][seed % 6]!;
        const [x, start] = [normals(seed, M * K), normals(seed + 1, M * N)];
        using changes = new Changes(ranges(seed, M, N), K);
        using rows = matrix(M, K, x);
        using z = matrix(M, N, start.slice());
        using y = session.call({ x: rows, z, items: changes.items, gates }).y!;
        expectNear(floats(y), changes.applied(x, start, N, GATES), 1e-6);
        expectSame(floats(z), start);
      }
    });

    test.each(FORMS)("a row's result does not depend on how many rows its item is for, %s", (form) => {
      const [K, N] = [130, 167];
      const weight = weightOf(4, { K, N, bits: 4, block: 32 });
      using products = linear(weight, true);
      using gates = Tensor.from("float32", [GATES.length], GATES);
      using none = Tensor.from("float32", [0], new Float32Array(0));
      const changes = [7, 32, 1].map((rank, i) => {
        const more = { scaled: i === 1, gate: i === 0 ? 1 : 0.4 };
        return { first: 5 * i, outputs: N - 21 * i, rank, form, factor: 0.7, ...more };
      });
      const own = normals(5, K);
      const by = [0.5, 0.03, -1.25]; // of experts 0, 4 and 2
      using single = new Changes(
        changes.map((change, i) => ({ ...change, row: 0, gate: change.gate * Math.fround(by[i]!) })),
        K,
      );
      const alone = products.run(own, K, { items: single.items, gates: none }).y!;
      for (const M of [1, 2, 3, 4, 5, 9, 30, 75]) {
        for (const at of [0, M >> 1, M - 1]) {
          const x = new Float32Array(M * K).fill(Number.NaN);
          x.set(own, at * K);
          using all = new Changes(
            changes.map((change, i) => ({
              ...change,
              row: i < at ? i : 0,
              rows: M - (i < at ? i : 0),
              expert: [0, 4, 2][i]!,
            })),
            K,
          );
          const { y } = products.run(x, K, { items: all.items, gates });
          expectSame(y!.subarray(at * N, (at + 1) * N), alone);
        }
      }
    });

    test("nothing is read of an item whose gate is 0", () => {
      const weight = weightOf(4, { K: 64, N: 70, bits: 4, block: 32 });
      using products = linear(weight, true);
      using gates = Tensor.from("float32", [GATES.length], GATES);
      for (const M of [1, 3, 4, 20]) {
        for (const rows of [1, M]) {
          const change = { row: 0, rows, first: 0, outputs: 70, rank: 8, scaled: true, biased: true };
          using changes = new Changes(
            [
              { ...change, gate: 0 },
              { ...change, expert: 1 },
            ],
            64,
          );
          const words = changes.items.data as BigInt64Array;
          for (const item of [0, 1]) words.set([8n, 8n, 8n, 8n], item * WIDTH + 4); // nobody's memory
          const { y, plain } = products.run(normals(M, M * 64), 64, { items: changes.items, gates });
          expectSame(y!, plain!);
        }
      }
    });

    test.each([
      ["no rows", { rows: 0 }],
      ["a row past the last", { row: 1, rows: 3 }],
      ["more rows than there can be", { rows: 2n ** 63n - 1n }],
      ["an expert past the last", { expert: 5 }],
      ["an expert before the first", { expert: -2 }],
      ["a form that there is not", { form: 3 }],
      ["A without B", { a: 8 }],
    ])("%s is refused", (_, wrong) => {
      const weight = weightOf(4, { K: 32, N: 16, bits: 4, block: 32 });
      using products = linear(weight, true);
      using session = lowRank(32, 16, false, true);
      using gates = Tensor.from("float32", [GATES.length], GATES);
      using changes = new Changes([{ row: 0, rows: 3, first: 0, outputs: 16, rank: 0, expert: 4 }], 32);
      const x = normals(1, 3 * 32);
      products.run(x, 32, { items: changes.items, gates });
      const places: Record<string, number> = { row: 0, a: 4, form: 8, rows: 12, expert: 13 };
      for (const [name, value] of Object.entries(wrong)) {
        (changes.items.data as BigInt64Array)[places[name]!] = BigInt(value);
      }
      expect(() => products.run(x, 32, { items: changes.items, gates })).toThrow(/Linear: an item/);
      using rows = matrix(3, 32, x);
      using z = matrix(3, 16, normals(2, 48));
      expect(() => session.call({ x: rows, z, items: changes.items, gates })).toThrow(/LowRank: an item/);
    });

    test("an expert without gates, and a part of an item, are refused", () => {
      const weight = weightOf(4, { K: 32, N: 16, bits: 4, block: 32 });
      using products = linear(weight);
      using changes = new Changes([{ row: 0, first: 0, outputs: 16, rank: 4, expert: 0 }], 32);
      const x = normals(1, 3 * 32);
      expect(() => products.run(x, 32, { items: changes.items })).toThrow(/Linear: an item/);
      const words = (changes.items.data as BigInt64Array).slice(0, WIDTH - 2);
      using items = Tensor.from("int64", [1, WIDTH - 2], words);
      expect(() => products.run(x, 32, { items })).toThrow(/Linear: an item/);
    });
  });
}
