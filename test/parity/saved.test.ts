/** @file Files that we save for PEFT: test/fixtures/saved, whose numbers `methods.test.ts` checks come from PEFT itself. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Random } from "../../src/base/index.ts";
import { Adapter, methodOf } from "../../src/methods/index.ts";
import { Backbone, readSafetensors } from "../../src/models/index.ts";
import { distance, FIXTURES } from "./support.ts";

interface Case {
  readonly name: string;
  readonly method: string;
  readonly options: Readonly<Record<string, unknown>>;
  /** A training run's length. */
  readonly steps?: number;
}

const cases: readonly Case[] = [
  { name: "lora", method: "lora", options: { r: 3, lora_alpha: 6 } },
  { name: "dora", method: "dora", options: { r: 3, use_rslora: true, rank_pattern: { k_proj: 2 } } },
  { name: "adalora", method: "adalora", options: { init_r: 4, lora_alpha: 6 }, steps: 100 },
  { name: "ia3-projected", method: "ia3", options: { projection_dim: 5 } },
  {
    name: "ia3",
    method: "ia3",
    options: {
      projection_dim: null,
      target_modules: ["k_proj", "v_proj", "down_proj"],
      feedforward_modules: ["down_proj"],
    },
  },
  {
    name: "p-tuning-v2-projected",
    method: "p-tuning-v2",
    options: { num_virtual_tokens: 4, encoder_hidden_size: 6 },
  },
  { name: "p-tuning-v2", method: "p-tuning-v2", options: { num_virtual_tokens: 3, prefix_projection: false } },
];

const directory = mkdtempSync(join(tmpdir(), "milora-saved-"));
let backbone: Backbone;
beforeAll(async () => {
  backbone = await Backbone.load(join(FIXTURES, "backbones/llama-gqa"));
});
afterAll(() => {
  backbone?.dispose();
  rmSync(directory, { recursive: true });
});

/** A new adapter, moved away from where it starts; of AdaLoRA's rows some are masked, all of one module. */
function make({ method, options, steps }: Case): Adapter {
  const run = steps === undefined ? undefined : { totalSteps: steps };
  const settings = { base_model_name_or_path: "llama-gqa", ...options };
  const adapter = Adapter.create(methodOf(method), settings, backbone.config, 7, backbone, run);
  const random = new Random(8);
  for (const { key } of adapter.specs) {
    const values = adapter.values(key);
    for (let i = 0; i < values.length; i++) values[i]! += 0.2 * random.normal();
    if (!key.endsWith("lora_E")) continue;
    if (key.includes("layers.1.mlp.up_proj")) values.fill(0);
    values[2] = 0;
  }
  return adapter;
}

describe.each(cases)("$name", (one) => {
  const path = join(directory, one.name);
  // MILORA_WRITE_SAVED=1 makes the fixtures anew; test/reference/read_back.py must follow.
  const kept = join(FIXTURES, "saved", one.name);

  test("is saved as it was when PEFT read it", async () => {
    using adapter = make(one);
    await adapter.save(process.env.MILORA_WRITE_SAVED ? kept : path);
    if (process.env.MILORA_WRITE_SAVED) await adapter.save(path);
    const config = (from: string) => readFileSync(join(from, "adapter_config.json"), "utf8");
    expect(config(path)).toBe(config(kept));
    const tensors = (from: string) => readSafetensors(join(from, "adapter_model.safetensors")).tensors;
    const wanted = tensors(kept);
    const found = tensors(path);
    expect([...found.keys()].sort()).toEqual([...wanted.keys()].sort());
    for (const [key, tensor] of wanted) {
      expect(found.get(key)!.shape).toEqual(tensor.shape);
      // Projections are computed; another processor may round them otherwise.
      expect(distance(found.get(key)!.data as Float32Array, tensor.data as Float32Array)).toBeLessThan(1e-5);
    }
  });

  test("is the same, byte for byte, when it is loaded and saved again", async () => {
    using adapter = make(one);
    await adapter.save(path);
    using loaded = Adapter.load(path, backbone.config);
    expect(loaded.method.name).toBe(one.method);
    const again = `${path}-again`;
    await loaded.save(again);
    for (const file of ["adapter_config.json", "adapter_model.safetensors"]) {
      expect(readFileSync(join(again, file)).equals(readFileSync(join(path, file)))).toBe(true);
    }
  });

  test("a checkpoint keeps the form of training", () => {
    using adapter = make(one);
    const checkpoint = mkdtempSync(join(directory, "checkpoint-"));
    adapter.saveInto(checkpoint);
    using loaded = Adapter.load(checkpoint, backbone.config);
    expect(loaded.digest).toBe(adapter.digest);
  });
});
