/** @file `milora train`: a training run from flags, a config file, or both. */
import { existsSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { z } from "zod";
import { InputError, MiloraError } from "../../base/index.ts";
import { methodOf, methods } from "../../methods/index.ts";
import { configureRuntime } from "../../runtime/index.ts";
import {
  countRows,
  PRESETS,
  type PresetName,
  presetSettings,
  readConfigFile,
  readRunConfig,
  resolveTrainingConfig,
  type TrainingConfig,
  type TrainingConfigInput,
  type TrainingResult,
  trainingConfigSchema,
  trainTogether,
  unknownSettings,
} from "../../training/index.ts";
import { collect, deviceFlag, examples, jsonFlag, threadsFlag, weightsFlag } from "../flags.ts";
import { InterruptError, onInterrupt } from "../interrupt.ts";
import { writeReport } from "../report/index.ts";
import { merge, parseSettings, type Settings, withoutNulls } from "../settings.ts";
import { note, oneLine, paint, printJson } from "../terminal.ts";
import { namesOf, RunView, summarise } from "../train-view.ts";

interface Flags {
  readonly model?: string;
  readonly train?: string;
  readonly dev?: string;
  readonly method?: string;
  readonly weights?: string;
  readonly device?: string;
  readonly template?: string;
  readonly config?: string[];
  readonly seeds?: number[];
  readonly preset?: PresetName;
  readonly set?: string[];
  readonly output?: string;
  readonly resume?: boolean;
  readonly tensorboard?: boolean;
  readonly quick?: boolean;
  readonly threads?: number;
  readonly json?: boolean;
}

/** A handful of steps that touch everything: evaluation, checkpoint, the best adapter. */
const QUICK: Settings = { max_steps: 4, batch_size: 4, micro_batch_size: 4, eval_every: 2, checkpoint_every: 2 };

export function configure(command: Command): void {
  examples(
    command
      .option("--model <dir>", "backbone: a Hugging Face directory, a .gguf file, or ORG/NAME once pulled")
      .option("--train <file>", "training rows: JSON, JSONL, CSV or parquet; a directory, a pattern, or hf:org/name")
      .option("--dev <file|share>", "dev rows: a file, or a share of the training rows such as 0.05")
      .option("--method <name>", `one of ${[...methods.keys()].join(", ")}`)
      .addOption(weightsFlag())
      .addOption(deviceFlag())
      .option("--template <name|file>", "how a row becomes a prompt: alpaca, chat, none, or a Jinja file")
      .option(
        "--config <file>",
        "a YAML or JSON file with any of the settings below; flags win over it; several are trained together",
        collect,
      )
      .option("--seeds <list>", "train once for each of these seeds, together, in seed-N below --output", seedList)
      .addOption(
        new Option("--preset <name>", "begin with the paper's recipe, or with one for small models and data")
          .choices(PRESETS)
          .conflicts("resume"),
      )
      .option("--set <key=value>", "one setting, e.g. lr=1e-3, adapter.r=16, max_steps=null; may be repeated", collect)
      .option(
        "--output <dir>",
        "where the run is written: config.json, metrics.jsonl, checkpoints/, best/, report.html",
      )
      .option("--tensorboard", "write what is measured for TensorBoard, too, into tensorboard/ of --output")
      .option("--resume", "go on with the run in --output from its newest checkpoint")
      .option("--quick", "only a few small steps, to see that everything fits together")
      .addOption(threadsFlag())
      .addOption(jsonFlag())
      .action(run),
    [
      "milora train --model assets/tiny-llama --train assets/data/subjects/train.jsonl --method milora --set lr=3e-3 --set adapter.r=16 --output runs/subjects",
      "milora train --config configs/demo-subjects-milora.yaml --set seed=1 --output runs/subjects-1",
      "milora train --resume --output runs/subjects",
      "milora train --config configs/demo-subjects-milora.yaml --seeds 0,1,2 --output runs/seeds",
      "milora train --config configs/demo-subjects-lora.yaml --config configs/demo-subjects-milora.yaml --output runs/both",
    ],
  ).addHelpText("after", settingsHelp());
}

/** Every field of the schema with its default, so that the help cannot fall behind it. */
function settingsHelp(): string {
  const lines: string[] = [];
  const visit = (prefix: string, shape: Readonly<Record<string, z.ZodType>>) => {
    for (const [name, field] of Object.entries(shape)) {
      const inner = field instanceof z.ZodDefault ? (field.unwrap() as z.ZodType) : field;
      if (inner instanceof z.ZodObject) {
        visit(`${prefix}${name}.`, inner.shape as Record<string, z.ZodType>);
        continue;
      }
      const fallback = field instanceof z.ZodDefault ? ` [${JSON.stringify(field.parse(undefined))}]` : "";
      lines.push(`  ${prefix}${name}${fallback}\n      ${wrap(field.description ?? "", 6)}`);
    }
  };
  visit("", trainingConfigSchema.shape);
  return `\nSettings, for --config and --set:\n${lines.join("\n")}`;
}

/** Breaks text into lines of at most 80 characters, indented from the second on. */
function wrap(text: string, indent: number): string {
  const lines = [""];
  for (const word of text.split(" ")) {
    if (lines.at(-1)!.length + word.length + 1 > 80 - indent) lines.push(word);
    else lines[lines.length - 1] += `${lines.at(-1) ? " " : ""}${word}`;
  }
  return lines.join(`\n${" ".repeat(indent)}`);
}

async function run(flags: Flags): Promise<void> {
  if (flags.threads !== undefined) configureRuntime({ threads: flags.threads });
  const configs = await configsOf(flags);
  const names = namesOf(configs.map(({ output_dir }) => output_dir));
  using interrupt = onInterrupt("saving a checkpoint …");
  const view = new RunView(names);
  let results: PromiseSettledResult<TrainingResult>[];
  try {
    results = await trainTogether(configs, {
      signal: interrupt.signal,
      resume: flags.resume ?? false,
      onProgress: (event, run) => view.show(event, run),
    });
  } finally {
    view.close();
  }
  for (const [i, result] of results.entries()) {
    const diverged = result.status === "rejected" && (result.reason as MiloraError).code === "TRAINING_NOT_FINITE";
    if (result.status === "fulfilled" || diverged) report(configs[i]!.output_dir);
  }
  if (flags.json) printResults(configs, results);
  else
    for (const [i, result] of results.entries()) if (result.status === "fulfilled") summarise(result.value, names[i]);
  throwFailures(results, names);
}

/** One run: its result, and nothing where it failed. Several: a list, with the errors of those that failed. */
function printResults(configs: readonly TrainingConfig[], results: readonly PromiseSettledResult<TrainingResult>[]) {
  const several = results.length > 1;
  const list = results.flatMap((result, i): unknown[] => {
    if (result.status === "fulfilled") return [result.value];
    const { code = "FAILED", message } = result.reason as Partial<MiloraError>;
    return several ? [{ directory: configs[i]!.output_dir, error: { code, message } }] : [];
  });
  if (several) printJson(list);
  else for (const result of list) printJson(result);
}

/** What went wrong in runs whose others are done, and what was interrupted. */
function throwFailures(results: readonly PromiseSettledResult<TrainingResult>[], names: readonly string[]): void {
  const several = results.length > 1;
  const reasons = results.flatMap((result) => (result.status === "rejected" ? [result.reason as unknown] : []));
  const foreign = reasons.find((reason) => !(reason instanceof MiloraError));
  if (foreign !== undefined || (!several && reasons.length)) throw foreign ?? reasons[0];
  if (reasons.length) {
    const [{ code, exitCode }] = reasons as [MiloraError];
    const each = results.flatMap((result, i) =>
      result.status === "rejected" ? [`${names[i]}: ${(result.reason as MiloraError).message}`] : [],
    );
    throw new MiloraError(code, `${reasons.length} of ${results.length} runs failed: ${each.join("; ")}`, { exitCode });
  }
  const interrupted = results.flatMap((result, i) => {
    if (result.status === "rejected" || result.value.stoppedBecause !== "interrupted") return [];
    const { steps, totalSteps } = result.value;
    return [`${several ? `${names[i]} ` : ""}after step ${steps} of ${totalSteps}`];
  });
  if (interrupted.length === 0) return;
  throw new InterruptError(`interrupted ${interrupted.join(", ")}; --resume goes on from there`);
}

/** `0,1,2` */
function seedList(text: string): number[] {
  const seeds = text.split(",").map((part) => part.trim());
  if (!seeds.every((seed) => /^\d+$/.test(seed) && Number.isSafeInteger(Number(seed)))) {
    throw new InvalidArgumentError("It must be whole numbers separated by commas, e.g. 0,1,2.");
  }
  return seeds.map(Number);
}

/** One config for each file and seed. What several of them have in common comes from the flags. */
async function configsOf(flags: Flags): Promise<TrainingConfig[]> {
  const { config: files = [], seeds, output, ...rest } = flags;
  const configs: TrainingConfig[] = [];
  for (const file of files.length ? files : [undefined]) {
    // Several configs share --output: each has a directory of its own there.
    const shared = files.length > 1 && output !== undefined && file !== undefined;
    const directory = shared ? join(output, basename(file, extname(file))) : output;
    for (const seed of seeds ?? [undefined]) {
      const settings = await settingsOf({ ...rest, file, seed, output: directory });
      configs.push(resolveTrainingConfig(settings, file ?? "training config"));
    }
  }
  return configs;
}

/** The flags that make one config. */
interface OneRun extends Omit<Flags, "config" | "seeds" | "output"> {
  readonly file: string | undefined;
  readonly seed: number | undefined;
  readonly output: string | undefined;
}

const seedDirectory = (output: string, seed: number): string => join(output, `seed-${seed}`);

/** A run is not worth less because its pictures could not be drawn. */
function report(run: string): void {
  if (!existsSync(join(run, "metrics.jsonl"))) return;
  try {
    writeReport(run);
  } catch (error) {
    if (!(error instanceof MiloraError)) throw error;
    note(`${paint("yellow", "note:", process.stderr)} no report: ${oneLine(error.message)}`);
  }
}

/** Lowest first: --preset or the run to be resumed, --config, --quick, the named flags, --set. */
async function settingsOf(flags: OneRun): Promise<TrainingConfigInput> {
  const { file, seed, output } = flags;
  let settings: Settings = {};
  if (flags.resume && output !== undefined && file === undefined) {
    settings = readRunConfig(seed === undefined ? output : seedDirectory(output, seed));
  }
  if (file !== undefined) settings = merge(settings, readConfigFile(file));
  if (flags.quick) settings = merge(settings, QUICK);
  const data = { train: flags.train, dev: shareOrFile(flags.dev), template: flags.template };
  const named = {
    model: flags.model,
    method: flags.method,
    weights: flags.weights,
    device: flags.device,
    output_dir: output,
    tensorboard: flags.tensorboard,
    data: defined(data),
  };
  settings = merge(merge(settings, defined(named)), parseSettings(flags.set ?? []));
  if (flags.preset) settings = merge(await preset(flags.preset, settings), settings);
  settings = withoutNulls(settings);
  requireNamed(settings);
  if (seed !== undefined) {
    settings = { ...settings, seed, output_dir: seedDirectory(String(settings.output_dir), seed) };
  }
  const { method, adapter } = settings;
  if (typeof method === "string") {
    const unknown = unknownSettings(methodOf(method), (adapter ?? {}) as Settings);
    if (unknown.length) throw new InputError("CONFIG_INVALID", file ?? "training config", unknown);
  }
  return settings as unknown as TrainingConfigInput; // checked by the schema next
}

/** The paper's batch size depends on how many rows there are. */
async function preset(name: PresetName, { method, data }: Settings): Promise<Settings> {
  const known = trainingConfigSchema.shape.data.safeParse(withoutNulls((data ?? {}) as Settings)); // what is wrong is told later
  const rows = name === "paper" && known.success ? await countRows(known.data) : 0;
  return presetSettings(name, String(method), rows) as Settings;
}

function defined(values: Readonly<Record<string, unknown>>): Settings {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
}

function shareOrFile(text: string | undefined): string | number | undefined {
  return text !== undefined && /^(0?\.\d+|0|1)$/.test(text) ? Number(text) : text;
}

/** The schema would call these by their names in the file; at the command line they are flags. */
function requireNamed(settings: Settings): void {
  const data = settings.data as Settings | undefined;
  const needed = {
    "--model": settings.model,
    "--train": data?.train,
    "--method": settings.method,
    "--output": settings.output_dir,
  };
  const missing = Object.entries(needed).filter(([, value]) => value === undefined);
  if (missing.length)
    throw new InputError("FLAG_INVALID", "train", `needs ${missing.map(([flag]) => flag).join(", ")}`);
}
