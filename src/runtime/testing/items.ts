/** @file Items of the operators Linear and LowRank for their tests, and what they do in float64. */
import { Random } from "../../base/index.ts";
import { OPERATOR_DOMAIN, operators, PACKED_FORMS, type PackedForm, Session, Tensor } from "../index.ts";
import { testModel } from "../testing.ts";
import { type Exact, expectNear, expectSame, linearNode, normals, Products, range, type Weight } from "./operators.ts";

/** One item, its numbers as JavaScript has them. */
export interface Change {
  row: number;
  /** From `row` on; default 1. */
  rows?: number;
  first: number;
  outputs: number;
  /** 0: only scale and bias. */
  rank: number;
  form?: PackedForm;
  scaled?: boolean;
  biased?: boolean;
  factor?: number;
  gate?: number;
  /** Its gate is multiplied with the input `gates` there. */
  expert?: number;
}

/** Numbers of a struct Item of native/kernels.h. */
export const WIDTH = 14;

/** With its numbers. */
type Full = Change & { a: Float32Array; b: Float32Array; scale: Float32Array; bias: Float32Array };

/** Items in native memory, and what they do in float64. */
export class Changes implements Disposable {
  readonly items: Tensor;
  readonly #own: Tensor[] = [];
  readonly #changes: Full[];
  readonly #K: number;

  constructor(changes: readonly Change[], K: number) {
    this.#K = K;
    const data = new BigInt64Array(changes.length * WIDTH);
    const floatsOf = new Float64Array(data.buffer);
    this.#changes = changes.map((change, i) => {
      const { row, rows = 1, first, outputs, rank, form = "float32", scaled, biased } = change;
      const { factor = 1, gate = 1, expert = -1 } = change;
      const a = onGrid(normals(10 * i + 1, rank * K, 0.1), form, (r) => r * K, rank);
      const b = onGrid(normals(10 * i + 2, outputs * rank, 0.1), form, (r) => r, rank); // [outputs, rank]
      const ranks = new Float32Array(rank).fill(1);
      const scale = normals(10 * i + 3, outputs);
      const bias = normals(10 * i + 4, outputs);
      const addresses = [
        rank > 0 ? this.#packed(a, rank, K, { banded: false, form }, ranks) : 0n,
        rank > 0 ? this.#packed(b, outputs, rank, { banded: true, form }, ranks) : 0n,
        scaled ? this.#kept(scale) : 0n,
        biased ? this.#kept(bias) : 0n,
      ];
      data.set([row, first, outputs, rank].map(BigInt), i * WIDTH);
      data.set([...addresses, BigInt(PACKED_FORMS[form].code)], i * WIDTH + 4);
      floatsOf.set([factor, gate], i * WIDTH + 9);
      if (form === "int8" && rank > 0) data[i * WIDTH + 11] = this.#kept(ranks);
      data.set([rows, expert].map(BigInt), i * WIDTH + 12);
      return { ...change, a, b, scale, bias };
    });
    this.items = Tensor.from("int64", [changes.length, WIDTH], data);
    this.#own.push(this.items);
  }

  #kept(data: Float32Array): bigint {
    const tensor = Tensor.from("float32", [data.length], data);
    this.#own.push(tensor);
    return tensor.address;
  }

  #packed(
    data: Float32Array,
    rows: number,
    columns: number,
    how: { banded: boolean; form: PackedForm },
    ranks: Float32Array,
  ): bigint {
    const tensor = Tensor.allocate("uint8", [rows * columns * PACKED_FORMS[how.form].bytes]);
    this.#own.push(tensor);
    operators()!.pack([{ source: data, rows, columns, ...how, target: tensor.address, ranks }]);
    return tensor.address;
  }

  /** What becomes of y [M, N], made from x [M, K]. */
  applied(x: Float32Array, y: Float32Array, N: number, gates?: Float32Array): Exact {
    const values = Float64Array.from(y);
    const sizes = values.map(Math.abs);
    for (const change of this.#changes) {
      const { row, rows = 1, gate = 1, expert } = change;
      const by = gate * (expert === undefined ? 1 : gates![expert]!);
      if (by === 0) continue;
      for (let m = row; m < row + rows; m++) this.#apply(change, by, x, m, { values, sizes }, N);
    }
    return { values, sizes };
  }

  #apply(change: Full, gate: number, x: Float32Array, m: number, { values, sizes }: Exact, N: number): void {
    const K = this.#K;
    const { first, outputs, rank, scaled, biased, factor = 1, a, b, scale, bias } = change;
    const [low, lowSize] = [new Float64Array(rank), new Float64Array(rank)];
    for (let r = 0; r < rank; r++) {
      for (let i = 0; i < K; i++) {
        const term = a[r * K + i]! * x[m * K + i]!;
        low[r]! += term;
        lowSize[r]! += Math.abs(term);
      }
    }
    for (let o = 0; o < outputs; o++) {
      const at = m * N + first + o;
      let [sum, size] = [0, 0];
      for (let r = 0; r < rank; r++) {
        sum += b[o * rank + r]! * low[r]!;
        size += Math.abs(b[o * rank + r]!) * lowSize[r]!;
      }
      const [by, plus] = [scaled ? scale[o]! : 1, biased ? bias[o]! : 0];
      const t = (values[at]! + factor * sum) * by + plus;
      const tSize = (sizes[at]! + Math.abs(factor) * size) * Math.abs(by) + Math.abs(plus);
      values[at]! += gate * (t - values[at]!);
      sizes[at]! += Math.abs(gate) * (tSize + sizes[at]!);
    }
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#own) tensor.dispose();
  }
}

/** On a grid that the form has too; of int8 each rank has its largest level, at `first(rank)`. */
function onGrid(data: Float32Array, form: PackedForm, first: (rank: number) => number, ranks: number): Float32Array {
  if (form === "float32") return data;
  if (form === "float16") return data.map((value) => Math.round(value * 2048) / 2048);
  const levels = data.map((value) => Math.max(-127, Math.min(127, Math.round(value * 1024))) / 1024);
  for (let r = 0; r < ranks; r++) levels[first(r)] = 127 / 1024;
  return levels;
}

export const FORMS = Object.keys(PACKED_FORMS) as PackedForm[];
export const RANKS = [1, 4, 7, 8, 32, 64];

export function changesOf(seed: number, M: number, N: number): Change[] {
  const random = new Random(seed);
  return range(M * 2).map((i) => {
    const first = random.integer(N);
    const flag = (): boolean => random.integer(2) === 1;
    return {
      row: random.integer(M),
      first,
      outputs: 1 + random.integer(N - first),
      rank: [0, ...RANKS][random.integer(7)]!,
      form: FORMS[random.integer(3)]!,
      scaled: flag(),
      biased: flag(),
      factor: random.normal(),
      gate: i % 3 === 0 ? random.uniform() : 1,
    };
  });
}

const ITEMS = { items: ["int64", ["n", "width"]] } as const;
const GATES = { gates: ["float32", ["e"]] } as const;

/** Rows through a weight: as they are, and with items, which have gates of experts in `gates`. */
export function linear(weight: Weight, gated = false): Products {
  const own = gated ? ["", "items", "", "gates"] : ["", "items"];
  const nodes = [linearNode(weight, "y", ...own), linearNode(weight, "plain")];
  return new Products(weight, nodes, ["y", "plain"], { ...ITEMS, ...(gated && GATES) } as never);
}

/** Holds y of some rows with `changes` against float64; `gates` where the products are gated. */
export function checkLinear(
  products: Products,
  weight: Weight,
  M: number,
  changes: readonly Change[],
  { seed = 1, gates }: { seed?: number; gates?: Float32Array<ArrayBuffer> } = {},
): Float32Array {
  const { K, N } = weight;
  const x = normals(seed, M * K);
  using all = new Changes(changes, K);
  using experts = Tensor.from("float32", [gates?.length ?? 0], gates ?? new Float32Array(0));
  const { y, plain } = products.run(x, K, { items: all.items, ...(gates && { gates: experts }) });
  expectNear(y!, all.applied(x, plain!, N, gates), 1e-6);
  const touched = new Set(changes.flatMap(({ row, rows = 1 }) => range(rows).map((i) => row + i)));
  for (let m = 0; m < M; m++) {
    if (!touched.has(m)) expectSame(y!.subarray(m * N, (m + 1) * N), plain!.subarray(m * N, (m + 1) * N));
  }
  return y!;
}

/** y = x A B by items of LowRank; in `before` an operator has made the y that it changes. */
export function lowRank(K: number, N: number, before: boolean, gated = false): Session {
  const change = { op: "LowRank", domain: OPERATOR_DOMAIN, attributes: { K, N } };
  const others = gated ? ["items", "gates"] : ["items"];
  const steps = before
    ? [
        { op: "Neg", inputs: ["z"], outputs: ["h"] },
        { op: "Neg", inputs: ["h"], outputs: ["i"] },
        { ...change, inputs: ["x", "i", ...others], outputs: ["y"] },
      ]
    : [{ ...change, inputs: ["x", "z", ...others], outputs: ["y"] }];
  const inputs = { x: ["float32", ["M", K]], z: ["float32", ["M", N]], ...ITEMS, ...(gated && GATES) } as never;
  return Session.create(testModel({ inputs, outputs: { y: ["float32", ["M", N]] }, nodes: steps }));
}
