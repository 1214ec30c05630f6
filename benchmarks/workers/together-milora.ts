/** @file One variant of `together`: steps of one adapter, or of several in one process. Arguments: JSON of `TogetherSettings`. */
import { Random } from "../../src/base/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { Backbone } from "../../src/models/index.ts";
import { configureRuntime } from "../../src/runtime/index.ts";
import { JointTrainer, Trainer } from "../../src/training/index.ts";
import { shapeOf } from "../lib/shapes.ts";
import type { TogetherRound, TogetherSettings } from "../lib/together-settings.ts";
import { serve } from "../lib/worker.ts";

const settings = JSON.parse(process.argv[2] ?? "") as TogetherSettings;

await serve(async () => {
  const { batch, length, supervised, threads, method, rank, adapters, joined } = settings;
  configureRuntime({ threads });
  const config = shapeOf(settings.shape);
  const backbone = Backbone.random(config, { weights: settings.weights });
  const trainers = Array.from({ length: adapters }, (_, seed) => {
    const adapter = Adapter.create(methodOf(method), { r: rank }, config, seed, backbone);
    return new Trainer(backbone, adapter, {
      betas: [0.9, 0.999],
      eps: 1e-8,
      weightDecay: 0,
      maxGradNorm: 1,
      microBatchSize: batch,
      maxLength: length,
      bilevel: false,
      passTokens: joined ? 0 : Number.POSITIVE_INFINITY,
    });
  });
  const joint = new JointTrainer(trainers);
  const random = new Random(3);
  const inputs = trainers.map(() => ({
    lr: 1e-4,
    batch: Array.from({ length: batch }, () => ({
      tokens: Int32Array.from({ length }, () => random.integer(config.vocabSize)),
      promptLength: length - supervised,
    })),
  }));

  async function round(): Promise<TogetherRound> {
    const [began, used] = [performance.now(), process.cpuUsage()];
    await joint.step(inputs);
    const { user, system } = process.cpuUsage(used);
    return { stepMs: performance.now() - began, cpuMs: (user + system) / 1000 };
  }
  return { info: { weightBytes: backbone.byteLength }, round };
});
