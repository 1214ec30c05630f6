/** @file `milora train`: a training run from flags, a config file, or both. */
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { type Command, Option } from "commander";
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
  type TrainingConfigInput,
  type TrainingEvent,
  type TrainingResult,
  train,
  trainingConfigSchema,
  unknownSettings,
} from "../../training/index.ts";
import { collect, examples, jsonFlag, threadsFlag } from "../flags.ts";
import { InterruptError, onInterrupt } from "../interrupt.ts";
import { type Progress, startProgress } from "../progress.ts";
import { writeReport } from "../report/index.ts";
import { merge, parseSettings, type Settings, withoutNulls } from "../settings.ts";
import { duration, grouped, note, oneLine, paint, print, printJson } from "../terminal.ts";

interface Flags {
  readonly model?: string;
  readonly train?: string;
  readonly dev?: string;
  readonly method?: string;
  readonly weights?: string;
  readonly template?: string;
  readonly config?: string;
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
      .option("--model <dir>", "backbone: a directory as Hugging Face saves it")
      .option("--train <file>", "training rows: JSON, JSONL, CSV or parquet; a directory, a pattern, or hf:org/name")
      .option("--dev <file|share>", "dev rows: a file, or a share of the training rows such as 0.05")
      .option("--method <name>", `one of ${[...methods.keys()].join(", ")}`)
      .addOption(new Option("--weights <form>", "how the frozen backbone is held").choices(["float32", "int8", "int4"]))
      .option("--template <name|file>", "how a row becomes a prompt: alpaca, chat, none, or a Jinja file")
      .option("--config <file>", "a YAML or JSON file with any of the settings below; flags win over it")
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
  const config = resolveTrainingConfig(await settingsOf(flags), flags.config ?? "training config");
  using interrupt = onInterrupt("saving a checkpoint …");
  const view = new RunView();
  let result: TrainingResult;
  try {
    result = await train(config, {
      signal: interrupt.signal,
      resume: flags.resume ?? false,
      onProgress: (event) => view.show(event),
    });
  } catch (error) {
    if (error instanceof MiloraError && error.code === "TRAINING_NOT_FINITE") report(config.output_dir);
    throw error;
  } finally {
    view.close();
  }
  report(config.output_dir);
  if (flags.json) printJson(result);
  else summarise(result);
  if (result.stoppedBecause === "interrupted") {
    throw new InterruptError(
      `interrupted after step ${result.steps} of ${result.totalSteps}; --resume goes on from there`,
    );
  }
}

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
async function settingsOf(flags: Flags): Promise<TrainingConfigInput> {
  let settings: Settings = {};
  if (flags.resume && flags.output !== undefined && flags.config === undefined) {
    settings = readRunConfig(flags.output);
  }
  if (flags.config !== undefined) settings = merge(settings, readConfigFile(flags.config));
  if (flags.quick) settings = merge(settings, QUICK);
  const data = { train: flags.train, dev: shareOrFile(flags.dev), template: flags.template };
  const named = {
    model: flags.model,
    method: flags.method,
    weights: flags.weights,
    output_dir: flags.output,
    tensorboard: flags.tensorboard,
    data: defined(data),
  };
  settings = merge(merge(settings, defined(named)), parseSettings(flags.set ?? []));
  if (flags.preset) settings = merge(await preset(flags.preset, settings), settings);
  settings = withoutNulls(settings);
  requireNamed(settings);
  const { method, adapter } = settings;
  if (typeof method === "string") {
    const unknown = unknownSettings(methodOf(method), (adapter ?? {}) as Settings);
    if (unknown.length) throw new InputError("CONFIG_INVALID", flags.config ?? "training config", unknown);
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

/** What a person sees of a run: notes above, one bar below. */
class RunView {
  #progress: Progress | undefined;

  show(event: TrainingEvent): void {
    switch (event.type) {
      case "warning":
        this.#note(`${paint("yellow", "note:", process.stderr)} ${event.message}`);
        break;
      case "start":
        note(
          `${grouped(event.trainExamples)} training and ${grouped(event.devExamples)} dev rows, ` +
            `${grouped(event.trainableParameters)} parameters, ${event.totalSteps - event.firstStep} steps` +
            (event.firstStep > 0 ? ` (from step ${event.firstStep})` : ""),
        );
        this.#progress = startProgress("training", event.totalSteps);
        break;
      case "step": {
        const { step, lm_loss, tokens_per_second } = event.metrics;
        this.#progress?.update(step, [
          `loss ${lm_loss.toFixed(3)}`,
          `${grouped(Math.round(tokens_per_second))} tokens/s`,
        ]);
        break;
      }
      case "evaluation":
        this.#note(
          `step ${event.metrics.step}: dev perplexity ${event.metrics.dev_perplexity.toFixed(4)}${event.metrics.best ? ", the best" : ""}`,
        );
        break;
      case "structure":
        this.#note(
          `step ${event.step}: structure found, ${grouped(event.trainableParameters)} parameters from here on`,
        );
        break;
      case "checkpoint":
        break;
    }
  }

  #note(text: string): void {
    if (this.#progress) this.#progress.note(text);
    else note(text);
  }

  close(): void {
    this.#progress?.stop();
  }
}

function summarise(result: TrainingResult): void {
  const { best, bestDirectory, steps, totalSteps, stoppedBecause, seconds } = result;
  const why = { finished: "finished", early_stopping: "stopped early", interrupted: "interrupted" }[stoppedBecause];
  print(`${why} after ${steps} of ${totalSteps} steps, ${duration(seconds)}`);
  if (best) print(`best dev perplexity ${best.devPerplexity.toFixed(4)} at step ${best.step}`);
  if (bestDirectory) print(`adapter: ${paint("bold", relative(bestDirectory))}`);
  print(`report: ${relative(join(result.directory, "report.html"))}`);
}

function relative(path: string): string {
  const base = `${resolve(".")}/`;
  return resolve(path).startsWith(base) ? resolve(path).slice(base.length) : path;
}
