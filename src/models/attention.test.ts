/** @file Packed rows with windows, prefixes and length-dependent rotation: each sequence as if it were alone in its row. */
import { join } from "node:path";
import { expect, test } from "vitest";
import { concat, exportOnnx, Graph, reshape } from "../graph/index.ts";
import { Session, Tensor } from "../runtime/index.ts";
import { Backbone } from "./backbone.ts";
import type { AttentionPrefix } from "./forward.ts";

const FAMILIES = new URL("../../test/fixtures/families", import.meta.url).pathname;
const P = 3;

/** Logits float32 [T · vocab] of one row. */
function logitsOf(
  backbone: Backbone,
  row: { tokens: number[]; segments?: number[]; positions?: number[] },
  prefixed: boolean,
) {
  const g = new Graph("packed");
  const tokens = g.input("tokens", "int64", ["B", "T"]);
  const packed = row.segments && {
    segments: g.input("segments", "int64", ["B", "T"]),
    positions: g.input("positions", "int64", ["B", "T"]),
  };
  const { numKvHeads, headDim } = backbone.config;
  const width = numKvHeads * headDim;
  const some = (phase: number) =>
    g.constant(
      "float32",
      [1, P, width],
      Array.from({ length: P * width }, (_, i) => Math.sin(i + phase)),
    );
  const prefix = (layer: number): AttentionPrefix => ({ length: P, key: some(layer), value: some(100 + layer) });
  const { hidden, logits } = backbone.forward(g, {
    tokens,
    attention: { kind: "full", ...(packed && { packed }) },
    ...(prefixed && { hooks: { prefix } }),
  });
  g.output("logits", logits(hidden));
  using session = Session.create(exportOnnx(g), { initializers: backbone.initializers() });
  const shape = [1, row.tokens.length];
  const feeds = Object.entries(row).map(([name, values]) => [
    name,
    Tensor.from("int64", shape, BigInt64Array.from(values, BigInt)),
  ]);
  using result = session.call(Object.fromEntries(feeds)).logits!;
  return (result.data as Float32Array).slice();
}

const distance = (a: Float32Array, b: Float32Array): number =>
  Math.max(...a.map((value, i) => Math.abs(value - b[i]!)));

// Windows on all layers, on some, soft caps; LongRoPE, whose longest sequence is short here though the row is long.
test.each(["mistral", "gemma2", "phi3", "phi3-long"])("%s", async (name) => {
  using backbone = await Backbone.load(join(FAMILIES, name));
  const V = backbone.config.vocabSize;
  const draw = (n: number, seed: number) =>
    Array.from({ length: n }, (_, i) => 3 + ((i * i * 7 + seed * 31 + i) % (V - 3)));
  const [first, second] = [draw(19, 1), draw(17, 2)];
  const count = (n: number) => Array.from({ length: n }, (_, i) => i);
  const row = {
    tokens: [...first, ...second, 0, 0],
    segments: [...first.map(() => 1), ...second.map(() => 2), 0, 0],
    positions: [...count(first.length), ...count(second.length), 0, 0],
  };
  for (const prefixed of [false, true]) {
    const together = logitsOf(backbone, row, prefixed);
    const alone = [first, second].map((tokens) => logitsOf(backbone, { tokens }, prefixed));
    expect(distance(together.subarray(0, first.length * V), alone[0]!)).toBeLessThan(1e-4);
    const rest = together.subarray(first.length * V, (first.length + second.length) * V);
    expect(distance(rest, alone[1]!)).toBeLessThan(1e-4);
    const unmarked = logitsOf(backbone, { tokens: row.tokens }, prefixed).subarray(first.length * V);
    expect(distance(rest, unmarked.subarray(0, rest.length))).toBeGreaterThan(0.1);
  }
});

// Head norms and two rotations; a length that decides on the rotation, for each batch by itself.
test.each(["gemma3", "phi3-long", "llama-dynamic"])("%s: joined batches, each as if it passed alone", async (name) => {
  using backbone = await Backbone.load(join(FAMILIES, name));
  const V = backbone.config.vocabSize;
  const [short, long] = [7, 41].map((n) => Array.from({ length: n }, (_, i) => 3 + ((i * i + 5 * i + n) % (V - 3))));
  const g = new Graph("joined");
  const batches = ["1", "2"].map((i) => ({ tokens: g.input(`tokens${i}`, "int64", [`B${i}`, `T${i}`]) }));
  const flat = batches.map(({ tokens }) => reshape(tokens, [-1, 1]));
  const { hidden, logits } = backbone.forward(g, { tokens: concat(flat, 0), attention: { kind: "joined", batches } });
  g.output("logits", logits(hidden));
  using session = Session.create(exportOnnx(g), { initializers: backbone.initializers() });
  const row = (tokens: readonly number[]) =>
    Tensor.from("int64", [1, tokens.length], BigInt64Array.from(tokens, BigInt));
  using result = session.call({ tokens1: row(short!), tokens2: row(long!) }).logits!;
  const together = (result.data as Float32Array).slice();
  expect(distance(together.subarray(0, 7 * V), logitsOf(backbone, { tokens: short! }, false))).toBeLessThan(1e-4);
  expect(distance(together.subarray(7 * V), logitsOf(backbone, { tokens: long! }, false))).toBeLessThan(1e-4);
});
