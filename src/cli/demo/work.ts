/** @file The demo's work: training, measuring, routes, samples, speed. Nothing here prints. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import { MiloraError, median } from "../../base/index.ts";
import { type ExactMatchResult, exactMatch, type LabelledRow } from "../../evaluation/index.ts";
import type { Engine, RouteReport } from "../../generation/index.ts";
import type { Adapter } from "../../methods/index.ts";
import type { Backbone, Tokenizer } from "../../models/index.ts";
import { holdsRun, type RoutingMetrics, renderPrompt, type TrainingResult, train } from "../../training/index.ts";
import { InterruptError } from "../interrupt.ts";
import type { Progress } from "../progress.ts";
import { writeReport } from "../report/index.ts";
import { grouped } from "../terminal.ts";
import { METHODS, type MethodName, runName, type Scale, TENANTS, type Tenant, trainingConfig } from "./plan.ts";

export interface Trained {
  readonly result: TrainingResult;
  readonly adapterDirectory: string;
  readonly firstLoss: number | undefined;
  readonly lastLoss: number | undefined;
  readonly tokensPerSecond: number | undefined;
  /** Routed methods, where there are dev rows: what the routers did on them. */
  readonly routing: RoutingMetrics | undefined;
}

/** Trains one adapter, or goes on where an interrupted demo left it. */
export async function trainAdapter(
  tenant: Tenant,
  method: MethodName,
  options: {
    scale: Scale;
    output: string;
    backbone: Backbone;
    signal: AbortSignal;
    progress: (steps: number) => Progress;
  },
): Promise<Trained> {
  const { scale, output, backbone, signal } = options;
  const config = trainingConfig(tenant, method, scale, output);
  const losses: number[] = [];
  let [tokens, seconds] = [0, 0];
  let bar: Progress | undefined;
  let routing: RoutingMetrics | undefined;
  const run = (resume: boolean) =>
    train(config, {
      signal,
      backbone,
      resume,
      onProgress(event) {
        if (event.type === "start") bar = options.progress(event.totalSteps);
        if (event.type === "evaluation") routing = event.metrics.routing;
        if (event.type !== "step") return;
        const { step, lm_loss, tokens_per_second } = event.metrics;
        losses.push(lm_loss);
        tokens += event.metrics.tokens;
        seconds += event.metrics.seconds;
        bar?.update(step, [`loss ${lm_loss.toFixed(2)}`, `${grouped(Math.round(tokens_per_second))} tokens/s`]);
      },
    });
  try {
    const result = await run(holdsRun(config.output_dir)).catch((error: unknown) => {
      // What is there was made with other settings: it is the demo's own folder, so it is made anew.
      if (!(error instanceof MiloraError) || !error.code.startsWith("CHECKPOINT_")) throw error;
      rmSync(config.output_dir, { recursive: true, force: true });
      return run(false);
    });
    writeReport(config.output_dir);
    if (result.stoppedBecause === "interrupted" || !result.bestDirectory) {
      throw new InterruptError("interrupted; the same command goes on from here");
    }
    return {
      result,
      adapterDirectory: result.bestDirectory,
      firstLoss: losses[0],
      lastLoss: losses.at(-1),
      tokensPerSecond: seconds > 0 ? tokens / seconds : undefined,
      routing,
    };
  } finally {
    bar?.stop();
  }
}

/** Removes what an earlier, finished demo trained, so that this one measures its own work. Only the demo's own folders. */
export function forgetRuns(output: string): void {
  for (const tenant of TENANTS) {
    for (const method of METHODS) rmSync(join(output, runName(tenant, method)), { recursive: true, force: true });
  }
}

export async function measure(
  engine: Engine,
  tokenizer: Tokenizer,
  rows: readonly LabelledRow[],
  adapter: Adapter | undefined,
  options: { signal: AbortSignal; progress: Progress },
): Promise<ExactMatchResult> {
  return await exactMatch(engine, tokenizer, rows, {
    maxNewTokens: 16, // the longest answer has 8 tokens
    signal: options.signal,
    onProgress: (done) => options.progress.update(done, [`${done} of ${rows.length} rows`]),
    ...(adapter ? { adapter } : {}),
  });
}

/** The experts each layer chose for some prompts. */
export async function routesOf(
  engine: Engine,
  tokenizer: Tokenizer,
  rows: readonly LabelledRow[],
  adapter: Adapter,
): Promise<RouteReport[]> {
  const prompts = rows.map((row) => renderPrompt(row, tokenizer, { template: "alpaca" }));
  const results = await engine.generate(prompts.map((prompt) => ({ prompt, adapter, options: { maxNewTokens: 1 } })));
  return results.flatMap((result) => (result.route ? [result.route] : []));
}

/** The first rows with different answers. */
export function differentRows(rows: readonly LabelledRow[], count: number): LabelledRow[] {
  const seen = new Set<string>();
  return rows.filter((row) => !seen.has(row.answer) && seen.add(row.answer)).slice(0, count);
}

export interface Speed {
  /** Medians of the rounds. */
  readonly decodeTokensPerSecond: number;
  readonly prefillMs: number;
  readonly rounds: readonly number[];
}

/**
 * Speed of one sequence at a time. The contestants take turns in every round, so that whatever else the machine does
 * hits all of them; the first round only warms up.
 */
export async function measureSpeed(
  engine: Engine,
  prompt: readonly number[],
  contestants: readonly (readonly [name: string, adapter: Adapter | undefined])[],
  scale: Scale,
  options: { signal: AbortSignal; progress: Progress },
): Promise<Map<string, Speed>> {
  const decode = new Map(contestants.map(([name]) => [name, [] as number[]]));
  const prefill = new Map(contestants.map(([name]) => [name, [] as number[]]));
  const { speedTokens, speedRounds } = scale;
  for (let round = 0; round <= speedRounds; round++) {
    for (const [name, adapter] of contestants) {
      options.signal.throwIfAborted();
      const generation = { maxNewTokens: speedTokens, eosTokenIds: [] };
      const [result] = await engine.generate([{ prompt, options: generation, ...(adapter ? { adapter } : {}) }]);
      const { steps, decodeMs, prefillMs } = result!.timing;
      if (round === 0) continue;
      decode.get(name)!.push(steps / (decodeMs / 1000));
      prefill.get(name)!.push(prefillMs);
    }
    options.progress.update(round, [`round ${round} of ${speedRounds}`]);
  }
  return new Map(
    contestants.map(([name]) => [
      name,
      {
        decodeTokensPerSecond: median(decode.get(name)!),
        prefillMs: median(prefill.get(name)!),
        rounds: decode.get(name)!,
      },
    ]),
  );
}
