/** @file Tests of what adapters do to rows: the items of the operators Linear and LowRank. */
import { describe, expect, test } from "vitest";
import { operators } from "../index.ts";
import { Changes, changesOf, checkLinear, FORMS, linear, lowRank, RANKS, WIDTH } from "./items.ts";
import { expectNear, expectSame, floats, linearNode, matrix, normals, Products, range, weightOf } from "./operators.ts";

export function itemTests(): void {
  describe("items of Linear", () => {
    test.each(RANKS.flatMap((rank) => FORMS.map((form) => [rank, form] as const)))("rank %d, %s", (rank, form) => {
      for (const [K, N] of [
        [100, 83],
        [576, 320],
        [7, 3],
      ] as const) {
        const weight = weightOf(rank, { K, N, bits: 4, block: 32 });
        using products = linear(weight);
        const change = { first: 0, outputs: N, rank, form, factor: 0.5 };
        checkLinear(products, weight, 1, [{ ...change, row: 0 }]);
        checkLinear(products, weight, 3, [{ ...change, row: 1, scaled: true }]);
        checkLinear(products, weight, 9, [
          { ...change, row: 8, biased: true, gate: 0.3 },
          { ...change, row: 2, scaled: true, biased: true },
          { ...change, row: 5, gate: 0.7 },
        ]);
      }
    });

    test("several on a row: the parts of q, k and v, and one on another", () => {
      const weight = weightOf(2, { K: 96, N: 160, bits: 8, block: 64 });
      using products = linear(weight);
      const parts = [
        { first: 0, outputs: 96, rank: 8 },
        { first: 96, outputs: 32, rank: 4, form: "float16" as const },
        { first: 128, outputs: 32, rank: 7 },
        { first: 50, outputs: 100, rank: 1, scaled: true },
      ];
      for (const M of [1, 2, 3, 4, 30]) {
        const changes = range(M).flatMap((row) => (row % 3 === 1 ? [] : parts.map((part) => ({ ...part, row }))));
        checkLinear(products, weight, M, changes);
      }
    });

    test("only a scale, only a bias, or neither", () => {
      const weight = weightOf(2, { K: 64, N: 70, bits: 4, block: 64 });
      using products = linear(weight);
      for (const M of [1, 5]) {
        const rest = { row: M - 1, first: 3, outputs: 67, rank: 0 };
        checkLinear(products, weight, M, [{ ...rest, scaled: true }]);
        checkLinear(products, weight, M, [{ ...rest, biased: true, gate: 0.5 }]);
        checkLinear(products, weight, M, [rest]);
        checkLinear(products, weight, M, []);
      }
    });

    test("any of them, at any place, with one thread as with two", () => {
      const weight = weightOf(9, { K: 320, N: 210, bits: 4, block: 32 });
      using products = linear(weight);
      for (let seed = 0; seed < 30; seed++) {
        const M = [1, 2, 3, 4, 17][seed % 5]!;
        const changes = changesOf(seed, M, 210);
        const both = checkLinear(products, weight, M, changes, { seed });
        operators()!.useThreads(1);
        const one = checkLinear(products, weight, M, changes, { seed });
        operators()!.useThreads(2);
        expectSame(one, both);
      }
    });

    test("items of the next product are only fetched, and change nothing", () => {
      const weight = weightOf(3, { K: 96, N: 200, bits: 4, block: 32 });
      const node = linearNode(weight, "ahead", "", "items", "next");
      node.attributes = { ...node.attributes, next_K: 300 };
      const inputs = { items: ["int64", ["n", WIDTH]], next: ["int64", ["m", WIDTH]] } as never;
      using products = new Products(weight, [linearNode(weight, "y", "", "items"), node], ["y", "ahead"], inputs);
      for (let seed = 0; seed < 15; seed++) {
        const M = [1, 3, 4, 9, 40][seed % 5]!;
        using own = new Changes(changesOf(seed, M, 200), 96);
        using next = new Changes(seed % 4 === 3 ? [] : changesOf(seed + 1, M, 150), 300);
        const feeds = { items: own.items, next: next.items };
        const { y, ahead } = products.run(normals(seed, M * 96), 96, feeds);
        expectSame(ahead!, y!);
      }
    });

    test("a row's result does not depend on the others", () => {
      const weight = weightOf(4, { K: 130, N: 83, bits: 4, block: 32 });
      using products = linear(weight);
      const x = normals(5, 20 * 130);
      const change = { first: 5, outputs: 77, rank: 7, scaled: true, gate: 0.4 };
      using own = new Changes([{ ...change, row: 0 }], 130);
      const alone = products.run(x.subarray(0, 130), 130, { items: own.items }).y!;
      for (const M of [2, 3, 4, 20]) {
        const rest = range(M - 1).map((row) => ({ ...change, row: row + 1 }));
        using all = new Changes([{ ...change, row: 0 }, ...rest], 130);
        x.fill(Number.NaN, 130); // nor does it matter what these are
        const { y } = products.run(x.subarray(0, M * 130), 130, { items: all.items });
        expectSame(y!.subarray(0, 83), alone);
      }
    });

    test.each([
      ["a row that is not there", { row: 3 }],
      ["a row before the first", { row: -1 }],
      ["outputs past the last", { first: 10, outputs: 7 }],
      ["outputs before the first", { first: -1 }],
      ["a negative rank", { rank: -4 }],
    ])("%s is refused", (_, wrong) => {
      const weight = weightOf(4, { K: 32, N: 16, bits: 4, block: 32 });
      using products = linear(weight);
      using session = lowRank(32, 16, false);
      const good = { row: 0, first: 0, outputs: 16, rank: 0, scaled: true };
      using changes = new Changes([good], 32);
      const order = ["row", "first", "outputs", "rank"];
      for (const [name, value] of Object.entries(wrong)) {
        (changes.items.data as BigInt64Array)[order.indexOf(name)] = BigInt(value);
      }
      const x = normals(1, 3 * 32);
      expect(() => products.run(x, 32, { items: changes.items })).toThrow(/Linear: an item/);
      using rows = matrix(3, 32, x);
      using z = matrix(3, 16, normals(2, 48));
      expect(() => session.call({ x: rows, z, items: changes.items })).toThrow(/LowRank: an item/);
    });
  });

  describe.each([
    ["of an input, which stays", false],
    ["of what an operator has made", true],
  ])("LowRank %s", (_, before) => {
    test("changes rows", () => {
      const [K, N] = [100, 83];
      using session = lowRank(K, N, before);
      for (let seed = 0; seed < 20; seed++) {
        const M = [1, 2, 3, 4, 17][seed % 5]!;
        const [x, start] = [normals(seed, M * K), normals(seed + 1, M * N)];
        using changes = new Changes(seed === 7 ? [] : changesOf(seed, M, N), K);
        using rows = matrix(M, K, x);
        using z = matrix(M, N, start.slice());
        const { items } = changes;
        using y = session.call({ x: rows, z, items }).y!;
        expectNear(floats(y), changes.applied(x, start, N), 1e-6);
        expectSame(floats(z), start);
      }
    });
  });
}

export function packTests(): void {
  test("pack copies in order or in bands of 64 rows, in float32 or rounded to float16", () => {
    for (const [rows, columns] of [
      [1, 1],
      [17, 33],
      [64, 5],
      [150, 7],
    ] as const) {
      const source = normals(rows, rows * columns, 100);
      const bands = range(Math.ceil(rows / 64)).flatMap((band) => {
        const own = range(Math.min(64, rows - 64 * band)).map((i) => 64 * band + i);
        return range(columns).flatMap((c) => own.map((row) => source[row * columns + c]!));
      });
      for (const banded of [false, true]) {
        const expected = banded ? bands : [...source];
        const whole = new Float32Array(source.length + 1).fill(7);
        operators()!.pack([{ source, rows, columns, banded, form: "float32", target: whole }]);
        expectSame(whole, Float32Array.from([...expected, 7]));
        const rounded = new Uint16Array(source.length + 1).fill(7);
        operators()!.pack([{ source, rows, columns, banded, form: "float16", target: rounded }]);
        expect(rounded.at(-1)).toBe(7);
        expected.forEach((value, i) => {
          const h = rounded[i]!;
          const size = 2 ** (((h >> 10) & 31) - 15) * (1 + (h & 1023) / 1024);
          expect(Math.abs((h & 0x8000 ? -size : size) - value)).toBeLessThanOrEqual(Math.abs(value) * 2 ** -11);
        });
        const ranks = new Float32Array(banded ? columns : rows).fill(3);
        const levels = new Int8Array(source.length + 1).fill(7);
        operators()!.pack([{ source, rows, columns, banded, form: "int8", target: levels, ranks }]);
        expect(levels.at(-1)).toBe(7);
        const width = (at: number): number => Math.min(64, rows - Math.floor(at / (64 * columns)) * 64);
        expected.forEach((value, at) => {
          const rank = banded ? Math.floor((at % (64 * columns)) / width(at)) : Math.floor(at / columns);
          const scale = ranks[rank]! / 3;
          expect(Math.abs(levels[at]! * scale - value)).toBeLessThanOrEqual(scale * 0.5001);
        });
      }
    }
  });
}
