/** @file Gradients and losses against PyTorch (test/fixtures/lora, test/fixtures/milora), whole and in micro-batches. */
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { readJson } from "../base/index.ts";
import { Adapter } from "../methods/index.ts";
import { Backbone, readSafetensors } from "../models/index.ts";
import { Collated } from "./batches.ts";
import type { Example } from "./data.ts";
import { Accumulated, addActive, GradientSession, shares } from "./gradients.ts";

const fixtures = join(import.meta.dirname, "../../test/fixtures");
const numbers = z.array(z.array(z.number()));
const expectedSchema = z.looseObject({
  backbone: z.string(),
  sequences: z.array(z.looseObject({ routes: numbers.optional() })),
  training: z.looseObject({
    tokens: numbers,
    promptLengths: z.array(z.number()),
    lengths: z.array(z.number()),
    supervisedTokens: z.number(),
    loss: z.number(),
    crossEntropy: z.number().optional(),
    loadBalanceLoss: z.number().optional(),
  }),
});

const backbone = await Backbone.load(join(fixtures, "backbones/llama-gqa"));
afterAll(() => backbone.dispose());

function load(name: string) {
  const directory = join(fixtures, name);
  const { training, sequences } = readJson(join(directory, "expected.json"), expectedSchema);
  const examples: Example[] = training.tokens.map((row, b) => ({
    tokens: Int32Array.from(row.slice(0, training.lengths[b])),
    promptLength: training.promptLengths[b]!,
  }));
  return { directory, training, sequences, examples };
}

/** Largest error of all gradients, relative to the largest gradient of the same tensor group. */
function gradientError({ flat, adapter }: Accumulated, directory: string): number {
  const { tensors } = readSafetensors(join(directory, "gradients.safetensors"));
  let worst = 0;
  for (const { key, group, shape } of adapter.specs) {
    const expected = tensors.get(key)!;
    expect(expected.shape).toEqual(shape);
    const wanted = expected.data as Float32Array;
    const actual = (flat.get(group)!.data as Float32Array).subarray(adapter.offsets(group).get(key)!);
    const scale = Math.max(...wanted.map(Math.abs), 1e-4);
    for (const [i, x] of wanted.entries()) worst = Math.max(worst, Math.abs(x - actual[i]!) / scale);
  }
  return worst;
}

describe("GradientSession", () => {
  for (const microBatch of [8, 1]) {
    it(`gives PEFT's gradients of LoRA on all modules, ${microBatch === 1 ? "one sequence at a time" : "at once"}`, async () => {
      const { directory, training, examples } = load("lora/all-modules");
      using adapter = Adapter.load(directory, backbone.config);
      using accumulated = new Accumulated(adapter);
      using session = new GradientSession(backbone, [{ accumulated }]);
      for (let pass = 0; pass < 2; pass++) {
        accumulated.clear();
        let total = 0;
        for (let start = 0; start < examples.length; start += microBatch) {
          const part = examples.slice(start, start + microBatch);
          using batch = new Collated(part, 64);
          const promptShare = part.length / examples.length;
          const inverseTokens = 1 / training.supervisedTokens;
          const [result] = await session.accumulate([{ batch, inverseTokens, promptShare }]);
          total += result!.crossEntropy;
          expect(result!.active).toBeUndefined();
        }
        expect(total / training.supervisedTokens).toBeCloseTo(training.loss, 5);
        expect(gradientError(accumulated, directory)).toBeLessThan(1e-3);
      }
    });
  }

  for (const name of ["default", "k1", "k7", "subset", "gate-renormalized", "activation-per-layer", "pooler-last"]) {
    it(`gives the gradients, losses and routes of MiLoRA (${name})`, async () => {
      const { directory, training, sequences, examples } = load(`milora/${name}`);
      using adapter = Adapter.load(directory, backbone.config);
      using accumulated = new Accumulated(adapter);
      using session = new GradientSession(backbone, [{ accumulated }]);
      using batch = new Collated(examples, 64);
      const inverseTokens = 1 / training.supervisedTokens;
      const [result] = await session.accumulate([{ batch, inverseTokens, promptShare: 1 }]);
      expect(result!.crossEntropy / training.supervisedTokens).toBeCloseTo(training.crossEntropy!, 5);
      expect(result!.auxiliary.get("load_balance")).toBeCloseTo(0.01 * training.loadBalanceLoss!, 6);
      expect(gradientError(accumulated, directory)).toBeLessThan(1e-3);
      const counted = result!.active!.map((layer) => layer.map(() => 0));
      for (const { routes } of sequences) {
        for (const [layer, route] of routes!.entries()) for (const expert of route) counted[layer]![expert]!++;
      }
      expect(result!.active).toEqual(counted);
    });
  }
});

describe("shares", () => {
  it("sums counts over passes and gives each layer's shares", () => {
    const pass = (active: number[][]) => ({ crossEntropy: 0, auxiliary: new Map(), active });
    const active = addActive([pass([[1, 0, 3]]), pass([[1, 2, 1]])]);
    expect(active).toEqual([[2, 2, 4]]);
    expect(shares(active!)).toEqual([[0.25, 0.25, 0.5]]);
    expect(shares([[0, 0]])).toEqual([[0, 0]]);
  });
});
