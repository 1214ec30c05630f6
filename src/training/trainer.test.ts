/** @file Steps against PyTorch: curves of 20 steps (test/fixtures/curve), accumulation, aborted and failing steps. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { Random, readJson } from "../base/index.ts";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone, readSafetensors } from "../models/index.ts";
import type { Example } from "./data.ts";
import { scheduleFactor } from "./schedule.ts";
import { exampleOf } from "./testing.ts";
import { Trainer, type TrainerOptions } from "./trainer.ts";

const fixtures = join(import.meta.dirname, "../../test/fixtures");
const backbone = await Backbone.load(join(fixtures, "backbones/llama-gqa"));
afterAll(() => backbone.dispose());

const batchSchema = z.looseObject({
  tokens: z.array(z.array(z.int())),
  lengths: z.array(z.int()),
  promptLengths: z.array(z.int()),
});
const curveSchema = z.looseObject({
  microBatches: z.array(z.int()),
  learningRate: z.number(),
  activationLearningRate: z.number().optional(),
  optimizer: z.looseObject({
    betas: z.tuple([z.number(), z.number()]),
    eps: z.number(),
    weightDecay: z.number(),
    maxGradNorm: z.number(),
    warmupSteps: z.int(),
  }),
  steps: z.array(
    z.looseObject({
      loss: z.number(),
      crossEntropy: z.number().optional(),
      loadBalanceLoss: z.number().optional(),
      gradNorm: z.number(),
      learningRate: z.number(),
      microBatches: z.array(batchSchema),
      devLoss: z.number().optional(),
      devGradNorm: z.number().optional(),
      activationLearningRate: z.number().optional(),
      devBatch: batchSchema.optional(),
    }),
  ),
});

function examplesOf({ tokens, lengths, promptLengths }: z.infer<typeof batchSchema>): Example[] {
  return tokens.map((row, b) => ({
    tokens: Int32Array.from(row.slice(0, lengths[b])),
    promptLength: promptLengths[b]!,
  }));
}

/**
 * Relative errors of losses and norms, absolute ones of final parameters. The gradient of the rational activation's
 * denominator is ill-conditioned in float32 (at step 7 of `milora` PyTorch's norm is off by 2e-4 from its own in
 * float64, ours by 3e-5), hence the wider bounds for MiLoRA.
 */
const bounds = (name: string) =>
  name.startsWith("lora") ? { loss: 1e-5, norm: 1e-5, parameter: 1e-5 } : { loss: 1e-4, norm: 2e-2, parameter: 1e-4 };

const near = (actual: number, wanted: number): number => Math.abs(actual - wanted) / Math.abs(wanted);

describe("Trainer", () => {
  for (const name of ["lora", "lora-accumulated", "milora", "milora-bilevel", "milora-annealed"]) {
    it(`follows PyTorch for 20 steps (${name})`, async () => {
      const bound = bounds(name);
      const directory = join(fixtures, "curve", name);
      const curve = readJson(join(directory, "expected.json"), curveSchema);
      using adapter = Adapter.load(join(directory, "initial"), backbone.config);
      const bilevel = curve.activationLearningRate !== undefined;
      const microBatchSize = Math.max(...curve.microBatches);
      using trainer = new Trainer(backbone, adapter, { ...curve.optimizer, microBatchSize, maxLength: 64, bilevel });
      expect(trainer.bilevel).toBe(bilevel);
      for (const [i, wanted] of curve.steps.entries()) {
        const factor = scheduleFactor("linear", i, curve.steps.length, curve.optimizer.warmupSteps);
        const lr = curve.learningRate * factor;
        expect(lr).toBeCloseTo(wanted.learningRate, 12);
        const batch = wanted.microBatches.flatMap(examplesOf);
        const activation = wanted.devBatch && {
          batch: examplesOf(wanted.devBatch),
          lr: curve.activationLearningRate! * factor,
        };
        const outcome = await trainer.step(batch, {
          lr,
          progress: i / curve.steps.length,
          ...(activation && { activation }),
        });
        expect(near(outcome!.losses.loss, wanted.loss), `loss of step ${i}`).toBeLessThan(bound.loss);
        expect(near(outcome!.losses.grad_norm, wanted.gradNorm), `norm of step ${i}`).toBeLessThan(bound.norm);
        if (wanted.loadBalanceLoss !== undefined) {
          expect(outcome!.losses.lm_loss).toBeCloseTo(wanted.crossEntropy!, 2);
          expect(outcome!.losses.auxiliary.load_balance).toBeCloseTo(0.01 * wanted.loadBalanceLoss, 4);
        }
        if (bilevel) {
          expect(near(outcome!.activation!.loss, wanted.devLoss!), `dev loss of step ${i}`).toBeLessThan(bound.loss);
          expect(near(outcome!.activation!.grad_norm, wanted.devGradNorm!), `dev norm of step ${i}`).toBeLessThan(
            bound.norm,
          );
        }
      }
      const { tensors } = readSafetensors(join(directory, "final.safetensors"));
      let [worst, moved] = [0, 0];
      using initial = Adapter.load(join(directory, "initial"), backbone.config);
      for (const { key } of adapter.specs) {
        const wanted = tensors.get(key)!.data as Float32Array;
        for (const [i, x] of wanted.entries()) {
          worst = Math.max(worst, Math.abs(x - adapter.values(key)[i]!));
          moved = Math.max(moved, Math.abs(x - initial.values(key)[i]!));
        }
      }
      expect(moved).toBeGreaterThan(5e-3);
      expect(worst).toBeLessThan(bound.parameter);
    });
  }

  const options: TrainerOptions = {
    betas: [0.9, 0.999],
    eps: 1e-8,
    weightDecay: 0,
    maxGradNorm: 1,
    microBatchSize: 8,
    maxLength: 64,
    bilevel: true,
  };
  const random = new Random(4);
  const batch = [7, 21, 12, 30, 5].map((length) => exampleOf(random, length));
  const fresh = (method: string, settings: Record<string, unknown> = {}) =>
    Adapter.create(methodOf(method), { r: 4, ...settings }, backbone.config, 2);
  const snapshot = (adapter: Adapter) => new Map(adapter.specs.map(({ key }) => [key, adapter.values(key).slice()]));

  it("takes the same step however the batch is cut into micro-batches", async () => {
    const results: Map<string, Float32Array>[] = [];
    const norms: number[] = [];
    for (const microBatchSize of [5, 2, 1]) {
      using adapter = fresh("lora");
      using trainer = new Trainer(backbone, adapter, { ...options, microBatchSize });
      norms.push((await trainer.step(batch, { lr: 1e-3 }))!.losses.grad_norm);
      await trainer.step(batch, { lr: 1e-3 });
      results.push(snapshot(adapter));
    }
    for (const other of [1, 2]) {
      expect(near(norms[other]!, norms[0]!)).toBeLessThan(1e-5);
      for (const [key, values] of results[0]!) {
        for (const [i, x] of values.entries()) expect(Math.abs(x - results[other]!.get(key)![i]!)).toBeLessThan(1e-4);
      }
    }
  });

  it("weighs the method's own losses of micro-batches by their prompts", async () => {
    // Equal prompts have the same load-balance loss in any number, so how they are cut must not matter.
    const same = [batch[3]!, batch[3]!, batch[3]!];
    const steps = [];
    for (const microBatchSize of [3, 2, 1]) {
      using adapter = fresh("milora", { balance: "load" });
      using trainer = new Trainer(backbone, adapter, { ...options, microBatchSize, bilevel: false });
      steps.push((await trainer.step(same, { lr: 1e-3 }))!.losses);
    }
    for (const { auxiliary, grad_norm } of steps) {
      expect(near(auxiliary.load_balance!, steps[0]!.auxiliary.load_balance!)).toBeLessThan(1e-5);
      expect(near(grad_norm, steps[0]!.grad_norm)).toBeLessThan(1e-4);
    }
  });

  it("moves Θ by the dev batch alone in the bi-level pair of steps", async () => {
    using adapter = fresh("milora");
    using trainer = new Trainer(backbone, adapter, options);
    const before = snapshot(adapter);
    await trainer.step(batch, { lr: 1e-3, activation: { batch, lr: 0 } });
    const middle = snapshot(adapter);
    await trainer.step(batch, { lr: 0, activation: { batch, lr: 1e-3 } });
    const after = snapshot(adapter);
    for (const { key, group } of adapter.specs) {
      const changed = (a: typeof before, b: typeof before) => a.get(key)!.some((x, i) => x !== b.get(key)![i]);
      if (group === "activation") expect([changed(before, middle), changed(middle, after)]).toEqual([false, true]);
      else expect(changed(middle, after)).toBe(false);
    }
    expect(trainer.updates).toEqual(
      new Map([
        ["weights", 2],
        ["activation", 2],
      ]),
    );
  });

  it("leaves everything as it was when a step is aborted, and then steps as if nothing had happened", async () => {
    const results = [];
    for (const aborted of [false, true]) {
      using adapter = fresh("milora");
      using trainer = new Trainer(backbone, adapter, { ...options, microBatchSize: 2, bilevel: false });
      const controller = new AbortController();
      if (aborted) {
        setImmediate(() => controller.abort()); // while the first of three passes runs
        expect(await trainer.step(batch, { lr: 1e-3, signal: controller.signal })).toBeUndefined();
        expect(trainer.updates.get("weights")).toBe(0);
      }
      results.push([await trainer.step(batch, { lr: 1e-3 }), snapshot(adapter)]);
    }
    expect(results[1]).toEqual(results[0]);
  });

  it("stops at a loss or gradient that is not finite, and overwrites nothing", async () => {
    using adapter = fresh("lora");
    using trainer = new Trainer(backbone, adapter, options);
    await trainer.step(batch, { lr: 1e-3 });
    const key = adapter.specs.find(({ key }) => key.includes("lora_B"))!.key;
    adapter.values(key)[0] = Number.POSITIVE_INFINITY;
    const moments = () =>
      [...trainer.groups.values()].map(({ first, second }) => [first.data.slice(), second.data.slice()]);
    const [before, momentsBefore] = [snapshot(adapter), moments()];
    await expect(trainer.step(batch, { lr: 1e-3 })).rejects.toMatchObject({
      code: "TRAINING_NOT_FINITE",
      message: expect.stringMatching(/^step 2: the loss is NaN; nothing was updated/),
    });
    expect(snapshot(adapter)).toEqual(before);
    expect(moments()).toEqual(momentsBefore);
    adapter.values(key)[0] = 0;
    expect((await trainer.step(batch, { lr: 1e-3 }))!.losses.loss).toBeGreaterThan(0);
  });

  it("says that it was disposed", async () => {
    using adapter = fresh("lora");
    const trainer = new Trainer(backbone, adapter, options);
    trainer[Symbol.dispose]();
    trainer[Symbol.dispose]();
    await expect(trainer.step(batch, { lr: 1e-3 })).rejects.toMatchObject({ code: "TRAINER_CLOSED" });
    await expect(trainer.evaluate(batch)).rejects.toMatchObject({ code: "TRAINER_CLOSED" });
  });

  it("evaluates to the loss of a step, whatever the micro-batches", async () => {
    using adapter = fresh("lora");
    using trainer = new Trainer(backbone, adapter, { ...options, microBatchSize: 2 });
    const evaluation = (await trainer.evaluate(batch))!;
    const outcome = (await trainer.step(batch, { lr: 1e-3 }))!;
    expect(evaluation.loss).toBeCloseTo(outcome.losses.lm_loss, 5);
    expect(evaluation.supervisedTokens).toBe(outcome.supervisedTokens);
    expect(evaluation.perplexity).toBeCloseTo(Math.exp(evaluation.loss), 9);
    expect((await trainer.evaluate(batch))!.loss).toBeLessThan(evaluation.loss);
    expect(await trainer.evaluate(batch, AbortSignal.abort())).toBeUndefined();
  });
});
