/** @file Recomputation changes nothing but memory: losses and gradients of every method, packed rows, quantised weights. */
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Random } from "../base/index.ts";
import type { Recomputation } from "../graph/index.ts";
import { Adapter, type Method, methods } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { Collated } from "./batches.ts";
import { Accumulated, GradientSession } from "./gradients.ts";
import { PackedBatch } from "./packing.ts";
import { exampleOf, SMALL } from "./testing.ts";
import { Trainer } from "./trainer.ts";

const model = join(import.meta.dirname, "../../test/fixtures/backbones/llama-gqa");
const float32 = await Backbone.load(model);
const int4 = await Backbone.load(model, { weights: "int4" });
afterAll(() => {
  float32.dispose();
  int4.dispose();
});

/** An adapter of which no part is zero, so that every gradient is there. */
function adapterOf(method: Method, backbone: Backbone): Adapter {
  const options = SMALL[method.name] ?? { r: 4 };
  const adapter = Adapter.create(method, options, backbone.config, 1, backbone, { totalSteps: 10 });
  const random = new Random(2);
  for (const { key } of adapter.specs) {
    const values = adapter.values(key);
    for (let i = 0; i < values.length; i++) values[i] = values[i]! + 0.02 * random.normal();
  }
  return adapter;
}

const examples = [9, 17, 6].map((length, seed) => exampleOf(new Random(seed), length));

/** What a pass gives, and the gradients. */
async function passOf(backbone: Backbone, method: Method, recompute: Recomputation, packed: boolean) {
  using adapter = adapterOf(method, backbone);
  using accumulated = new Accumulated(adapter);
  using session = new GradientSession(backbone, [{ accumulated, packed }], {}, recompute);
  session.prepare(0, 5, 0.3);
  using batch = packed ? new PackedBatch([examples.slice(0, 2), examples.slice(2)], 64) : new Collated(examples, 64);
  const [pass] = await session.accumulate([{ batch, inverseTokens: 0.1, promptShare: 1 }]);
  const gradients = [...accumulated.flat].map(([group, { data }]) => [group, Float32Array.from(data as Float32Array)]);
  return { pass, gradients: Object.fromEntries(gradients) as Record<string, Float32Array> };
}

const cases = [...methods.values()].flatMap((method) => [
  { name: method.name, method, backbone: float32, packed: false },
  ...(method.properties.packable ? [{ name: `${method.name}, packed`, method, backbone: float32, packed: true }] : []),
  ...(method.name === "milora" ? [{ name: "milora over int4", method, backbone: int4, packed: false }] : []),
]);

describe.each(cases)("$name", ({ method, backbone, packed }) => {
  test("has the same losses and gradients, whatever is computed again", async () => {
    const plain = await passOf(backbone, method, "nothing", packed);
    for (const values of Object.values(plain.gradients)) {
      expect(values.some((x) => x !== 0)).toBe(true);
      expect(values.every(Number.isFinite)).toBe(true);
    }
    for (const recompute of ["light", "all"] as const) {
      expect(await passOf(backbone, method, recompute, packed)).toEqual(plain);
    }
  });
});

test("a trainer takes the same steps", async () => {
  const outcomes = [];
  for (const recompute of ["nothing", "light", "all"] as const) {
    using adapter = adapterOf(methods.get("milora")!, float32);
    using trainer = new Trainer(float32, adapter, {
      betas: [0.9, 0.999],
      eps: 1e-8,
      weightDecay: 0,
      maxGradNorm: 1,
      microBatchSize: 2,
      maxLength: 64,
      bilevel: true,
      recompute,
    });
    const activation = { batch: examples.slice(1), lr: 1e-3 };
    const steps = [await trainer.step(examples, { lr: 1e-2, activation })];
    steps.push(await trainer.step(examples, { lr: 1e-2, activation }));
    outcomes.push({ steps, digest: adapter.digest });
  }
  expect(outcomes[1]).toEqual(outcomes[0]);
  expect(outcomes[2]).toEqual(outcomes[0]);
});
