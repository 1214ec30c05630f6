/** @file What the demo does: two tenants, two methods, small numbers for a laptop and smaller ones for tests. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { presetSettings, type TrainingConfigInput } from "../../training/index.ts";

/** The package's assets: the same place from src/cli/demo and dist/cli/demo. */
const ASSETS = fileURLToPath(new URL("../../../assets/", import.meta.url));

export const MODEL = join(ASSETS, "tiny-llama");

export interface Tenant {
  readonly name: string;
  /** Folder of its rows in assets/data. */
  readonly task: "subjects" | "authors";
}

export const TENANTS: readonly Tenant[] = [
  { name: "A", task: "subjects" },
  { name: "B", task: "authors" },
];

export const METHODS = ["lora", "milora"] as const;
export type MethodName = (typeof METHODS)[number];
export const TITLES: Readonly<Record<MethodName | "bare", string>> = { bare: "bare", lora: "LoRA", milora: "MiLoRA" };

/** How much of everything. */
export interface Scale {
  readonly testRows: number | undefined;
  /** Whether the adapters are also evaluated on the dev rows, for the routers' part of their reports. */
  readonly devRows: boolean;
  readonly epochs: Readonly<Record<Tenant["task"], number>>;
  readonly maxSteps: number | undefined;
  readonly batchSize: number;
  /** Tokens of one timed continuation, and how often each is timed. */
  readonly speedTokens: number;
  readonly speedRounds: number;
}

export const FULL: Scale = {
  testRows: undefined,
  devRows: true,
  epochs: { subjects: 1, authors: 2 }, // 240 and 322 steps
  maxSteps: undefined,
  batchSize: presetSettings("small", "milora").batch_size!,
  speedTokens: 128,
  speedRounds: 7,
};

export const QUICK: Scale = {
  ...FULL,
  testRows: 4,
  devRows: false,
  maxSteps: 2,
  batchSize: 4,
  speedTokens: 16,
  speedRounds: 1,
};

export function dataFile(task: Tenant["task"], split: "train" | "dev" | "test"): string {
  return join(ASSETS, "data", task, `${split}.jsonl`);
}

/** One run's folder inside the demo's. */
export function runName(tenant: Tenant, method: MethodName): string {
  return `${tenant.task}-${method}`;
}

/** The same settings for both methods: the preset for small models. */
export function trainingConfig(tenant: Tenant, method: MethodName, scale: Scale, output: string): TrainingConfigInput {
  return {
    ...presetSettings("small", method),
    model: MODEL,
    method,
    data: {
      train: dataFile(tenant.task, "train"),
      dev: scale.devRows ? dataFile(tenant.task, "dev") : 0,
      template: "alpaca",
    },
    epochs: scale.epochs[tenant.task],
    ...(scale.maxSteps === undefined ? {} : { max_steps: scale.maxSteps }),
    batch_size: scale.batchSize,
    micro_batch_size: scale.batchSize,
    eval_every: 1_000_000, // at the end
    checkpoint_every: 1_000_000, // at the end, or when interrupted
    output_dir: join(output, runName(tenant, method)),
  };
}
