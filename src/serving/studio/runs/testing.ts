/** @file For tests: directories of runs that are longer than anybody would train for a test, and real ones of a few steps. */
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { FastifyInstance } from "fastify";
import type { EvaluationMetrics, StepMetrics, TrainingConfigInput } from "../../../training/index.ts";
import { httpLimitsSchema } from "../../http/config.ts";
import { newApp, prepareError } from "../../http/fastify.ts";
import type { RunSummary } from "../types.ts";
import { RunLibrary, runRoutes } from "./index.ts";

const EXPERTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/** A step's line, its loss `1 / step` with a dent at every thousandth. */
export function stepLine(step: number, changes: Partial<StepMetrics> = {}): StepMetrics {
  const loss = step % 1000 === 500 ? 9 : 1 + 1 / step;
  return {
    ...{ type: "step", step, epoch: step / 100, loss: loss + 0.02, lm_loss: loss, auxiliary: { load_balance: 0.02 } },
    ...{ lr: 1e-4, grad_norm: 0.5 + 0.25 * Math.sin(step), tokens: 512, supervised_tokens: 64 },
    ...{ seconds: 0.5, tokens_per_second: 1024 + 0.001 * step },
    ...changes,
  };
}

export function evaluationLine(step: number, best: boolean): EvaluationMetrics {
  return { type: "evaluation", step, epoch: step / 100, dev_loss: 1, dev_perplexity: 2 + 1 / step, best, seconds: 1 };
}

/** Config and metrics of a run of `steps` steps with an evaluation after every thousandth, without any training. */
export function writeLongRun(directory: string, steps: number, { layers = 0, config = {} } = {}): string {
  mkdirSync(directory, { recursive: true });
  const adapter = { r: 8, top_k: 3, target_modules: EXPERTS };
  const settings = { method: layers ? "milora" : "lora", model: "assets/tiny-llama", adapter, epochs: 10, ...config };
  writeFileSync(join(directory, "config.json"), JSON.stringify(settings));
  const shares = Array.from({ length: layers }, () => EXPERTS.map(() => Number((1 / EXPERTS.length).toFixed(4))));
  const file = openSync(join(directory, "metrics.jsonl"), "w");
  let text: string[] = [];
  for (let step = 1; step <= steps; step++) {
    text.push(JSON.stringify(stepLine(step, layers ? { expert_shares: shares } : {})));
    if (step % 1000 === 0) text.push(JSON.stringify(evaluationLine(step, step === 1000)));
    if (text.length < 5000 && step < steps) continue;
    writeSync(file, `${text.join("\n")}\n`);
    text = [];
  }
  closeSync(file);
  return directory;
}

/** A config for real training of the bundled backbone: seconds for a few steps. */
export function shortTraining(output_dir: string, changes: Partial<TrainingConfigInput> = {}): TrainingConfigInput {
  return {
    ...{ model: "assets/tiny-llama", method: "milora", adapter: { r: 4 }, output_dir },
    data: { train: "assets/data/subjects/test.jsonl", dev: 0.03 },
    ...{
      batch_size: 4,
      micro_batch_size: 4,
      max_steps: 4,
      eval_every: 2,
      checkpoint_every: 2,
      max_length: 384,
      lr: 5e-3,
    },
    ...changes,
  };
}

export interface Reply {
  readonly status: number;
  // biome-ignore lint/suspicious/noExplicitAny: each test says what it expects
  readonly body: any;
  readonly etag: string;
}

export type Ask = (path: string, headers?: Record<string, string>) => Promise<Reply>;

/** The routes over folders, without anything else of a server. */
export class RunApps implements AsyncDisposable {
  readonly #apps: FastifyInstance[] = [];

  async serve(...folders: string[]): Promise<Ask> {
    const app = await newApp(httpLimitsSchema.parse({}));
    app.addHook("onRequest", async (request) => {
      request.facts = {};
    });
    app.setErrorHandler((error, request, reply) => reply.send(prepareError(error, request, reply).body));
    await app.register(async (scope) => runRoutes(scope, new RunLibrary(folders)));
    this.#apps.push(app);
    return async (path, headers = {}) => {
      const { statusCode, body, headers: sent } = await app.inject({ url: `/studio/v1${path}`, headers });
      return { status: statusCode, body: body === "" ? undefined : JSON.parse(body), etag: String(sent.etag) };
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const app of this.#apps) await app.close();
  }
}

/** Asks until all of the run has been read. */
export async function whole<T extends { readonly indexed: number }>(ask: Ask, path: string): Promise<T> {
  for (;;) {
    const { status, body } = await ask(path);
    if (status !== 200) throw new Error(`${path}: ${JSON.stringify(body)}`);
    if (body.indexed === 1) return body as T;
  }
}

/** The list, once all runs have been read. */
export async function listed(ask: Ask): Promise<RunSummary[]> {
  for (;;) {
    const { runs } = (await ask("/runs")).body as { runs: RunSummary[] };
    if (runs.every(({ indexed }) => indexed === 1)) return runs;
  }
}

export const lineOf = (value: object): string => `${JSON.stringify(value)}\n`;

/** A run of so many steps in a folder of its own. */
export function longRun(
  directory: string,
  name: string,
  steps: number,
  options: Parameters<typeof writeLongRun>[2] = {},
) {
  const folder = join(directory, name);
  const run = writeLongRun(join(folder, "run"), steps, options);
  return { folder, run, metrics: join(run, "metrics.jsonl") };
}
