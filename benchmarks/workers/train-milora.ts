/** @file One variant of `train`: milora's trainer. Arguments: JSON of `TrainSettings`. */
import { Random } from "../../src/base/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { configureRuntime } from "../../src/runtime/index.ts";
import { Trainer } from "../../src/training/index.ts";
import { shapeOf } from "../lib/shapes.ts";
import type { TrainRound, TrainSettings } from "../lib/train-settings.ts";
import { serve } from "../lib/worker.ts";

const settings = JSON.parse(process.argv[2] ?? "") as TrainSettings;

await serve(async () => {
  configureRuntime({ threads: settings.threads });
  const started = performance.now();
  const config = shapeOf(settings.shape);
  const backbone = Backbone.random(config, { weights: settings.weights });
  const adapter = Adapter.create(methodOf(settings.method), settings.options, backbone.config, 1);
  const built = performance.now();
  const trainer = new Trainer(backbone, adapter, {
    betas: [0.9, 0.999],
    eps: 1e-8,
    weightDecay: 0,
    maxGradNorm: 1,
    microBatchSize: settings.batch,
    maxLength: settings.length,
    bilevel: false,
    ...(settings.recompute && { recompute: settings.recompute }),
  });
  const sessionMs = performance.now() - built;
  const random = new Random(3);
  const batch = Array.from({ length: settings.batch }, () => ({
    tokens: Int32Array.from({ length: settings.length }, () => random.integer(config.vocabSize)),
    promptLength: 1,
  }));

  async function round(): Promise<TrainRound> {
    const stepMs: number[] = [];
    let loss = Number.NaN;
    for (let step = 0; step < settings.steps; step++) {
      const before = performance.now();
      const outcome = await trainer.step(batch, { lr: 1e-4 });
      stepMs.push(performance.now() - before);
      loss = outcome?.losses.lm_loss ?? Number.NaN;
    }
    return { stepMs, loss };
  }
  return { info: { backboneMs: built - started, sessionMs, weightBytes: backbone.byteLength }, round };
});
