/** @file Packing: several sequences in one row train as in rows of their own, for every method that says it can. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { InputError, Random } from "../base/index.ts";
import { Adapter, methodOf, methods } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { type BatchInputs, Collated } from "./batches.ts";
import type { Example } from "./data.ts";
import { Accumulated, GradientSession } from "./gradients.ts";
import { PackedBatch, packedBatches, packRows, requirePackable } from "./packing.ts";
import { train } from "./train.ts";
import { Trainer, type TrainerOptions } from "./trainer.ts";

const backbone = await Backbone.load(join(import.meta.dirname, "../../test/fixtures/backbones/llama-gqa"));
afterAll(() => backbone.dispose());

const random = new Random(17);
const example = (length: number, promptLength: number): Example => ({
  tokens: Int32Array.from({ length }, () => random.integer(backbone.config.vocabSize)),
  promptLength,
});
/** Two rows of three and two sequences, one of them full to the last place. */
const examples = [example(6, 4), example(20, 15), example(9, 1), example(5, 2), example(11, 8)];
const lengths = (rows: readonly (readonly Example[])[]) => rows.map((row) => row.map(({ tokens }) => tokens.length));

const settings: Record<string, Record<string, unknown>> = {
  adalora: { init_r: 4 },
  ia3: { projection_dim: 8 },
  "learned-adapter": { bottleneck: 8 },
  "parallel-adapter": { bottleneck: 8 },
  bitfit: { projection_dim: 8 },
  "p-tuning-v2": { num_virtual_tokens: 3, encoder_hidden_size: 8 },
};

/** An adapter that changes something everywhere. */
function adapterOf(name: string, options: Record<string, unknown> = settings[name] ?? { r: 4 }): Adapter {
  const adapter = Adapter.create(methodOf(name), options, backbone.config, 1, backbone, { totalSteps: 100 });
  for (const { key } of adapter.specs) {
    const values = adapter.values(key);
    if (values.every((value) => value === 0)) for (const i of values.keys()) values[i] = 0.05 * random.normal();
  }
  return adapter;
}

async function pass(adapter: Adapter, batch: BatchInputs, packed: boolean) {
  using accumulated = new Accumulated(adapter);
  using session = new GradientSession(backbone, [{ accumulated, packed }]);
  session.prepare(0, 5, 0);
  const [result] = await session.accumulate([{ batch, inverseTokens: 1 / batch.supervised, promptShare: 1 }]);
  const { crossEntropy, auxiliary, active } = result!;
  const gradients = [...accumulated.flat].map(([, tensor]) => Float32Array.from(tensor.data as Float32Array));
  return { crossEntropy, auxiliary, active, gradients };
}

describe("packRows", () => {
  it("leaves few places, in rows of the longest allowed at most, and loses no sequence", () => {
    expect(lengths(packRows(examples, 20))).toEqual([[20], [11, 9], [6, 5]]); // 60 places for 51 tokens
    expect(lengths(packRows(examples, 30))).toEqual([
      [20, 9],
      [11, 6, 5],
    ]); // 58 places
    expect(lengths(packRows(examples, 64))).toEqual([[20, 11, 9, 6, 5]]); // 51 places
    const batches = packedBatches(examples, 2, 20);
    expect(lengths(batches.map((rows) => rows.flat()))).toEqual([
      [20, 11, 9],
      [6, 5],
    ]);
    expect(packRows([], 64)).toEqual([]);
    expect(new Set(packRows(examples, 64).flat())).toEqual(new Set(examples));
  });
});

describe("a packed pass", () => {
  const rows = [
    [examples[1]!, examples[0]!, examples[3]!],
    [examples[2]!, examples[4]!],
  ];
  const packable = [...methods.values()].filter(({ properties }) => properties.packable).map(({ name }) => name);
  const cases: [string, Record<string, unknown> | undefined][] = [
    ...packable.map((name): [string, undefined] => [name, undefined]),
    ...["mean", "max", "last"].map((pooler): [string, Record<string, unknown>] => ["milora", { r: 4, pooler }]),
    ["milora", { r: 4, gate: "renormalized", router_input: "rms" }],
  ];

  it("is offered by LoRA and MiLoRA at least", () => {
    expect(packable).toEqual(expect.arrayContaining(["lora", "dora", "milora", "midora"]));
  });

  it.each(cases)("has the loss, gradients and routes of unpacked rows: %s %o", async (name, options) => {
    using adapter = adapterOf(name, options);
    using plain = new Collated(examples, 64);
    using packed = new PackedBatch(rows, 64);
    expect(packed.supervised).toBe(plain.supervised);
    const expected = await pass(adapter, plain, false);
    const actual = await pass(adapter, packed, true);
    expect(Math.abs(actual.crossEntropy / expected.crossEntropy - 1)).toBeLessThan(1e-4);
    for (const [loss, value] of expected.auxiliary) expect(actual.auxiliary.get(loss)).toBeCloseTo(value, 6);
    expect(actual.active).toEqual(expected.active);
    for (const [group, gradient] of expected.gradients.entries()) {
      const scale = gradient.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
      const other = actual.gradients[group]!;
      const worst = gradient.reduce((most, x, i) => Math.max(most, Math.abs(x - other[i]!)), 0);
      expect(scale).toBeGreaterThan(0);
      expect(worst / scale).toBeLessThan(1e-4);
    }
  });

  it("is not the same when sequences see each other", async () => {
    using adapter = adapterOf("lora");
    using packed = new PackedBatch(rows, 64);
    using mixed = new PackedBatch(rows, 64);
    const segments = mixed.inputs.get("segments")!.data as BigInt64Array;
    for (const [i, segment] of segments.entries()) if (segment >= 0n) segments[i] = 0n;
    const [own, seen] = [await pass(adapter, packed, true), await pass(adapter, mixed, true)];
    expect(Math.abs(own.crossEntropy - seen.crossEntropy)).toBeGreaterThan(1e-2);
  });
});

describe("training with packing", () => {
  const options: TrainerOptions = {
    betas: [0.9, 0.999],
    eps: 1e-8,
    weightDecay: 0,
    maxGradNorm: 1,
    microBatchSize: 8,
    maxLength: 64,
    bilevel: true,
  };

  it("takes the same steps, also on the learned activations", async () => {
    using plain = adapterOf("milora", { r: 4 });
    using packed = adapterOf("milora", { r: 4 });
    (packed.flat("weights")!.data as Float32Array).set(plain.flat("weights")!.data as Float32Array);
    const input = { lr: 1e-3, activation: { batch: examples.slice(0, 3), lr: 1e-3 } };
    using one = new Trainer(backbone, plain, options);
    using other = new Trainer(backbone, packed, { ...options, packing: true });
    for (let step = 0; step < 2; step++) {
      const [expected, actual] = [await one.step(examples, input), await other.step(examples, input)];
      expect(actual!.losses.loss).toBeCloseTo(expected!.losses.loss, 4);
      expect(actual!.losses.grad_norm).toBeCloseTo(expected!.losses.grad_norm, 3);
      expect(actual!.activation!.loss).toBeCloseTo(expected!.activation!.loss, 4);
      expect(actual!.tokens).toBe(expected!.tokens);
    }
  });

  it("refuses methods that do not say they can be packed, before anything is read", async () => {
    for (const { name, properties } of methods.values()) {
      const refuse = () => requirePackable(methodOf(name));
      if (properties.packable) refuse();
      else expect(refuse).toThrow(`packing: ${name} cannot be trained with several sequences in one row`);
    }
    const config = { model: "m", method: "iapt", packing: true, data: { train: "none.json" }, output_dir: "none" };
    await expect(train(config, { backbone })).rejects.toThrow(InputError);
    await expect(train(config, { backbone })).rejects.toThrow(/packing: iapt cannot be trained/);
  });
});
