/** @file Tests of the operator Attention over a cache of float16. */
import { describe, expect, test } from "vitest";
import { float16ToFloat32, float32ToFloat16 } from "../../base/index.ts";
import { OPERATOR_DOMAIN, operators, Session, Tensor } from "../index.ts";
import { testModel } from "../testing.ts";
import { call, Feeds, HEADS, type Heads, sessionOf, WIDTHS } from "./attention-operator.ts";
import { expectNear, expectSame, floats, normals } from "./operators.ts";

/** float16, two numbers in each float32, as a cache of halves has it. */
const paired = (values: Float32Array): Float32Array => new Float32Array(float32ToFloat16(values).buffer);
function unpaired(pairs: Float32Array): Float32Array {
  const values = new Float32Array(2 * pairs.length);
  float16ToFloat32(new Uint16Array(pairs.buffer, pairs.byteOffset, values.length), values);
  return values;
}

/** Over a cache of float16: new keys and values are rounded, and all else is as with a float32 cache of the same numbers. */
function checkHalves(shape: Heads, last: readonly number[], capacity: number, tokens = 1): void {
  using feeds = new Feeds(shape, last, capacity, { tokens });
  for (const name of ["keys", "values"]) feeds.array(name).set(unpaired(paired(feeds.array(name))));
  using session = sessionOf(shape, capacity, capacity, false, { halves: true });
  using whole = sessionOf(shape, capacity, capacity, false);
  const wide = call(whole, feeds.tensors);
  const dims = [last.length, shape.kvHeads, capacity, shape.width / 2];
  using keys = Tensor.from("float32", dims, paired(feeds.array("keys")));
  using values = Tensor.from("float32", dims, paired(feeds.array("values")));
  const results = call(session, { ...feeds.tensors, keys, values });
  const held = { keys: unpaired(results.newKeys!), values: unpaired(results.newValues!) };
  expectSame(held.keys, unpaired(paired(wide.newKeys!)));
  expectSame(held.values, unpaired(paired(wide.newValues!)));
  expectNear(results.y!, feeds.expected(held).y, 1.5e-6);
  operators()!.useThreads(1);
  expectSame(call(session, { ...feeds.tensors, keys, values }).y!, results.y!);
  operators()!.useThreads(2);
}

export function attentionHalvesTests(): void {
  describe("Attention over a cache of float16", () => {
    test.each(HEADS.flatMap(([heads, kvHeads]) => WIDTHS.map((width) => [heads, kvHeads, width] as const)))(
      "%d heads over %d, width %d",
      (heads, kvHeads, width) => {
        const shape = { heads, kvHeads, width, scale: 1 / Math.sqrt(width), window: 0, pairs: width / 2 };
        checkHalves(shape, [0], 1);
        checkHalves(shape, [17, 0, 39], 40);
        checkHalves({ ...shape, window: 9 }, [3, 8, 30], 31);
        checkHalves(shape, [20, 16, 50], 51, 17);
      },
    );

    test("appends to it in place", () => {
      const shape = { heads: 6, kvHeads: 2, width: 32, scale: 0.2, window: 0, pairs: 16 };
      using session = sessionOf(shape, 20, 20, false, { halves: true });
      using feeds = new Feeds(shape, [4, 19], 20);
      const dims = [2, 2, 20, 16];
      using keys = Tensor.from("float32", dims, paired(feeds.array("keys")));
      using values = Tensor.from("float32", dims, paired(feeds.array("values")));
      const apart = call(session, { ...feeds.tensors, keys, values });
      using y = Tensor.allocate("float32", [2, 1, 6 * 32]);
      using binding = session.bind();
      for (const [name, tensor] of Object.entries({ ...feeds.tensors, keys, values })) binding.input(name, tensor);
      binding.output("y", y).output("newKeys", keys).output("newValues", values);
      session.run(binding);
      expectSame(floats(y), apart.y!);
      expectSame(unpaired(floats(keys)), unpaired(apart.newKeys!));
      expectSame(unpaired(floats(values)), unpaired(apart.newValues!));
    });

    test.each([
      [1, 2],
      [3, 80],
      [700, 64],
    ])("is widened and made narrow again: %d rows of %d", (rows, width) => {
      const [whole, half] = [
        ["R", width],
        ["R", width / 2],
      ] as const;
      const node = (op: string) => ({ op, domain: OPERATOR_DOMAIN, inputs: ["x"], outputs: ["y"], attributes: { N: width } }); // biome-ignore format: one line
      const model = (op: string, from: readonly (string | number)[], to: readonly (string | number)[]) =>
        testModel({ inputs: { x: ["float32", [...from]] }, outputs: { y: ["float32", [...to]] }, nodes: [node(op)] });
      using narrow = Session.create(model("Narrow", whole, half));
      using widen = Session.create(model("Widen", half, whole));
      const numbers = normals(rows, rows * width).map((x, i) => (i % 7 === 0 ? x * 1e-6 : i % 5 === 0 ? x * 1000 : x));
      using x = Tensor.from("float32", [rows, width], numbers);
      const pairs = call(narrow, { x }).y!;
      expectSame(unpaired(pairs), unpaired(paired(numbers)));
      using back = Tensor.from("float32", [rows, width / 2], pairs);
      expectSame(call(widen, { x: back }).y!, unpaired(pairs));
    });

    test("heads of too many features have none", () => {
      const shape = { heads: 2, kvHeads: 1, width: 2048, scale: 0.2, window: 0, pairs: 16 };
      using session = sessionOf(shape, 4, 4, false, { halves: true });
      using feeds = new Feeds(shape, [3], 4);
      using cache = Tensor.allocate("float32", [1, 1, 4, 1024]);
      expect(() => call(session, { ...feeds.tensors, keys: cache, values: cache })).toThrow(/not held in float16/);
    });
  });
}
