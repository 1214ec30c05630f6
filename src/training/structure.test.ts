/** @file Runs whose adapter finds its structure on the way: what of the search counts, and what begins anew after it. */
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { Adapter, methodOf } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import type { TrainingConfigInput } from "./config.ts";
import type { Example } from "./data.ts";
import type { TrainingEvent } from "./events.ts";
import { writeRows } from "./testing.ts";
import { train } from "./train.ts";
import { Trainer } from "./trainer.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-structure-"));
const model = join(import.meta.dirname, "../../assets/tiny-llama");
const backbone = await Backbone.load(model);
afterAll(() => {
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

const rows = Array.from({ length: 16 }, (_, i) => ({ prompt: `Thing ${i} is`, completion: i % 2 ? "odd" : "even" }));
const data = writeRows(join(directory, "rows.jsonl"), rows);

const config = (name: string, changes: Partial<TrainingConfigInput> = {}): TrainingConfigInput => ({
  model,
  method: "ssp",
  adapter: { r: 2, search_ratio: 0.5, target_modules: ["q_proj", "v_proj"] },
  data: { train: data, dev: 4 / 16, template: "none" },
  batch_size: 4,
  max_steps: 8,
  lr: 1e-2,
  warmup_ratio: 0.5,
  eval_every: 1,
  output_dir: join(directory, name),
  ...changes,
});

test("evaluations of the search are neither the best nor a reason to stop; the rate warms up again", async () => {
  const events: TrainingEvent[] = [];
  const best = join(directory, "run/best");
  const input = config("run", { patience: 1, activation_lr: 1e-9 });
  const result = await train(input, {
    backbone,
    onProgress(event) {
      events.push(event);
      if (event.type === "evaluation" && event.metrics.step < 4) expect(existsSync(best)).toBe(false);
    },
  });
  const structure = events.filter((event) => event.type === "structure");
  expect(structure).toMatchObject([{ step: 4 }]);
  const evaluations = events.flatMap((event) => (event.type === "evaluation" ? [event.metrics] : []));
  expect(evaluations.slice(0, 3).map(({ step, best }) => ({ step, best }))).toEqual([
    { step: 1, best: false },
    { step: 2, best: false },
    { step: 3, best: false },
  ]);
  expect(result.best!.step).toBeGreaterThanOrEqual(4);
  using adapter = Adapter.load(result.bestDirectory!, backbone.config, { allowIdentity: true });
  const size = adapter.specs.reduce((total, { shape }) => total + shape.reduce((a, b) => a * b), 0);
  expect(structure[0]).toMatchObject({ trainableParameters: size });
  const rates = events.flatMap((event) => (event.type === "step" ? [event.metrics.lr / 1e-2] : []));
  expect(rates.slice(0, 4)).toEqual([0, 0.25, 0.5, 0.75]); // of 8 steps, 4 of them warm-up
  expect(rates.slice(4, 7)).toEqual([0, 0.5, 1].slice(0, rates.length - 4)); // of 4 steps, 2 of them warm-up
});

test("the method's learning rate of gates holds unless the config has one", async () => {
  const resolved = async (name: string, changes: Partial<TrainingConfigInput>) => {
    const { directory: path } = await train(config(name, { max_steps: 1, eval_every: 9, ...changes }), { backbone });
    return (JSON.parse(readFileSync(join(path, "config.json"), "utf8")) as { activation_lr: number }).activation_lr;
  };
  expect(await resolved("default", {})).toBe(1e-2);
  expect(await resolved("given", { activation_lr: 0.5 })).toBe(0.5);
  expect(await resolved("lora", { method: "lora", adapter: { r: 1 } })).toBe(1e-6);
});

test("noise is drawn anew for each update, from the seed; evaluations have none", async () => {
  const examples: Example[] = [{ tokens: Int32Array.of(1, 5, 9, 20, 7), promptLength: 2 }];
  const losses = async (seed: number): Promise<number[]> => {
    using adapter = Adapter.create(methodOf("ssp"), { r: 2, target_modules: ["q_proj"] }, backbone.config, 1);
    for (const { key } of adapter.specs) adapter.values(key).set(adapter.values(key).map((_, i) => Math.sin(i) / 20));
    const options = { betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0, maxGradNorm: 1, bilevel: false } as const;
    using trainer = new Trainer(backbone, adapter, { ...options, seed, microBatchSize: 1, maxLength: 16 });
    const step = async () => (await trainer.step(examples, { lr: 0 }))!.losses.lm_loss;
    const evaluate = async () => (await trainer.evaluate(examples))!.loss;
    return [await step(), await step(), await evaluate(), await evaluate()];
  };
  const [first, second, evaluation, again] = await losses(1);
  expect(second).not.toBe(first);
  expect(again).toBe(evaluation);
  expect(await losses(1)).toEqual([first, second, evaluation, again]);
  expect((await losses(2)).slice(0, 2)).not.toContain(first);
  expect((await losses(2))[2]).toBe(evaluation);
});
