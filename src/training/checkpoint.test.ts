/** @file Checkpoints of earlier versions: fields that they do not know count as what was computed then. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { Backbone } from "../models/index.ts";
import type { TrainingConfigInput } from "./config.ts";
import { writeRows } from "./testing.ts";
import { train } from "./train.ts";

const model = join(import.meta.dirname, "../../assets/tiny-llama");
const directory = mkdtempSync(join(tmpdir(), "milora-checkpoint-"));
const backbone = await Backbone.load(model);
afterAll(() => {
  backbone.dispose();
  rmSync(directory, { recursive: true });
});

const rows = ["red", "green", "blue", "white"].map((output, i) => ({ instruction: `Colour of ${i}?`, output }));
const data = writeRows(join(directory, "rows.jsonl"), rows);

const config: TrainingConfigInput = {
  model,
  method: "lora",
  adapter: { r: 2, target_modules: ["q_proj"] },
  data: { train: data, dev: 0 },
  batch_size: 2,
  max_steps: 2,
  output_dir: join(directory, "run"),
};

test("a checkpoint from before a setting existed goes on with its default, and with nothing else", async () => {
  await train({ ...config, max_steps: 2 }, { backbone });
  const path = join(config.output_dir, "checkpoints/step-2/state.json");
  const state = JSON.parse(readFileSync(path, "utf8"));
  for (const field of ["packing", "weights", "adapter.use_rslora", "data.template"]) {
    expect(state.identity).toHaveProperty([field]);
    delete state.identity[field];
  }
  writeFileSync(path, JSON.stringify(state));
  const resumed = (changes: Partial<TrainingConfigInput>) =>
    train({ ...config, ...changes }, { backbone, resume: true });
  await expect(resumed({ packing: true, data: { ...config.data, template: "none" } })).rejects.toMatchObject({
    code: "CHECKPOINT_MISMATCH",
    message: expect.stringMatching(/: packing was false, is true; data.template was "alpaca", is "none"\. |: data/),
  });
  await expect(resumed({ adapter: { ...config.adapter, use_rslora: true } })).rejects.toThrow(
    /adapter\.use_rslora was false, is true/,
  );
  // Not known then either, but without a default: what is set now is a difference.
  delete state.identity.max_steps;
  writeFileSync(path, JSON.stringify(state));
  await expect(resumed({})).rejects.toThrow(/max_steps was not set, is 2/);
  state.identity.max_steps = "2";
  writeFileSync(path, JSON.stringify(state));
  expect(await resumed({})).toMatchObject({ steps: 2, stoppedBecause: "finished" });
});

test("of an adapter's settings the default is what their absence means in its file, not that of a new adapter", async () => {
  const output_dir = join(directory, "milora");
  const fresh = { r: 2, target_modules: ["q_proj", "v_proj"], top_k: 1 };
  await train({ ...config, method: "milora", adapter: { ...fresh, anneal: 0 }, output_dir }, { backbone });
  const { adapter } = JSON.parse(readFileSync(join(output_dir, "config.json"), "utf8"));
  delete adapter.anneal;
  for (const name of ["state.json", "adapter_config.json"]) {
    const path = join(output_dir, "checkpoints/step-2", name);
    const content = JSON.parse(readFileSync(path, "utf8"));
    delete content.anneal;
    delete content.sums;
    if (content.identity) delete content.identity["adapter.anneal"];
    writeFileSync(path, JSON.stringify(content));
  }
  const resumed = (settings: Record<string, unknown>) =>
    train({ ...config, method: "milora", adapter: settings, output_dir }, { backbone, resume: true });
  await expect(resumed(fresh)).rejects.toThrow(/: adapter\.anneal was 0, is 0\.5\. /);
  expect(await resumed(adapter)).toMatchObject({ steps: 2, stoppedBecause: "finished" });
});

test("a file that is not what was written is named, whatever is wrong with it; the checkpoint before still goes on", async () => {
  const output_dir = join(directory, "damaged");
  const input = { ...config, max_steps: 4, checkpoint_every: 2, output_dir };
  await train(input, { backbone });
  const resumed = () => train(input, { backbone, resume: true });
  for (const name of ["adapter_model.safetensors", "optimizer.safetensors", "adapter_config.json"]) {
    const path = join(output_dir, "checkpoints/step-4", name);
    const bytes = readFileSync(path);
    for (const damaged of [
      bytes.with(bytes.length - 5, bytes.at(-5)! ^ 1),
      bytes.subarray(0, -1),
      bytes.subarray(0, 0),
    ]) {
      writeFileSync(path, damaged);
      const invalid = { code: expect.stringMatching(/_INVALID$/), message: expect.stringContaining(name) };
      await expect(resumed()).rejects.toMatchObject(invalid);
    }
    writeFileSync(path, bytes);
  }
  writeFileSync(join(output_dir, "checkpoints/step-4/optimizer.safetensors"), "");
  rmSync(join(output_dir, "checkpoints/step-4"), { recursive: true });
  expect(await resumed()).toMatchObject({ steps: 4, stoppedBecause: "finished" });
});
