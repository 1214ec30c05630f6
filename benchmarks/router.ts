/**
 * @file What MiLoRA's router is worth: LoRA, DoRA, MOELoRA and MiLoRA in several settings, trained on equal tokens with
 * equal hyper-parameters, over tasks and seeds; accuracy, dev loss, and what the routes tell of the rows.
 *
 * One run after the other, each added to results/router.jsonl when it is done; those that are there are not run again.
 */
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { join } from "node:path";
import { mean, sum } from "../src/base/index.ts";
import {
  Adapter,
  Backbone,
  configureRuntime,
  Engine,
  exactMatch,
  loadLabelledRows,
  type TrainingEvent,
  train,
} from "../src/index.ts";
import { benchmarksDirectory } from "./lib/cache.ts";
import { versionOf } from "./lib/machine.ts";
import { integer, main, parseOptions } from "./lib/options.ts";
import { table } from "./lib/report.ts";

const USAGE = `npm run router -- [options]     trains on assets/tiny-llama; a run takes one to four minutes
  --seeds A,B     seeds (0,1,2)
  --tasks A,B     tasks (authors,subjects)
  --others        also the settings that the default was chosen from; or name them, or any, with --only
  --steps N       stop every run after N steps, to try the script out; nothing is written`;

interface Variant {
  readonly name: string;
  readonly method: string;
  readonly adapter?: Readonly<Record<string, unknown>>;
}

/** MiLoRA as in the paper, whatever a new adapter's defaults are. */
const LOAD = { balance: "load", load_balance_coefficient: 0.01 };
const PAPER = { lora_alpha: 16, router_input: "raw", anneal: 0, ...LOAD };

const VARIANTS: readonly Variant[] = [
  { name: "LoRA", method: "lora" },
  { name: "DoRA", method: "dora" },
  { name: "MOELoRA", method: "moelora" },
  { name: "MiLoRA paper", method: "milora", adapter: PAPER },
  { name: "MiLoRA default", method: "milora" },
];

/** The default with one thing changed at a time, and LoRA with the default's scaling. */
const OTHERS: readonly Variant[] = [
  { name: "LoRA alpha 7r/3", method: "lora", adapter: { lora_alpha: 37.33 } },
  { name: "LoRA alpha 4r", method: "lora", adapter: { lora_alpha: 64 } },
  { name: "LoRA on o up down", method: "lora", adapter: { target_modules: ["o_proj", "up_proj", "down_proj"] } },
  { name: "LoRA on v o down", method: "lora", adapter: { target_modules: ["v_proj", "o_proj", "down_proj"] } },
  {
    name: "LoRA on gate up down alpha 4r",
    method: "lora",
    adapter: { lora_alpha: 64, target_modules: ["gate_proj", "up_proj", "down_proj"] },
  },
  { name: "MiLoRA hard", method: "milora", adapter: { anneal: 0 } },
  { name: "MiLoRA alpha 7r/3", method: "milora", adapter: { lora_alpha: 37.33 } },
  { name: "MiLoRA no balance", method: "milora", adapter: { load_balance_coefficient: 0 } },
  { name: "MiLoRA load", method: "milora", adapter: LOAD },
  { name: "MiLoRA load alpha 7r/3", method: "milora", adapter: { ...LOAD, lora_alpha: 37.33 } },
  { name: "MiLoRA load alpha 7r/3 hard", method: "milora", adapter: { ...LOAD, lora_alpha: 37.33, anneal: 0 } },
  { name: "MiLoRA load alpha r", method: "milora", adapter: { ...LOAD, lora_alpha: 16 } },
  { name: "MiLoRA k = 5", method: "milora", adapter: { top_k: 5 } },
  { name: "MiLoRA k = 7", method: "milora", adapter: { top_k: 7 } },
];

interface Run {
  readonly name: string;
  readonly task: string;
  readonly seed: number;
  readonly method: string;
  /** Settings of the adapter beyond r = 16, where they are not the method's own. */
  readonly adapter: Readonly<Record<string, unknown>>;
  readonly steps: number;
  readonly tokens: number;
  /** Accuracy of greedy answers on the test rows. */
  readonly accuracy: number;
  readonly devAccuracy: number;
  readonly devLoss: number;
  /** Mean of the last 20 steps. */
  readonly trainLoss: number;
  readonly tunable: number;
  readonly activated: number;
  /** Of the dev rows: distinct routes, and for each layer entropy and information about the label, in bits. */
  readonly routing?: {
    readonly routes: number;
    readonly layerRoutes: readonly number[];
    readonly entropy: readonly number[];
    readonly information: readonly number[];
    readonly informationByChance: readonly number[];
    readonly shares: readonly (readonly number[])[];
  };
  readonly seconds: number;
  readonly machine: string;
  /** Made while the options were being chosen, by the same computation in another form. */
  readonly trial?: true;
}

const ASSETS = join(benchmarksDirectory, "..", "assets");
const RESULTS = join(benchmarksDirectory, "results", "router.jsonl");
const EPOCHS: Readonly<Record<string, number>> = { authors: 2, subjects: 1 }; // as in the demo

const machine = `${cpus()[0]?.model.trim()}, Node ${process.version}, onnxruntime-node ${versionOf("onnxruntime-node")}`;

async function measure(
  backbone: Backbone,
  { name, method, adapter: settings = {} }: Variant,
  task: string,
  seed: number,
  maxSteps: number | undefined,
): Promise<Run> {
  const started = performance.now();
  const output = mkdtempSync(join(tmpdir(), "milora-router-"));
  const steps: Extract<TrainingEvent, { type: "step" }>["metrics"][] = [];
  let evaluation: Extract<TrainingEvent, { type: "evaluation" }>["metrics"] | undefined;
  try {
    const rowsOf = (split: string) => join(ASSETS, "data", task, `${split}.jsonl`);
    const result = await train(
      {
        model: join(ASSETS, "tiny-llama"),
        method,
        adapter: { r: 16, ...settings },
        data: { train: rowsOf("train"), dev: rowsOf("dev"), template: "alpaca" },
        epochs: EPOCHS[task] ?? 1,
        ...(maxSteps === undefined ? {} : { max_steps: maxSteps }),
        batch_size: 8,
        micro_batch_size: 8,
        lr: 3e-3,
        warmup_ratio: 0,
        bilevel: false,
        eval_every: 1_000_000, // once, at the end
        checkpoint_every: 1_000_000,
        seed,
        output_dir: join(output, "run"),
      },
      {
        backbone,
        onProgress(event) {
          if (event.type === "step") steps.push(event.metrics);
          if (event.type === "evaluation") evaluation = event.metrics;
        },
      },
    );
    using adapter = Adapter.load(result.bestDirectory!, backbone.config);
    using engine = Engine.create(backbone);
    const accuracy = async (split: string) => {
      const answers = await exactMatch(engine, backbone.tokenizer, await loadLabelledRows(rowsOf(split)), { adapter });
      return answers.accuracy.value;
    };
    const { tunable, activated } = adapter.method.countParameters(adapter.config, backbone.config);
    const { dev_loss: devLoss, routing } = evaluation!;
    return {
      name,
      task,
      seed,
      method,
      adapter: settings,
      steps: steps.length,
      tokens: sum(steps.map(({ tokens }) => tokens)),
      accuracy: await accuracy("test"),
      devAccuracy: await accuracy("dev"),
      devLoss,
      trainLoss: mean(steps.slice(-20).map(({ lm_loss }) => lm_loss)),
      tunable: sum(Object.values(tunable)),
      activated: sum(Object.values(activated)),
      ...(routing && {
        routing: {
          routes: routing.routes,
          layerRoutes: routing.layer_routes,
          entropy: routing.entropy,
          information: routing.mutual_information,
          informationByChance: routing.mutual_information_by_chance,
          shares: routing.expert_shares,
        },
      }),
      seconds: Math.round((performance.now() - started) / 1000),
      machine,
    };
  } finally {
    rmSync(output, { recursive: true, force: true });
  }
}

/** `mean ± half the range`. */
function spread(values: readonly number[], digits: number): string {
  const half = (Math.max(...values) - Math.min(...values)) / 2;
  return `${mean(values).toFixed(digits)} ± ${half.toFixed(digits)}`;
}

/** The runs of one variant, a row; cells of a task with fewer seeds than others say so by their number. */
function rowOf(name: string, runs: readonly Run[], tasks: readonly string[]): string[] {
  const of = (task: string) => runs.filter((run) => run.name === name && run.task === task);
  const cell = (task: string, value: (run: Run) => number | undefined, digits: number): string => {
    const values = of(task)
      .map(value)
      .filter((x) => x !== undefined);
    return values.length ? spread(values, digits) : "–";
  };
  const { activated } = runs.find((run) => run.name === name)!;
  const perTask = tasks.flatMap((task) => [
    String(of(task).length),
    cell(task, ({ accuracy }) => 100 * accuracy, 1),
    cell(task, ({ devLoss }) => devLoss, 3),
    cell(task, ({ routing }) => routing?.routes, 0),
    cell(task, ({ routing }) => routing && mean(routing.entropy), 2),
    cell(task, ({ routing }) => routing && mean(routing.information), 2),
    cell(task, ({ routing }) => routing && mean(routing.informationByChance), 2),
  ]);
  return [name, activated.toLocaleString("en"), ...perTask];
}

function summary(runs: readonly Run[]): string {
  const names = [...new Set(runs.map(({ name }) => name))];
  return [...new Set(runs.map(({ task }) => task))]
    .map((task) => {
      const head = ["runs", "accuracy %", "dev loss", "routes", "entropy", "information", "by chance"];
      const known = names.filter((name) => runs.some((run) => run.name === name && run.task === task));
      return table(
        [task, "activated", ...head],
        known.map((name) => rowOf(name, runs, [task])),
      );
    })
    .join("\n\n");
}

await main(async () => {
  const options = parseOptions(USAGE, {
    seeds: { type: "string", default: "0,1,2" },
    tasks: { type: "string", default: "authors,subjects" },
    others: { type: "boolean", default: false },
    steps: { type: "string" },
  });
  configureRuntime({ threads: integer(options.threads, "threads") });
  const maxSteps = options.steps === undefined ? undefined : integer(options.steps, "steps");
  const done: Run[] = existsSync(RESULTS)
    ? readFileSync(RESULTS, "utf8")
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line) as Run)
    : [];
  const asked = options.only?.split(","); // whole names: one is often part of another
  const variants = [...VARIANTS, ...OTHERS].filter(
    (variant) => asked?.includes(variant.name) ?? (options.others || VARIANTS.includes(variant)),
  );
  using backbone = await Backbone.load(join(ASSETS, "tiny-llama"));
  const known = new Set(done.map(({ name, task, seed }) => `${name} ${task} ${seed}`));
  for (const seed of String(options.seeds).split(",").map(Number)) {
    for (const task of String(options.tasks).split(",")) {
      for (const variant of variants) {
        if (maxSteps === undefined && known.has(`${variant.name} ${task} ${seed}`)) continue;
        const run = await measure(backbone, variant, task, seed, maxSteps);
        process.stderr.write(`${run.name} ${task} ${seed}: ${(100 * run.accuracy).toFixed(1)} %, ${run.seconds} s\n`);
        done.push(run);
        if (maxSteps === undefined) appendFileSync(RESULTS, `${JSON.stringify(run)}\n`);
      }
    }
  }
  process.stdout.write(`\n${summary(done)}\n`);
});
