/** @file `milora model`: what is done to models as a whole: fetching, looking at, and preparing them. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { InputError, sum } from "../../base/index.ts";
import {
  type BackboneOptions,
  isWhole,
  PREPARED,
  preparedFiles,
  prepareModel,
  pulledModel,
  pullModel,
  resolveModel,
  verifyPrepared,
} from "../../models/index.ts";
import { collect, examples, jsonFlag } from "../flags.ts";
import { onInterrupt } from "../interrupt.ts";
import { type ModelInfo, modelInfo } from "../model/info.ts";
import { type Measured, measure } from "../model/measure.ts";
import { type Progress, startProgress } from "../progress.ts";
import { grouped, note, paint, print, printJson, table } from "../terminal.ts";

interface PrepareFlags {
  readonly weights: "float32" | "int8" | "int4";
  readonly blockSize: number;
  readonly calibrate?: string;
  readonly measure?: string | true;
  readonly output?: string;
  readonly json?: boolean;
}

interface PullFlags {
  readonly output?: string;
  readonly include?: string[];
  readonly json?: boolean;
}

const PREPARE = "milora model prepare assets/tiny-llama --weights int4";
const PULL = "milora model pull ORG/NAME";

function blockSize(text: string): number {
  if (!["32", "64", "128"].includes(text)) throw new InvalidArgumentError("Allowed choices are 32, 64, 128.");
  return Number(text);
}

export function configure(command: Command): void {
  examples(command, [PULL, "milora model info assets/tiny-llama --json", PREPARE]);
  examples(
    command
      .command("pull")
      .description("Fetch a model from the Hugging Face hub: config, tokenizer, safetensors.")
      .argument("<name>", "ORG/NAME or ORG/NAME@revision")
      .option("--output <dir>", "where the files go (default: the cache, where --model ORG/NAME finds them)")
      .option("--include <glob>", "weights to fetch instead, may be given several times", collect)
      .addOption(jsonFlag())
      .action(pull),
    [PULL, `${PULL}@v1.0 --output models/name`, `${PULL} --include "*Q4_0.gguf"`],
  );
  examples(
    command
      .command("info")
      .description("Show a model's sizes, files, tokenizer, and the memory that its weights need.")
      .argument("<model>", "a model directory, a .gguf file, or ORG/NAME once pulled")
      .option("--verify", "read all files that a checksum is known of, and compare")
      .addOption(jsonFlag())
      .action(info),
    ["milora model info assets/tiny-llama", "milora model info ORG/NAME --verify --json"],
  );
  examples(
    command
      .command("prepare")
      .description("Store a model's weights as they are held in memory, so that it starts at once.")
      .argument("<model>", "a model directory, a .gguf file, or ORG/NAME once pulled")
      .addOption(new Option("--weights <form>", "the form").choices(["float32", "int8", "int4"]).default("int4"))
      .option("--block-size <n>", "quantised weights that share one scale: 32, 64 or 128", blockSize, 32)
      .option("--calibrate <file>", "a text that quantisation is to be most faithful on; needs --output")
      .option("--measure [file]", "print the perplexity of a text (default: bundled passages) in each form")
      .option("--output <dir>", "write a model directory of its own (default: into the cache)")
      .addOption(jsonFlag())
      .action(prepare),
    [
      PREPARE,
      `${PREPARE} --measure`,
      "milora model prepare assets/tiny-llama --calibrate assets/data/passages.txt --output models/tiny-int4",
    ],
  );
}

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

async function pull(name: string, flags: PullFlags): Promise<void> {
  using interrupt = onInterrupt("stopping; what has arrived is kept …");
  let bar: Progress | undefined;
  let before: number | undefined;
  const started = Date.now();
  try {
    const pulled = await pullModel(name, {
      output: flags.output,
      include: flags.include,
      signal: interrupt.signal,
      onProgress(done, total, file) {
        if (bar === undefined) note(`fetching ${name}: ${megabytes(total - done)} of ${megabytes(total)} …`);
        bar ??= startProgress(name, total);
        before ??= done;
        const rate = (done - before) / 1e6 / Math.max(0.001, (Date.now() - started) / 1000);
        bar.update(done, [file, `${rate.toFixed(1)} MB/s`]);
      },
    });
    bar?.stop();
    const { directory, commit, files } = pulled;
    const bytes = sum(files.map(({ size }) => size));
    if (flags.json) printJson({ model: name, directory, commit, bytes, files: files.map(({ path }) => path) });
    else print(`${files.length} files, ${megabytes(bytes)}, in ${directory}`);
  } finally {
    bar?.stop();
  }
}

/** Paths that were read and are as they should be. @throws InputError listing those that are not */
async function verify(model: string): Promise<string[]> {
  const sound: string[] = [];
  const problems: string[] = [];
  const path = resolveModel(model);
  const own = join(path, PREPARED);
  const prepared = existsSync(own) ? [own] : [...preparedFiles(path).values()];
  for (const file of prepared) {
    try {
      await verifyPrepared(file);
      sound.push(file);
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      problems.push(error.message);
    }
  }
  const pulled = existsSync(model) ? undefined : pulledModel(model);
  for (const file of pulled?.files ?? []) {
    const at = join(pulled!.directory, ...file.path.split("/"));
    if (await isWhole(at, file)) sound.push(at);
    else problems.push(`${at}: is not what the hub has; pull it again`);
  }
  if (problems.length > 0) throw new InputError("CHECKPOINT_INVALID", model, problems);
  return sound;
}

async function info(model: string, { verify: verifying, json }: { verify?: boolean; json?: boolean }): Promise<void> {
  const facts = modelInfo(model);
  const verified = verifying ? await verify(model) : undefined;
  if (json) printJson({ ...facts, ...(verified && { verified }) });
  else show(facts, verified);
}

function show(facts: ModelInfo, verified: readonly string[] | undefined): void {
  const { tokenizer, dtypes } = facts;
  const stored = Object.entries(dtypes).map(([dtype, count]) => `${dtype} ${grouped(count)}`);
  const lines: [string, string][] = [
    ["family", facts.family],
    ["parameters", `${grouped(facts.parameters)}${facts.tied_embeddings ? ", embeddings tied" : ""}`],
    ["layers", `${facts.layers} of width ${facts.hidden_size}, feed-forward ${facts.intermediate_size}`],
    ["attention", `${facts.heads} heads of ${facts.head_dim}, ${facts.kv_heads} of keys and values`],
    ["context", `${grouped(facts.context)} tokens, ${grouped(facts.kv_cache_bytes_per_token)} bytes of KV cache each`],
    ["vocabulary", grouped(facts.vocabulary)],
    ["sites", `${facts.sites.count}: ${Object.keys(facts.sites.modules).join(", ")}`],
    ["stored as", `${stored.join(", ")}; ${megabytes(facts.file_bytes)}`],
    ["tokenizer", tokenizer ? `${grouped(tokenizer.tokens)} tokens, ${tokenizer.chat_template ? "with" : "no"} chat template` : "none: token ids only"], // biome-ignore format: one line
    ["prepared", facts.prepared.join(", ") || "–"],
    ...(facts.commit ? [["commit", facts.commit] as [string, string]] : []),
  ];
  print(`${paint("bold", facts.model)}${facts.path === facts.model ? "" : `  ${paint("dim", facts.path)}`}\n`);
  for (const [name, text] of lines) print(`${paint("dim", name.padEnd(12))}${text}`);
  const rows = Object.entries(facts.memory).map(([form, bytes]) => [form, (bytes / 1e6).toFixed(1)]);
  print(`\n${table(["weights", "MB in memory"], rows)}`);
  if (verified) print(`\n${verified.length} files read, all as they should be`);
}

async function prepare(model: string, flags: PrepareFlags): Promise<void> {
  const { weights, blockSize: size, calibrate, output, json } = flags;
  using interrupt = onInterrupt();
  const bar = calibrate === undefined ? undefined : startProgress("quantising", 1);
  const started = Date.now();
  const prepared = await prepareModel(model, {
    weights,
    blockSize: size,
    output,
    calibrate,
    signal: interrupt.signal,
    onProgress: (share) => bar?.update(share),
  });
  bar?.stop();
  const seconds = (Date.now() - started) / 1000;
  const measured = flags.measure === undefined ? undefined : await compare(model, flags, output);
  const { path, reused, bytes, digest } = prepared;
  if (json) printJson({ model, path, weights, block_size: size, bytes, digest, reused, seconds, measured });
  else {
    print(`${weights}, ${megabytes(bytes)}, ${reused ? "was there already" : `${seconds.toFixed(1)} s`}: ${path}`);
    if (measured) print(`\n${measuredTable(measured)}`);
  }
}

/** float32, int8, int4, and the form just prepared where it is another. */
async function compare(model: string, { blockSize: size, ...flags }: PrepareFlags, output: string | undefined) {
  const forms: { label: string; model: string; options?: BackboneOptions }[] = (
    ["float32", "int8", "int4"] as const
  ).map((weights) => ({ label: weights, model, options: { weights, blockSize: size } }));
  if (output !== undefined) forms.push({ label: `${flags.weights}, as prepared`, model: output });
  const text = typeof flags.measure === "string" ? flags.measure : undefined;
  return measure(forms, text, (label) => note(`measuring ${label} …`));
}

function measuredTable(measured: readonly Measured[]): string {
  const rows = measured.map(({ weights, perplexity, ratio, megabytes: size }) => [
    weights,
    perplexity.toFixed(3),
    `${(100 * (ratio - 1)).toFixed(2)} %`,
    size.toFixed(1),
  ]);
  const title = `perplexity of ${grouped(measured[0]!.tokens)} tokens`;
  return `${title}\n${table(["weights", "perplexity", "change", "MiB"], rows)}`;
}
