/** @file Ten steps of AdaLoRA against PEFT (test/fixtures/curve/adalora): losses, scores, kept rows, parameters of each step. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone, readSafetensors } from "../models/index.ts";

import type { Example } from "./data.ts";
import { scheduleFactor } from "./schedule.ts";
import { Trainer } from "./trainer.ts";

interface Step {
  readonly loss: number;
  readonly crossEntropy: number;
  readonly gradNorm: number;
  readonly learningRate: number;
  /** Rows of E that are not 0, by key. */
  readonly ranks: Readonly<Record<string, number>>;
  /** Scores by module, in file order, where rows were masked. */
  readonly allocation: { readonly budget: number; readonly scores: readonly (readonly number[])[] } | null;
  readonly batch: {
    readonly tokens: readonly (readonly number[])[];
    readonly lengths: readonly number[];
    readonly promptLengths: readonly number[];
  };
}

interface Expected {
  readonly learningRate: number;
  readonly optimizer: {
    readonly betas: readonly [number, number];
    readonly eps: number;
    readonly weightDecay: number;
    readonly maxGradNorm: number;
    readonly warmupSteps: number;
  };
  readonly steps: readonly Step[];
}

const directory = join(import.meta.dirname, "../../test/fixtures/curve/adalora");
const expected = JSON.parse(readFileSync(join(directory, "expected.json"), "utf8")) as Expected;
const states = readSafetensors(join(directory, "states.safetensors")).tensors;
const backbone = await Backbone.load(join(import.meta.dirname, "../../test/fixtures/backbones/llama-gqa"));
const scratch = mkdtempSync(join(tmpdir(), "milora-adalora-"));
afterAll(() => {
  backbone.dispose();
  rmSync(scratch, { recursive: true });
});

function examplesOf({ tokens, lengths, promptLengths }: Step["batch"]): Example[] {
  return tokens.map((row, b) => ({
    tokens: Int32Array.from(row.slice(0, lengths[b])),
    promptLength: promptLengths[b]!,
  }));
}

/** Largest difference, relative to the largest number. */
function off(actual: ArrayLike<number>, wanted: ArrayLike<number>): number {
  expect(actual.length).toBe(wanted.length);
  let [worst, scale] = [0, 1e-30];
  for (let i = 0; i < wanted.length; i++) {
    worst = Math.max(worst, Math.abs(actual[i]! - wanted[i]!));
    scale = Math.max(scale, Math.abs(wanted[i]!));
  }
  return worst / scale;
}

const floats = (tensor: { readonly data: unknown } | undefined) => tensor!.data as Float32Array;

test("losses, scores, masked rows and parameters of every step are PEFT's", async () => {
  using adapter = Adapter.load(join(directory, "initial"), backbone.config);
  const { optimizer, steps, learningRate } = expected;
  using trainer = new Trainer(backbone, adapter, { ...optimizer, microBatchSize: 2, maxLength: 64, bilevel: true });
  const state = trainer.methodState!;
  const offsets = adapter.offsets("weights");
  let allocations = 0;
  for (const [i, wanted] of steps.entries()) {
    const lr = learningRate * scheduleFactor("linear", i, steps.length, optimizer.warmupSteps);
    expect(lr).toBeCloseTo(wanted.learningRate, 9);
    const { losses } = (await trainer.step(examplesOf(wanted.batch), { lr }))!;
    expect(Math.abs(losses.loss / wanted.loss - 1), `loss of step ${i}`).toBeLessThan(1e-5);
    expect(losses.auxiliary.orthogonality).toBeCloseTo(wanted.loss - wanted.crossEntropy, 4);
    expect(Math.abs(losses.grad_norm / wanted.gradNorm - 1), `norm of step ${i}`).toBeLessThan(1e-4);
    for (const { key, shape } of adapter.specs) {
      const name = `step ${i}, ${key}`;
      expect(off(adapter.values(key), floats(states.get(`${i}.${key}`))), name).toBeLessThan(1e-4);
      if (key in wanted.ranks) {
        expect(adapter.values(key).filter((e) => e !== 0).length, name).toBe(wanted.ranks[key]);
      }
      for (const [kept, theirs] of [
        ["average", "exp_avg_ipt"],
        ["uncertainty", "exp_avg_unc"],
      ] as const) {
        const found = states.get(`${i}.${theirs}.${key}`); // PEFT forgets its scores once the budget is final
        if (found === undefined) continue;
        const start = offsets.get(key)!;
        const ours = floats(state.tensors.get(kept)).subarray(start, start + shape[0]! * shape[1]!);
        expect(off(ours, floats(found)), `${theirs}, ${name}`).toBeLessThan(1e-3);
      }
    }
    if (wanted.allocation) {
      allocations++;
      const { scores } = state as unknown as { readonly scores: Float32Array };
      expect(off(scores, wanted.allocation.scores.flat()), `scores of step ${i}`).toBeLessThan(1e-3);
    }
  }
  expect(allocations).toBe(4);

  // What is saved is what PEFT saves: masked rows are gone, and the pattern says which.
  await adapter.save(join(scratch, "final"));
  const config = (at: string) =>
    JSON.parse(readFileSync(join(at, "adapter_config.json"), "utf8")) as { rank_pattern: Record<string, boolean[]> };
  const sorted = (pattern: Record<string, boolean[]>) => Object.entries(pattern).sort(([a], [b]) => (a < b ? -1 : 1));
  const wanted = join(directory, "final");
  expect(sorted(config(join(scratch, "final")).rank_pattern)).toEqual(sorted(config(wanted).rank_pattern));
  using ours = Adapter.load(join(scratch, "final"), backbone.config);
  using theirs = Adapter.load(wanted, backbone.config);
  for (const { key } of theirs.specs) expect(off(ours.values(key), theirs.values(key)), key).toBeLessThan(1e-4);
});

test("a trainer that goes on from saved tensors takes the same steps, bit for bit", async () => {
  const { optimizer, steps, learningRate } = expected;
  const options = { ...optimizer, microBatchSize: 4, maxLength: 64, bilevel: false };
  const run = async (trainer: Trainer, from: number, to: number): Promise<void> => {
    for (const { batch } of steps.slice(from, to)) await trainer.step(examplesOf(batch), { lr: learningRate });
  };
  for (const pause of [4, 8]) {
    using straight = Adapter.load(join(directory, "initial"), backbone.config);
    using trainer = new Trainer(backbone, straight, options);
    await run(trainer, 0, steps.length);

    using first = Adapter.load(join(directory, "initial"), backbone.config);
    using before = new Trainer(backbone, first, options);
    await run(before, 0, pause);
    using second = Adapter.load(join(directory, "initial"), backbone.config);
    using after = new Trainer(backbone, second, options);
    for (const key of first.tensors.keys()) second.values(key).set(first.values(key));
    expect([...before.tensors.keys()]).toContain("method.kept");
    for (const [name, tensor] of before.tensors) floats(after.tensors.get(name)).set(floats(tensor));
    for (const [group, updates] of before.updates) after.updates.set(group, updates);
    await run(after, pause, steps.length);
    expect(second.digest).toBe(straight.digest);
  }
});

test("a run whose length is not known is refused", () => {
  using adapter = Adapter.create(methodOf("adalora"), { init_r: 2 }, backbone.config, 1);
  const options = { ...expected.optimizer, microBatchSize: 4, maxLength: 64, bilevel: false };
  expect(() => new Trainer(backbone, adapter, options)).toThrow(/total_step: is missing/);
});
