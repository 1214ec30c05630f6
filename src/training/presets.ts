/** @file Named sets of settings: the paper's recipe to the letter, and one for models and data as small as the demo's. */
import type { TrainingConfigInput } from "./config.ts";

export const PRESETS = ["paper", "small"] as const;
export type PresetName = (typeof PRESETS)[number];

export type Preset = Omit<Partial<TrainingConfigInput>, "model" | "method" | "data" | "output_dir"> & {
  readonly adapter: Record<string, unknown>;
};

type Adapters = Readonly<Record<string, Readonly<Record<string, unknown>>>>;

const PAPER_MILORA = {
  r: 32,
  lora_alpha: 32,
  top_k: 3,
  gate: "straight_through",
  pooler: "self_attention",
  activation: "rational",
  load_balance_coefficient: 0.01,
  balance: "load",
  router_input: "raw",
  anneal: 0,
};

/**
 * Section 4 and appendices of Zhang et al. 2024 (arXiv 2410.18035): the settings for LLaMA-2 7B. The modules are the
 * methods' defaults, which are the paper's on LLaMA, and on other families those that hold them.
 */
const PAPER_ADAPTERS: Adapters = {
  adalora: { init_r: 64, target_r: 32, lora_alpha: 64 },
  bitfit: { projection_dim: 64 },
  dora: { r: 32, lora_alpha: 32 },
  ia3: { feedforward_modules: [], projection_dim: 128 },
  iapt: { num_virtual_tokens: 4, bottleneck: 320 },
  "learned-adapter": { bottleneck: 160 },
  lora: { r: 32, lora_alpha: 32 },
  midora: PAPER_MILORA,
  milora: PAPER_MILORA,
  moelora: {
    r: 32,
    lora_alpha: 32,
    num_experts: 8,
    top_k: 4,
    load_balance_coefficient: 0.01,
  },
  "p-tuning-v2": { num_virtual_tokens: 16, encoder_hidden_size: 640, prefix_projection: true },
  "parallel-adapter": { bottleneck: 160 },
  ssp: {}, // the paper gives its budget of parameters only, which its own defaults meet
};

const SMALL_ADAPTERS: Adapters = {
  adalora: { init_r: 32 },
  bitfit: { projection_dim: 16 },
  dora: { r: 16 },
  ia3: { projection_dim: 32 },
  iapt: { num_virtual_tokens: 4, bottleneck: 64 },
  "learned-adapter": { bottleneck: 32 },
  lora: { r: 16 },
  midora: { r: 16 },
  milora: { r: 16 },
  moelora: { r: 16 },
  "p-tuning-v2": { num_virtual_tokens: 16, encoder_hidden_size: 64 },
  "parallel-adapter": { bottleneck: 32 },
  ssp: { r: 32 },
};

/** From this many training rows on the paper's batches are of 128 rows instead of 16. */
const MANY_ROWS = 10_000;

/**
 * The settings of a preset. The paper's batch size follows the number of training rows.
 * @param rows training rows, where they are known
 */
export function presetSettings(name: PresetName, method: string, rows = 0): Preset {
  if (name === "small") {
    return {
      adapter: { ...SMALL_ADAPTERS[method] },
      epochs: 1,
      batch_size: 8, // with few rows many small steps teach more than few large ones
      micro_batch_size: 8,
      lr: 3e-3, // for a model of some million parameters, far above the paper's for 7 B
      warmup_ratio: 0,
      bilevel: false,
    };
  }
  return {
    adapter: { ...PAPER_ADAPTERS[method] },
    max_length: 768,
    epochs: 10,
    batch_size: rows >= MANY_ROWS ? 128 : 16,
    lr: 1e-4,
    ...(method === "milora" || method === "midora" ? { bilevel: true, activation_lr: 1e-6 } : {}),
    schedule: "linear",
    warmup_ratio: 0.06,
    eval_every: 200,
    patience: 10,
  };
}
