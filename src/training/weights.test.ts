/** @file Training over quantised backbones: gradients of the rounded weights, and no second copy of any weight. */
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { exportOnnx, Graph, grad } from "../graph/index.ts";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone, dequantize, quantize, readBackboneConfig, rewriteCheckpoint } from "../models/index.ts";
import { Session } from "../runtime/index.ts";
import { Collated } from "./batches.ts";
import { Accumulated, GradientSession } from "./gradients.ts";
import { buildObjectives } from "./objective.ts";

const model = join(import.meta.dirname, "../../test/fixtures/backbones/llama-untied");
const FORMS = ["float32", "int8", "int4"] as const;
type Form = (typeof FORMS)[number];

const examples = [
  { tokens: Int32Array.of(5, 9, 3, 7, 2, 8, 4), promptLength: 2 },
  { tokens: Int32Array.of(1, 6, 4, 4, 9), promptLength: 1 },
];

/** Loss and gradients of a LoRA adapter at a random point. */
async function pass(directory: string, weights: Form): Promise<{ loss: number; gradients: Float32Array }> {
  using backbone = await Backbone.load(directory, { weights });
  using adapter = Adapter.create(methodOf("lora"), { r: 4 }, backbone.config, 1, backbone);
  const values = adapter.flat("weights")!.data as Float32Array;
  for (let i = 0; i < values.length; i++) values[i]! += Math.sin(i) / 20; // B is zero at first, and A without gradient
  using accumulated = new Accumulated(adapter);
  using session = new GradientSession(backbone, [{ accumulated }]);
  using batch = new Collated(examples, 16);
  const [result] = await session.accumulate([{ batch, inverseTokens: 1 / 9, promptShare: 1 }]);
  return { loss: result!.crossEntropy, gradients: (accumulated.flat.get("weights")!.data as Float32Array).slice() };
}

const norm = (x: Float32Array): number => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));

describe("a quantised backbone", () => {
  it.each(["int8", "int4"] as const)("gives the gradients of the weights it stands for: %s", async (weights) => {
    // The same model in float32, rounded to what the quantised form can say.
    const directory = join(mkdtempSync(join(tmpdir(), "milora-")), "rounded");
    await rewriteCheckpoint(
      model,
      readBackboneConfig(model),
      directory,
      (name, shape, values) => {
        const multiplies = name.endsWith("_proj.weight") || name === "lm_head.weight";
        const [out, inFeatures] = shape as [number, number];
        return multiplies
          ? dequantize(quantize(values(), out, inFeatures, { bits: weights === "int8" ? 8 : 4 }))
          : undefined;
      },
      { dtype: "float32" },
    );
    const [expected, quantized] = [await pass(directory, "float32"), await pass(model, weights)];
    const distance = norm(expected.gradients.map((value, i) => value - quantized.gradients[i]!));
    expect(distance).toBeLessThan(1e-5 * norm(expected.gradients));
    expect(quantized.loss / expected.loss).toBeCloseTo(1, 6);
    const original = await pass(model, "float32");
    expect(Math.abs(original.loss / expected.loss - 1)).toBeGreaterThan(1e-5); // the rounding is seen
  });

  it.each(FORMS)("is shared with the session of forward and backward, not copied into it: %s", async (weights) => {
    using backbone = await Backbone.load(model, { weights });
    using adapter = Adapter.create(methodOf("lora"), { r: 4 }, backbone.config, 1, backbone);
    const graph = new Graph();
    const [objective] = buildObjectives(graph, backbone, [{ adapter }]);
    grad(objective!.crossEntropy, [...objective!.parameters.values()]).forEach((value, i) => {
      graph.output(`gradient.${i}`, value);
    });
    using session = Session.create(exportOnnx(graph), { initializers: backbone.initializers() });
    expect(session.sharesInitializers).toBe(true);
  });
});
