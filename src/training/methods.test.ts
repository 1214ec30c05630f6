/** @file Whole runs of the methods whose training differs from LoRA's: they learn, resume bit for bit, and save what is used. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { Adapter } from "../methods/index.ts";
import { Backbone } from "../models/index.ts";
import type { TrainingConfigInput } from "./config.ts";
import type { TrainingEvent } from "./events.ts";
import { writeRows } from "./testing.ts";
import { train } from "./train.ts";

const directory = mkdtempSync(join(tmpdir(), "milora-methods-"));
const model = join(import.meta.dirname, "../../assets/tiny-llama");
const backbone = await Backbone.load(model);
afterAll(() => {
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

const colours = ["red", "green", "blue", "white"];
const rows = Array.from({ length: 24 }, (_, i) => ({
  prompt: `What colour has thing ${i}?`,
  completion: colours[i % 4],
}));
const data = writeRows(join(directory, "rows.jsonl"), rows);

/** Small settings, and a rate at which a few steps show. */
const methods = {
  adalora: { adapter: { init_r: 4, target_modules: ["q_proj", "v_proj", "down_proj"] }, lr: 2e-2 },
  dora: { adapter: { r: 4 }, lr: 5e-3 },
  ia3: { adapter: { projection_dim: 16 }, lr: 5e-3 },
  iapt: { adapter: { bottleneck: 16 }, lr: 2e-2 },
  moelora: { adapter: { r: 8 }, lr: 1e-2 },
  // Both find their structure after four steps, between the two interruptions.
  "learned-adapter": { adapter: { bottleneck: 8, search_ratio: 0.4 }, lr: 2e-2 },
  ssp: { adapter: { r: 4, search_ratio: 0.4 }, lr: 2e-2 },
  "p-tuning-v2": { adapter: { num_virtual_tokens: 4, encoder_hidden_size: 16 }, lr: 2e-2 },
};
type Name = keyof typeof methods;
const names = Object.keys(methods) as Name[];

function config(method: Name, name: string, changes: Partial<TrainingConfigInput> = {}): TrainingConfigInput {
  return {
    model,
    method,
    ...methods[method],
    data: { train: data, dev: 4 / 24, template: "none" },
    batch_size: 8,
    micro_batch_size: 5,
    max_steps: 8,
    max_grad_norm: 0.5,
    eval_every: 4,
    checkpoint_every: 3,
    keep_checkpoints: 1,
    seed: 3,
    output_dir: join(directory, `${method}-${name}`),
    ...changes,
  };
}

/** Everything that is left of a run, but for the clock. */
function outcome({ output_dir: path }: TrainingConfigInput): Record<string, string> {
  const last = "checkpoints/step-8";
  const files = [last, "best"].flatMap((at) =>
    ["adapter_config.json", "adapter_model.safetensors"].map((file) => `${at}/${file}`),
  );
  return Object.fromEntries(
    [...files, `${last}/optimizer.safetensors`].map((file) => [
      file,
      readFileSync(join(path, file)).toString("base64"),
    ]),
  );
}

describe.each(names)("%s", (method) => {
  test("learns, goes on bit for bit after interruptions, and saves what it has learned", async () => {
    const straight = config(method, "straight");
    const losses: number[] = [];
    const onProgress = (event: TrainingEvent): void => {
      if (event.type === "step") losses.push(event.metrics.lm_loss);
    };
    const result = await train(straight, { backbone, onProgress });
    expect(result.stoppedBecause).toBe("finished");
    expect(Math.min(...losses.slice(-3))).toBeLessThan(losses[0]! - 0.1);

    const broken = config(method, "broken");
    for (const stop of [2, 5, 8]) {
      const controller = new AbortController();
      await train(broken, {
        backbone,
        resume: stop > 2,
        signal: controller.signal,
        onProgress(event) {
          if (event.type === "step" && event.metrics.step === stop && stop < 8) controller.abort();
        },
      });
    }
    expect(outcome(broken)).toEqual(outcome(straight));

    // `best` is in the form for use; the checkpoint, which may be in a form of its own, gives the same.
    using best = Adapter.load(result.bestDirectory!, backbone.config);
    expect((best.config as { inference_mode?: boolean }).inference_mode ?? true).toBe(true);
    if (result.best!.step === 8) {
      using last = Adapter.load(join(straight.output_dir, "checkpoints/step-8"), backbone.config);
      const again = join(directory, `${method}-again`);
      await last.save(again);
      const read = (path: string) => readFileSync(join(path, "adapter_model.safetensors")).toString("base64");
      expect(read(again)).toBe(read(result.bestDirectory!));
    }
  });
});

test("AdaLoRA's schedule follows from the run, and its ranks reach the target", async () => {
  const input = config("adalora", "schedule", { eval_every: 100, data: { train: data, dev: 0, template: "none" } });
  const { bestDirectory } = await train(input, { backbone });
  using adapter = Adapter.load(bestDirectory!, backbone.config);
  const { total_step, tinit, tfinal, rank_pattern } = adapter.config as Record<string, unknown>;
  expect({ total_step, tinit, tfinal }).toEqual({ total_step: 8, tinit: 1, tfinal: 4 });
  const patterns = Object.values(rank_pattern as Record<string, boolean[]>);
  expect(patterns).toHaveLength(3 * backbone.config.numLayers);
  expect(patterns.flat().filter(Boolean)).toHaveLength(2 * patterns.length); // target_r = 4 / 2
  expect(new Set(patterns.map((kept) => kept.filter(Boolean).length)).size).toBeGreaterThan(1);
});

test("a prefix is taken off the context: no sequence is longer than what is left", async () => {
  const { maxPositions } = backbone.config;
  const long = join(directory, "long.jsonl");
  writeFileSync(long, JSON.stringify({ prompt: "What?", completion: "red ".repeat(2 * maxPositions) }));
  const input = config("p-tuning-v2", "long", {
    data: { train: long, dev: 0, template: "none" },
    max_length: 10 * maxPositions,
    max_steps: 1,
  });
  const warnings: string[] = [];
  let tokens = 0;
  await train(input, {
    backbone,
    onProgress(event) {
      if (event.type === "warning") warnings.push(event.message);
      if (event.type === "step") tokens = event.metrics.tokens;
    },
  });
  expect(warnings.join("\n")).toContain(`sequences end at ${maxPositions - 4}`);
  expect(tokens).toBe(maxPositions - 4);
});
