/** @file How much of everything: the paper's experiments, the same on the bundled model, and a run through all code in minutes. */
import { fileURLToPath } from "node:url";
import type { DeviceName } from "../../runtime/index.ts";
import { presetSettings, type Preset as Settings, type TrainingConfigInput } from "../../training/index.ts";
import { PAPER_METHODS, PAPER_TASKS } from "./paper.ts";

const asset = (name: string): string => fileURLToPath(new URL(`../../../assets/${name}`, import.meta.url));

export const REPRODUCE_PRESETS = ["paper", "small", "smoke"] as const;
export type ReproducePreset = (typeof REPRODUCE_PRESETS)[number];

export interface Preset {
  readonly name: ReproducePreset;
  readonly model: string;
  /** Further backbones, for table 7. */
  readonly backbones: readonly string[];
  /** Where everything is computed; undefined: the CPU. */
  readonly device: DeviceName | undefined;
  /** Rows of tasks; undefined: what is bundled, else the hub. */
  readonly dataDirectory: string | undefined;
  readonly methods: readonly string[];
  readonly tasks: readonly string[];
  /** Mixed in table 2. */
  readonly mix: readonly string[];
  /** Tuned on in table 3. */
  readonly instructions: readonly string[];
  /** Measured after that: tasks or groups. */
  readonly knowledge: readonly string[];
  /** Whether table 3 has MT-Bench. */
  readonly judged: boolean;
  /** Tasks of table 5, table 7 and figures 3 to 5. */
  readonly studied: readonly string[];
  /** Tasks of figure 2; `mt_bench` is routed by the adapters of table 3. */
  readonly routed: readonly string[];
  /** Data sets of table 6. */
  readonly counted: readonly string[];
  readonly ks: readonly number[];
  readonly balance: readonly number[];
  readonly ranks: readonly number[];
  readonly seeds: number;
  readonly beams: number;
  /** Only the first test rows. */
  readonly limit: number | undefined;
  /** Answers are no longer, whatever the task says. */
  readonly maxNewTokens: number | undefined;
  /** Of a timed continuation, and how often each is timed. */
  readonly speedTokens: number;
  readonly speedRounds: number;
  /** Seeds of one adapter are trained in one go. */
  readonly together: boolean;
  /** Whether dev rows choose the best checkpoint. */
  readonly dev: boolean;
  /**
   * @param rows training rows, which the paper's batch size depends on
   * @param data the tasks they are of
   */
  settings(method: string, rows: number, data: readonly string[]): Settings & Partial<TrainingConfigInput>;
  /** The adapter's settings for a rank. */
  rank(r: number): Readonly<Record<string, unknown>>;
}

const paper: Preset = {
  name: "paper",
  model: "models/llama-2-7b",
  backbones: ["models/llama-2-13b", "models/gemma-2b"],
  device: undefined,
  dataDirectory: undefined,
  methods: PAPER_METHODS,
  tasks: PAPER_TASKS,
  mix: ["arc_easy", "arc_challenge", "boolq", "openbookqa", "piqa"],
  instructions: ["alpaca"],
  knowledge: ["mmlu", "bbh"],
  judged: true,
  studied: ["boolq", "piqa"],
  routed: ["mt_bench", "boolq", "piqa"],
  counted: [
    ...["boolq", "openbookqa", "arc_easy", "arc_challenge", "piqa", "aqua", "gsm8k"],
    ...["alpaca", "mt_bench", "mmlu", "bbh"],
  ],
  ks: [1, 2, 3, 4, 5, 6, 7],
  balance: [0, 1e-3, 1e-2, 1e-1, 1],
  ranks: [8, 16, 32, 64, 128, 256],
  seeds: 5,
  beams: 3,
  limit: undefined,
  maxNewTokens: undefined,
  speedTokens: 256,
  speedRounds: 5,
  together: false,
  dev: true,
  settings: (method, rows) => presetSettings("paper", method, rows),
  rank: (r) => ({ r, lora_alpha: r }),
};

const small: Preset = {
  ...paper,
  name: "small",
  model: asset("tiny-llama"),
  backbones: [],
  dataDirectory: asset("data/samples"),
  tasks: ["subjects", "authors"],
  mix: ["subjects", "authors"],
  instructions: ["subjects", "authors"],
  knowledge: ["mmlu_anatomy", "mmlu_global_facts", "mmlu_high_school_geography", "mmlu_philosophy"],
  judged: false,
  studied: ["subjects"],
  routed: ["subjects", "authors"],
  counted: ["subjects", "authors"],
  ks: [1, 3, 5, 7],
  balance: [0, 1e-2, 1],
  ranks: [8, 16, 64],
  seeds: 3,
  beams: 1,
  maxNewTokens: 64,
  speedTokens: 128,
  speedRounds: 7,
  together: true,
  dev: false,
  settings: (method, _rows, data) => ({
    ...presetSettings("small", method),
    // Reading the authors once is 161 updates, in which hardly any method learns them; subjects are 240, both 401.
    epochs: data.length === 1 && data[0] === "authors" ? 2 : 1,
    eval_every: 1_000_000, // no dev rows: nothing to evaluate
    checkpoint_every: 100,
    keep_checkpoints: 1,
  }),
  rank: (r) => ({ r }),
};

const smoke: Preset = {
  ...small,
  name: "smoke",
  knowledge: ["mmlu_anatomy"],
  ks: [1, 3],
  balance: [0, 1e-2],
  ranks: [8, 16],
  seeds: 2,
  limit: 4,
  maxNewTokens: 8,
  speedTokens: 8,
  speedRounds: 1,
  settings: (method, rows, data) => ({
    ...small.settings(method, rows, data),
    max_steps: 2,
    batch_size: 2,
    micro_batch_size: 2,
  }),
};

export const PRESET_OF: Readonly<Record<ReproducePreset, Preset>> = { paper, small, smoke };
