/** @file Training on the devices that are here, against the CPU: losses, gradients, checkpoints and whole runs. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { Random } from "../base/index.ts";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import { availableDevices, type DeviceName } from "../runtime/index.ts";
import { cutModel, exampleOf, metricsOf, SMALL, shortRuns, writeRows } from "./testing.ts";
import { train } from "./train.ts";
import { Trainer, type TrainerOptions } from "./trainer.ts";

const devices = availableDevices().filter((device) => device !== "cpu");
const backbone = await Backbone.load(join(import.meta.dirname, "../../test/fixtures/backbones/llama-gqa"));
const directory = mkdtempSync(join(tmpdir(), "milora-devices-"));
afterAll(() => {
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

/** Losses and gradient norms of three steps, and the loss after them. */
async function numbersOf(method: string, device: DeviceName, options: Partial<TrainerOptions> = {}): Promise<number[]> {
  const settings = { r: 4, ...SMALL[method] };
  using adapter = Adapter.create(methodOf(method), settings, backbone.config, 1, backbone, { totalSteps: 8 });
  using trainer = new Trainer(backbone, adapter, {
    ...{ betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01, maxGradNorm: 1 },
    ...{ microBatchSize: 2, maxLength: 32, bilevel: true, device, ...options },
  });
  const random = new Random(3);
  const batch = () => Array.from({ length: 3 }, () => exampleOf(random, 6 + random.integer(6)));
  const numbers: number[] = [];
  for (let step = 0; step < 3; step++) {
    const input = { lr: 1e-2, progress: step / 8, activation: { batch: batch(), lr: 1e-4 } };
    const outcome = (await trainer.step(batch(), input))!;
    numbers.push(outcome.losses.loss, outcome.losses.grad_norm);
    if (outcome.activation) numbers.push(outcome.activation.loss);
  }
  numbers.push((await trainer.evaluate(batch()))!.loss);
  return numbers;
}

function expectNear(found: readonly number[], wanted: readonly number[]): void {
  expect(found.length).toBe(wanted.length);
  const worst = Math.max(...wanted.map((x, i) => Math.abs(x - found[i]!) / Math.abs(x)));
  expect(worst).toBeLessThan(1e-3);
}

describe.skipIf(devices.length === 0)("a device other than the CPU (skipped where there is none)", () => {
  describe.each(devices)("%s", (device) => {
    it.each(["lora", "milora", "dora", "adalora", "learned-adapter", "p-tuning-v2"])("%s", async (method) => {
      expectNear(await numbersOf(method, device), await numbersOf(method, "cpu"));
    });

    it("packed rows, and everything computed again in the backward pass", async () => {
      const options = { packing: true, recompute: "all" } as const;
      expectNear(await numbersOf("lora", device, options), await numbersOf("lora", "cpu", options));
    });

    it("runs that are interrupted and go on, with checkpoints and the best adapter", async () => {
      const model = cutModel(directory);
      const rows = Array.from({ length: 12 }, (_, i) => ({ instruction: `Count ${i}.`, output: `${i} and ${i + 1}` }));
      const file = writeRows(join(directory, "rows.jsonl"), rows);
      const runs = shortRuns(directory, { model, method: "lora", data: { train: file, dev: 0.25 }, seed: 0 });
      const short = { batch_size: 2, max_steps: 3, eval_every: 3, device };
      const whole = await train(runs("whole", short));
      await train(runs("cpu", { ...short, device: "cpu" }));
      const signal = new AbortController();
      const stopped = await train(runs("parts", short), {
        signal: signal.signal,
        onProgress: (event) => event.type === "step" && event.metrics.step === 1 && signal.abort(),
      });
      expect(stopped.stoppedBecause).toBe("interrupted");
      await train(runs("parts", short), { resume: true });
      const losses = (name: string): number[] =>
        metricsOf(join(directory, name)).map(({ loss, dev_loss }) => Number(loss ?? dev_loss));
      expectNear(losses("whole"), losses("cpu"));
      expectNear(losses("parts"), losses("whole"));
      using cut = await Backbone.load(model);
      using best = Adapter.load(whole.bestDirectory!, cut.config);
      expect(best.specs.length).toBeGreaterThan(0);
    }, 600_000);
  });
});
