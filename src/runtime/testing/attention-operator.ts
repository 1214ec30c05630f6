/** @file Tests of the operator Attention: new tokens of each sequence, appended to a cache. */
import { describe, expect, test } from "vitest";
import { OPERATOR_DOMAIN, operators, Session, Tensor } from "../index.ts";
import { type TestNode, testModel } from "../testing.ts";
import { type Exact, expectNear, expectSame, floats, normals, range } from "./operators.ts";

export interface Heads {
  heads: number;
  kvHeads: number;
  width: number;
  /** Numbers of a head that are rotated, halved. */
  pairs: number;
  window: number;
  scale: number;
}

const INPUTS = ["query", "key", "value", "keys", "values", "last"];
const OUTPUTS = ["y", "newKeys", "newValues"];

/**
 * Of milora's operator, or of the runtime's; `joint`: query, key and value lie together in the input `query`; `halves`: the
 * cache is float16, two numbers in each float32.
 */
export function sessionOf(
  shape: Heads,
  capacity: number,
  positions: number,
  theirs: boolean,
  { joint = false, halves = false } = {},
): Session {
  const { heads, kvHeads, width, pairs, window, scale } = shape;
  const counts = { num_heads: heads, kv_num_heads: kvHeads, scale: { float: scale } };
  const own: TestNode = {
    op: "Attention",
    domain: OPERATOR_DOMAIN,
    inputs: [...(joint ? ["query", "", "", ...INPUTS.slice(3)] : INPUTS), "cos", "sin"],
    outputs: OUTPUTS,
    attributes: {
      ...{ ...counts, head_dim: width, rotary_pairs: pairs, local_window_size: window },
      ...(halves && { halves: 1 }),
    },
  };
  const runtimes: TestNode = {
    op: "GroupQueryAttention",
    domain: "com.microsoft",
    inputs: [...INPUTS, "total", "cos", "sin"],
    outputs: OUTPUTS,
    attributes: { ...counts, do_rotary: 1, local_window_size: window > 0 ? window : -1 },
  };
  const cache = ["B", kvHeads, capacity, halves ? width / 2 : width];
  return Session.create(
    testModel({
      inputs: {
        query: ["float32", ["B", "T", (heads + (joint ? 2 * kvHeads : 0)) * width]],
        ...(!joint && {
          key: ["float32", ["B", "T", kvHeads * width]],
          value: ["float32", ["B", "T", kvHeads * width]],
        }),
        keys: ["float32", cache],
        values: ["float32", cache],
        last: ["int32", ["B"]],
        cos: ["float32", [positions, pairs]],
        sin: ["float32", [positions, pairs]],
        ...(theirs && { total: ["int32", []] }),
      },
      outputs: {
        y: ["float32", ["B", "T", heads * width]],
        newKeys: ["float32", cache],
        newValues: ["float32", cache],
      },
      nodes: [theirs ? runtimes : own],
    }),
  );
}

/** Numbers for one run: the sequences' last tokens are at `last`, and so many of each are new. */
export class Feeds implements Disposable {
  readonly tensors: Record<string, Tensor> = {};
  readonly shape: Heads;
  readonly last: readonly number[];
  readonly capacity: number;
  readonly tokens: number;

  constructor(
    shape: Heads,
    last: readonly number[],
    capacity: number,
    { positions = capacity, tokens = 1, seed = 1 }: { positions?: number; tokens?: number; seed?: number } = {},
  ) {
    const { heads, kvHeads, width, pairs } = shape;
    this.shape = shape;
    this.last = last;
    this.capacity = capacity;
    this.tokens = tokens;
    const B = last.length;
    const rows = B * tokens;
    const add = (name: string, dims: number[], data: Float32Array): void => {
      this.tensors[name] = Tensor.from("float32", dims, data);
    };
    const cache = B * kvHeads * capacity * width;
    add("query", [B, tokens, heads * width], normals(seed, rows * heads * width));
    add("key", [B, tokens, kvHeads * width], normals(seed + 1, rows * kvHeads * width));
    add("value", [B, tokens, kvHeads * width], normals(seed + 2, rows * kvHeads * width));
    add("keys", [B, kvHeads, capacity, width], normals(seed + 3, cache));
    add("values", [B, kvHeads, capacity, width], normals(seed + 4, cache));
    const angles = Float64Array.from({ length: positions * pairs }, (_, i) => 0.37 * i);
    add("cos", [positions, pairs], Float32Array.from(angles, Math.cos));
    add("sin", [positions, pairs], Float32Array.from(angles, Math.sin));
    this.tensors.last = Tensor.from("int32", [B], Int32Array.from(last));
  }

  array(name: string): Float32Array {
    return floats(this.tensors[name]!);
  }

  /** y, and the cache with the new tokens in it. @param held that cache, if it is known */
  expected(held?: { keys: Float32Array; values: Float32Array }): {
    y: Exact;
    keys: Float64Array;
    values: Float64Array;
  } {
    const { heads, kvHeads, width, pairs, window, scale } = this.shape;
    const [B, group, T] = [this.last.length, heads / kvHeads, this.tokens];
    const y = new Float64Array(B * T * heads * width);
    const keys = Float64Array.from(held?.keys ?? this.array("keys"));
    const values = Float64Array.from(held?.values ?? this.array("values"));
    const [cos, sin] = [this.array("cos"), this.array("sin")];
    const rotated = (x: Float32Array, position: number): number[] =>
      range(width).map((i) => {
        if (i >= 2 * pairs) return x[i]!;
        const at = position * pairs + (i % pairs);
        return i < pairs ? x[i]! * cos[at]! - x[i + pairs]! * sin[at]! : x[i]! * cos[at]! + x[i - pairs]! * sin[at]!;
      });
    const part = (name: string, at: number): Float32Array => this.array(name).subarray(at * width, (at + 1) * width);
    for (let row = 0; row < B * T; row++) {
      const b = Math.floor(row / T);
      const position = this.last[b]! - T + 1 + (row % T);
      const first = window > 0 ? Math.max(0, position + 1 - window) : 0;
      for (let h = 0; h < heads; h++) {
        const kv = Math.floor(h / group);
        const start = (b * kvHeads + kv) * this.capacity * width;
        if (!held) {
          keys.set(rotated(part("key", row * kvHeads + kv), position), start + position * width);
          values.set(part("value", row * kvHeads + kv), start + position * width);
        }
        const at = (row * heads + h) * width;
        const q = rotated(part("query", row * heads + h), position);
        const scores = range(position + 1 - first).map((p) => {
          let dot = 0;
          for (let i = 0; i < width; i++) dot += q[i]! * keys[start + (first + p) * width + i]!;
          return dot * scale;
        });
        const most = scores.reduce((a, b) => Math.max(a, b));
        const weights = scores.map((score) => Math.exp(score - most));
        const total = weights.reduce((a, b) => a + b);
        weights.forEach((weight, p) => {
          for (let i = 0; i < width; i++) y[at + i]! += (weight / total) * values[start + (first + p) * width + i]!;
        });
      }
    }
    return { y: { values: y, sizes: y.map(() => 1) }, keys, values };
  }

  [Symbol.dispose](): void {
    for (const tensor of Object.values(this.tensors)) tensor.dispose();
  }
}

/** Copies of the outputs; the caches stay as they are. */
export function call(session: Session, tensors: Record<string, Tensor>): Record<string, Float32Array> {
  const results = session.call(tensors);
  return Object.fromEntries(
    Object.entries(results).map(([name, tensor]) => {
      const copy = floats(tensor).slice();
      tensor.dispose();
      return [name, copy];
    }),
  );
}

const one = (values: Float64Array): Exact => ({ values, sizes: values.map(() => 1) });

function check(shape: Heads, last: readonly number[], capacity: number, tokens = 1): void {
  using feeds = new Feeds(shape, last, capacity, { tokens });
  using session = sessionOf(shape, capacity, capacity, false);
  using theirs = sessionOf(shape, capacity, capacity, true);
  const expected = feeds.expected();
  const results = call(session, feeds.tensors);
  expectNear(results.y!, expected.y, 1.5e-6);
  expectNear(results.newKeys!, one(expected.keys), 1e-6);
  expectNear(results.newValues!, one(expected.values), 0);
  operators()!.useThreads(1);
  expectSame(call(session, feeds.tensors).y!, results.y!);
  operators()!.useThreads(2);
  // The runtime's takes no batch of sequences that go on by more than one token.
  if (tokens > 1 && last.length > 1 && last.some((position) => position !== tokens - 1)) return;
  using total = Tensor.scalar("int32", Math.max(...last) + 1);
  expectNear(call(theirs, { ...feeds.tensors, total }).y!, expected.y, 1.5e-6);
}

export const HEADS = [
  [9, 3],
  [4, 4],
  [8, 1],
] as const;
export const WIDTHS = [16, 64, 96, 112, 128, 256];

export function attentionTests(): void {
  describe("Attention", () => {
    test.each(HEADS.flatMap(([heads, kvHeads]) => WIDTHS.map((width) => [heads, kvHeads, width] as const)))(
      "%d heads over %d, width %d",
      (heads, kvHeads, width) => {
        const shape = { heads, kvHeads, width, scale: 1 / Math.sqrt(width), window: 0, pairs: width / 2 };
        check(shape, [0], 1);
        check(shape, [17, 0, 39], 40);
        check({ ...shape, window: 9, scale: 1.5 / Math.sqrt(width) }, [3, 8, 9, 30], 31);
        if (width % 64 === 0) check({ ...shape, pairs: width / 8 }, [5, 20], 21);
      },
    );

    test.each([1, 3, 16])("%d sequences of up to 1300 tokens", (B) => {
      const shape = { heads: 9, kvHeads: 3, width: 64, scale: 0.125, window: 0, pairs: 32 };
      const last = range(B).map((b) => 1299 - ((b * 977) % 1300));
      check(shape, last, 1300);
      check({ ...shape, window: 700 }, last, 1300);
    });

    test.each([2, 16, 17, 70])("%d new tokens of each sequence", (tokens) => {
      for (const [heads, kvHeads] of HEADS) {
        const shape = { heads, kvHeads, width: 64, scale: 0.125, window: 0, pairs: 32 };
        check(shape, [tokens - 1], tokens, tokens);
        check(shape, [tokens - 1, tokens - 1, tokens - 1], tokens + 5, tokens);
        check(shape, [tokens + 40], tokens + 41, tokens);
        check(shape, [tokens + 10, tokens - 1, tokens + 99], tokens + 100, tokens);
        check({ ...shape, window: 13 }, [tokens + 30, tokens - 1], tokens + 31, tokens);
      }
    });

    test("tokens together are the same as one after the other, to the bit", () => {
      const shape = { heads: 9, kvHeads: 3, width: 64, scale: 0.125, window: 0, pairs: 32 };
      const [tokens, before] = [37, 20];
      using session = sessionOf(shape, 64, 64, false);
      using feeds = new Feeds(shape, [before + tokens - 1], 64, { tokens });
      const together = call(session, feeds.tensors);
      const { cos, sin } = feeds.tensors;
      let keys: Float32Array = feeds.array("keys").slice();
      let values: Float32Array = feeds.array("values").slice();
      for (let t = 0; t < tokens; t++) {
        using one = new Feeds(shape, [before + t], 64);
        for (const name of ["query", "key", "value"]) {
          const { length } = one.array(name);
          one.array(name).set(feeds.array(name).subarray(t * length, (t + 1) * length));
        }
        one.array("keys").set(keys);
        one.array("values").set(values);
        const result = call(session, { ...one.tensors, cos: cos!, sin: sin! });
        keys = result.newKeys!;
        values = result.newValues!;
        expectSame(result.y!, together.y!.subarray(t * result.y!.length, (t + 1) * result.y!.length));
      }
      expectSame(keys, together.newKeys!);
      expectSame(values, together.newValues!);
    });

    test("appends to a cache in place", () => {
      const shape = { heads: 6, kvHeads: 2, width: 32, scale: 0.2, window: 0, pairs: 16 };
      using session = sessionOf(shape, 20, 20, false);
      using feeds = new Feeds(shape, [4, 19], 20);
      const expected = feeds.expected();
      const { tensors } = feeds;
      using y = Tensor.allocate("float32", [2, 1, 6 * 32]);
      using binding = session.bind();
      for (const [name, tensor] of Object.entries(tensors)) binding.input(name, tensor);
      binding.output("y", y).output("newKeys", tensors.keys!).output("newValues", tensors.values!);
      session.run(binding);
      expectNear(floats(y), expected.y, 1.5e-6);
      expectNear(feeds.array("keys"), one(expected.keys), 1e-6);
      expectNear(feeds.array("values"), one(expected.values), 0);
    });

    test("query, key and value that lie together are the same as apart", () => {
      const shape = { heads: 6, kvHeads: 2, width: 48, scale: 0.2, window: 0, pairs: 24 };
      using session = sessionOf(shape, 20, 20, false);
      using joint = sessionOf(shape, 20, 20, false, { joint: true });
      using feeds = new Feeds(shape, [4, 19, 0], 20);
      const apart = call(session, feeds.tensors);
      const { query, key, value, ...rest } = feeds.tensors;
      const together = [0, 1, 2].flatMap((b) =>
        [query!, key!, value!].flatMap((part) => [
          ...floats(part).subarray((b * part.size) / 3, ((b + 1) * part.size) / 3),
        ]),
      );
      using all = Tensor.from("float32", [3, 1, together.length / 3], Float32Array.from(together));
      const results = call(joint, { ...rest, query: all });
      for (const name of OUTPUTS) expectSame(results[name]!, apart[name]!);
    });

    test("a sequence's result does not depend on the others, nor on what the cache holds after it", () => {
      const shape = { heads: 9, kvHeads: 3, width: 64, scale: 0.125, window: 0, pairs: 32 };
      const last = [30, 4, 70, 11];
      using session = sessionOf(shape, 80, 80, false);
      using feeds = new Feeds(shape, last, 80);
      const before = call(session, feeds.tensors).y!;
      const [row, cache] = [9 * 64, 3 * 80 * 64];
      for (const name of ["keys", "values"]) {
        for (let b = 0; b < 4; b++) {
          for (let h = 0; h < 3; h++) {
            const start = b * cache + h * 80 * 64;
            feeds.array(name).fill(Number.NaN, start + (last[b]! + 1) * 64, start + 80 * 64);
          }
        }
      }
      expectSame(call(session, feeds.tensors).y!, before);
      for (const name of ["query", "keys", "values"]) {
        const kept = feeds.array(name).slice();
        feeds.array(name)[name === "query" ? 2 * row + 70 : 2 * cache + 80 * 64 + 5] = Number.NaN;
        const after = call(session, feeds.tensors).y!;
        expectSame(after.subarray(0, 2 * row), before.subarray(0, 2 * row));
        expectSame(after.subarray(3 * row), before.subarray(3 * row));
        expect(after.subarray(2 * row, 3 * row).some(Number.isNaN)).toBe(true);
        feeds.array(name).set(kept);
      }
      using alone = new Feeds(shape, [30], 80);
      for (const name of ["query", "key", "value", "keys", "values"]) {
        alone.array(name).set(feeds.array(name).subarray(0, alone.array(name).length));
      }
      expectSame(call(session, alone.tensors).y!, before.subarray(0, row));
    });

    test("scores far apart weigh as they should", () => {
      const shape = { heads: 4, kvHeads: 4, width: 16, scale: 1, window: 0, pairs: 8 };
      using session = sessionOf(shape, 33, 33, false);
      using feeds = new Feeds(shape, [32], 33);
      for (const name of ["query", "keys"]) feeds.array(name).set(feeds.array(name).map((x) => 30 * x));
      expectNear(call(session, feeds.tensors).y!, feeds.expected().y, 1e-3);
    });

    test.each([
      ["past its end", 20, 20],
      ["before its beginning", -1, 20],
      ["without an angle", 12, 10],
    ])("a position %s is an error", (_, position, positions) => {
      const shape = { heads: 6, kvHeads: 2, width: 32, scale: 0.2, window: 0, pairs: 16 };
      using session = sessionOf(shape, 20, positions, false);
      using feeds = new Feeds(shape, [position, 3], 20, { positions });
      expect(() => call(session, feeds.tensors)).toThrow(/Attention: a position is outside of the cache/);
    });

    test("more new tokens than positions are an error", () => {
      const shape = { heads: 6, kvHeads: 2, width: 32, scale: 0.2, window: 0, pairs: 16 };
      using session = sessionOf(shape, 20, 20, false);
      using feeds = new Feeds(shape, [2], 20, { tokens: 4 });
      expect(() => call(session, feeds.tensors)).toThrow(/a position is outside of the cache/);
    });

    test("no sequences at all are no trouble", () => {
      const shape = { heads: 6, kvHeads: 2, width: 32, scale: 0.2, window: 0, pairs: 16 };
      using session = sessionOf(shape, 20, 20, false);
      using feeds = new Feeds(shape, [], 20);
      expect(call(session, feeds.tensors).y).toEqual(new Float32Array(0));
    });
  });
}

/** Attention over long caches, to run alone or beside others. */
export function cachedAttention(): Disposable & {
  run(): Float32Array;
  start(): { done: Promise<void>; result(): Float32Array };
} {
  const shape = { heads: 9, kvHeads: 3, width: 64, scale: 0.125, window: 0, pairs: 32 };
  const session = sessionOf(shape, 600, 600, false);
  const feeds = new Feeds(shape, [599, 300, 450, 20], 600);
  return {
    run: () => call(session, feeds.tensors).y!,
    start() {
      const binding = session.bind();
      for (const [name, tensor] of Object.entries(feeds.tensors)) binding.input(name, tensor);
      for (const name of OUTPUTS) binding.outputOn(name, "cpu");
      const result = (): Float32Array => {
        const tensors = binding.results();
        const y = floats(tensors.get("y")!).slice();
        for (const tensor of tensors.values()) tensor.dispose();
        binding.dispose();
        return y;
      };
      return { done: session.runAsync(binding), result };
    },
    [Symbol.dispose]() {
      session.dispose();
      feeds[Symbol.dispose]();
    },
  };
}
