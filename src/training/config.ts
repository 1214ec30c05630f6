/** @file What a training run is told: every field with its meaning and default, unknown keys refused by name. */
import { createHash } from "node:crypto";
import { z } from "zod";
import { parseWith } from "../base/index.ts";
import { DEVICE_NAMES, type DeviceName } from "../runtime/index.ts";
import { TEMPLATE_NAMES } from "./template.ts";
import { nearest } from "./text.ts";

/** An object that refuses unknown keys and says which known key was probably meant. */
function strict<S extends z.ZodRawShape>(shape: S) {
  const known = Object.keys(shape);
  return z.strictObject(shape, {
    error: (issue) => {
      if (issue.code !== "unrecognized_keys") return undefined;
      return (issue.keys as string[])
        .map((key) => {
          const meant = nearest(key, known);
          return meant === undefined ? `unknown key "${key}"` : `unknown key "${key}", did you mean "${meant}"?`;
        })
        .join("; ");
    },
  });
}

const positive = z.number().positive();
const count = z.int().min(1);
const beta = z.number().min(0).lt(1);

/** A union of which a user sees the problems of the variant that was meant: the one whose outermost type fits. */
function oneOf<const T extends readonly [z.ZodType, ...z.ZodType[]]>(variants: T, expected: string) {
  return z.union(variants, {
    error: (issue) => {
      const branches = (issue as { errors?: readonly (readonly z.core.$ZodIssue[])[] }).errors ?? [];
      const meant = branches.find((issues) =>
        issues.every(({ path, code }) => path.length > 0 || code !== "invalid_type"),
      );
      if (meant === undefined) return `expected ${expected}`;
      return meant.map(({ path, message }) => (path.length ? `${path.join(".")}: ${message}` : message)).join("; ");
    },
  });
}

/** A name, Jinja itself, or a path, which has a dot or a slash; whether there is such a file is seen later. */
const templateSchema = z
  .string()
  .min(1)
  .refine((text) => (TEMPLATE_NAMES as readonly string[]).includes(text) || /\{[{%]|[./\\]/.test(text), {
    error: `not one of ${TEMPLATE_NAMES.join(", ")}, the path of a Jinja file, or Jinja itself`,
  });
const columnsSchema = z.record(z.string(), z.string().min(1));

const sourceShape = {
  path: z.string().min(1).describe("As `data.train` where that is text."),
  name: z.string().min(1).optional().describe("What metrics and messages call it; default its path."),
  template: templateSchema.optional().describe("Instead of `data.template`."),
  columns: columnsSchema.optional().describe("Instead of `data.columns`."),
};
const devSourceSchema = strict(sourceShape);
const sourceSchema = strict({
  ...sourceShape,
  weight: positive
    .optional()
    .describe("Share of its rows in every epoch, relative to the other weights; for all sources or for none."),
});

const text = z.string().min(1);
const listOf = <S extends z.ZodType>(source: S) =>
  z.array(oneOf([text, source], "a path, or an object with a path")).min(1);

const dataSchema = strict({
  train: oneOf([text, listOf(sourceSchema)], "a path, or a list of sources").describe(
    "Training rows: a file (JSON, JSONL, CSV, TSV or parquet, each perhaps gzipped), a directory of them, a pattern such as data/train-*.parquet, or a Hugging Face data set, hf:org/name[@revision][:config][/split]. Or a list of these, to be mixed: each a path, or {path, weight?, name?, template?, columns?}.",
  ),
  dev: oneOf([text, z.number().min(0).lt(1), listOf(devSourceSchema)], "a share, a path, or a list of sources")
    .default(0.05)
    .describe(
      "Dev rows for perplexity, early stopping and the activation steps: as for `train`, without weights; or the share of the training rows (of each source) that is split off, seeded, before training. 0 = none.",
    ),
  columns: columnsSchema
    .optional()
    .describe(
      'Columns that rows take their fields from, where files call them otherwise, e.g. {"instruction": "question", "output": "answers.text.0"}.',
    ),
  template: templateSchema
    .default("alpaca")
    .describe(
      "How a row becomes a prompt: alpaca (Alpaca's two prompts), chat (the model's own chat template), none (the bare text), or a template of your own: a Jinja file, or Jinja itself, with the row's fields as variables.",
    ),
});

/** A training config, each field with its description; `milora config schema` prints it as JSON Schema. */
export const trainingConfigSchema = strict({
  model: z.string().min(1).describe("Directory of the backbone, as Hugging Face saves it."),
  weights: z
    .enum(["float32", "int8", "int4"])
    .optional()
    .describe(
      "How the frozen backbone is held during training; default: float32, or the form in which it was prepared. int8 and int4: blocks of 32 weights share a scale (QLoRA's way); a fraction of the memory, and the gradients are those of the quantised model.",
    ),
  device: z
    .enum(DEVICE_NAMES as readonly [DeviceName, ...DeviceName[]])
    .default("cpu")
    .describe(
      "Where passes and optimizer run, with weights, parameters and moments in its memory: cpu, webgpu or cuda.",
    ),
  method: z.string().min(1).describe("The PEFT method, e.g. lora or milora."),
  adapter: z
    .record(z.string(), z.unknown())
    .default({})
    .describe("The method's own settings, as in adapter_config.json (r, lora_alpha, top_k, …)."),
  data: dataSchema.describe("Where the rows come from and how they are rendered."),
  max_length: z
    .int()
    .min(2)
    .default(768)
    .describe(
      "Longest sequence in tokens. A longer row loses its end; a row whose prompt alone fills it is dropped and counted.",
    ),
  batch_size: count.default(16).describe("Rows for one optimizer step."),
  micro_batch_size: count
    .default(8)
    .describe(
      "Rows that are in memory at once, of similar length; gradients of a batch's micro-batches are accumulated.",
    ),
  activation_checkpointing: z
    .boolean()
    .default(false)
    .describe(
      "Keep one activation a layer and compute the others again in the backward pass: much less memory, each step up to a third slower, the same numbers.",
    ),
  packing: z
    .boolean()
    .default(false)
    .describe(
      "Put several sequences into one row, none of which sees another; micro_batch_size then counts rows. What is computed is the same, but for rounding and how a method's own losses are averaged.",
    ),
  epochs: positive.default(10).describe("Passes over the training rows, at most; may be a fraction."),
  max_steps: count.optional().describe("Optimizer steps, at most; the schedule is planned for the smaller limit."),
  lr: positive.default(1e-4).describe("Peak learning rate."),
  activation_lr: positive
    .optional()
    .describe(
      "Peak learning rate of learned activation functions, or of a search's gates, in the bi-level loop; default: 1e-6, and what the method says for gates.",
    ),
  bilevel: z
    .boolean()
    .default(true)
    .describe(
      "After each step on a training batch, step the learned activation functions (if the method has any) on a dev batch. false: they are trained with everything else.",
    ),
  betas: z.tuple([beta, beta]).default([0.9, 0.999]).describe("AdamW's decay rates of the two moments."),
  eps: positive.default(1e-8).describe("AdamW's epsilon."),
  weight_decay: z.number().min(0).default(0).describe("Decoupled weight decay."),
  max_grad_norm: z
    .number()
    .min(0)
    .default(1)
    .describe("Gradients are scaled down to this global norm; 0 = no clipping."),
  schedule: z.enum(["linear", "constant"]).default("linear").describe("Learning rate after the warm-up."),
  warmup_ratio: z.number().min(0).max(1).default(0.06).describe("Share of all steps in which the rate rises linearly."),
  eval_every: count.default(200).describe("Steps between two dev perplexities; there is also one at the end."),
  patience: z
    .int()
    .min(0)
    .default(10)
    .describe("Stop after this many evaluations in a row without a better dev perplexity; 0 = never."),
  checkpoint_every: count.default(200).describe("Steps between two checkpoints."),
  keep_checkpoints: count.default(2).describe("Newest checkpoints that are kept."),
  seed: z.int().min(0).default(0).describe("Seed of the initial values, the order of the rows and the dev split."),
  tensorboard: z
    .boolean()
    .default(false)
    .describe("Write what is measured for TensorBoard, too: event files in tensorboard/ below the run's directory."),
  output_dir: z
    .string()
    .min(1)
    .describe("Directory of the run: config.json, metrics.jsonl, checkpoints/, best/ are written here."),
});

/** A fully resolved training config. */
export type TrainingConfig = z.infer<typeof trainingConfigSchema>;
/** What a user writes: fields with a default may be left out. */
export type TrainingConfigInput = z.input<typeof trainingConfigSchema>;

/** Fills the defaults. Throws `InputError` (CONFIG_INVALID) with every problem; `where` names the origin. */
export function resolveTrainingConfig(input: unknown, where = "training config"): TrainingConfig {
  return parseWith(trainingConfigSchema, input, where);
}

/**
 * Fields that may change between a checkpoint and its resumption: they do not touch what is computed. The paths are
 * among them because the content behind them is compared by digest.
 */
const FREE_FIELDS = new Set([
  "output_dir",
  "tensorboard",
  "activation_checkpointing",
  "checkpoint_every",
  "keep_checkpoints",
  "model",
  "adapter.base_model_name_or_path",
  "data.train",
  "data.dev",
]);

/** Every leaf of the config that decides what a run computes, by its dotted path. */
export function decisiveFields(config: TrainingConfig): Map<string, string> {
  const fields = new Map<string, string>();
  const visit = (path: string, value: unknown): void => {
    if (FREE_FIELDS.has(path) && !(path === "data.dev" && typeof value === "number")) return;
    if (value !== null && typeof value === "object" && !Array.isArray(value)) {
      for (const key of Object.keys(value).sort()) {
        visit(path === "" ? key : `${path}.${key}`, (value as Record<string, unknown>)[key]);
      }
    } else if (value !== undefined) fields.set(path, JSON.stringify(value));
  };
  visit("", config);
  return fields;
}

/** sha256 of what decides the run's course. */
export function configDigest(fields: ReadonlyMap<string, string>): string {
  const hash = createHash("sha256");
  for (const [path, value] of [...fields].sort(([a], [b]) => (a < b ? -1 : 1))) hash.update(`${path}=${value}\n`);
  return hash.digest("hex");
}

/**
 * What every decisive field of a config is where nothing is said of it: what a run computed before the field existed.
 * @param adapter the same for the adapter's own fields
 */
export function defaultFields(config: TrainingConfig, adapter: unknown): Map<string, string> {
  const { model, method, output_dir, data } = config;
  const bare = resolveTrainingConfig({
    ...{ model, method, output_dir, data: { train: data.train }, adapter },
    weights: "float32",
  });
  return decisiveFields(bare);
}

/**
 * What differs between two runs, one line a field.
 * @param defaults the values of fields that `then` does not know
 */
export function configDifferences(
  then: ReadonlyMap<string, string>,
  now: ReadonlyMap<string, string>,
  defaults: ReadonlyMap<string, string> = new Map(),
): string[] {
  const before = (path: string) => then.get(path) ?? defaults.get(path);
  return [...new Set([...then.keys(), ...now.keys()])]
    .filter((path) => before(path) !== now.get(path))
    .map((path) => `${path} was ${before(path) ?? "not set"}, is ${now.get(path) ?? "not set"}`);
}
