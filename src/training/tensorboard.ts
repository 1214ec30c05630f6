/** @file What a run measures, for TensorBoard: event files in `tensorboard/` below its directory, made from metrics.jsonl. */

import { appendFileSync, closeSync, mkdirSync, openSync, readdirSync, rmSync, statSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { mean } from "../base/index.ts";
import { methodOf } from "../methods/index.ts";
import type { TrainingConfig } from "./config.ts";
import { frame, scalarsEvent, startEvent, textEvent, versionEvent } from "./event-file.ts";
import { type EvaluationMetrics, type MetricsMirror, readMetrics, type StepMetrics } from "./metrics.ts";
import { metricsPath, RunDirectory, readRunConfig } from "./run-directory.ts";

const FILE = /^events\.out\.tfevents\.\d+\.milora\.(\d+)$/;

const tensorboardDirectory = (run: string): string => join(run, "tensorboard");

function stepScalars(metrics: StepMetrics, experts: readonly string[]): [string, number][] {
  const { loss, lm_loss, auxiliary, lr, grad_norm, tokens_per_second, epoch, activation, expert_shares } = metrics;
  return [
    ["train/loss", loss],
    ["train/lm_loss", lm_loss],
    ...Object.entries(auxiliary).map(([name, value]): [string, number] => [`train/${name}`, value]),
    ["train/learning_rate", lr],
    ["train/grad_norm", grad_norm],
    ["train/tokens_per_second", tokens_per_second],
    ["train/epoch", epoch],
    ...(activation
      ? ([
          ["activation/loss", activation.loss],
          ["activation/learning_rate", activation.lr],
          ["activation/grad_norm", activation.grad_norm],
        ] as [string, number][])
      : []),
    ...(expert_shares ?? []).flatMap((shares, layer) =>
      shares.map((share, i): [string, number] => [`experts/layer_${layer}/${experts[i] ?? i}`, share]),
    ),
  ];
}

function evaluationScalars({ dev_loss, dev_perplexity, routing }: EvaluationMetrics): [string, number][] {
  const byLayer = (name: string, values: readonly number[]) =>
    values.map((value, layer): [string, number] => [`routing/layer_${layer}/${name}`, value]);
  return [
    ["eval/loss", dev_loss],
    ["eval/perplexity", dev_perplexity],
    ...(routing
      ? ([
          ["routing/distinct_routes", routing.routes],
          ["routing/entropy", mean(routing.entropy)],
          ["routing/mutual_information", routing.route_mutual_information],
          ["routing/mutual_information_by_chance", routing.route_mutual_information_by_chance],
          ...byLayer("entropy", routing.entropy),
          ...byLayer("mutual_information", routing.mutual_information),
        ] as [string, number][])
      : []),
  ];
}

/** Names of the experts, in the order of the shares; none where the method does not route. */
function expertsOf({ method: name, adapter }: TrainingConfig): readonly string[] {
  const method = methodOf(name);
  const parsed = method.configSchema.safeParse(adapter);
  return (parsed.success && method.routing?.(parsed.data).experts) || [];
}

/**
 * Takes all numbers out of an earlier file, and the file away once it has none: a reader that has it open cannot go on to
 * the next when it is gone.
 */
function retire(path: string): void {
  const bare = frame(versionEvent(0)).length;
  if (statSync(path).size > bare) truncateSync(path, bare);
  else rmSync(path);
}

/** An event file that is being written. */
export class EventLog implements MetricsMirror {
  readonly path: string;
  readonly #handle: number;
  readonly #experts: readonly string[];

  private constructor(path: string, config: TrainingConfig, wallTime: number) {
    this.path = path;
    this.#experts = expertsOf(config);
    this.#handle = openSync(path, "wx");
    this.#write(versionEvent(wallTime));
    this.#write(startEvent(wallTime, 0)); // whoever has read an earlier file of this run begins anew
    const json = JSON.stringify(config, null, 2);
    this.#write(textEvent(wallTime, 0, "config", json.replaceAll(/^/gm, "    ")));
  }

  /**
   * Writes all that metrics.jsonl holds into a new file, in the place of those of earlier processes, and stays open. The
   * times are as if the run had gone on without a pause until the file was last written.
   */
  static open(run: string, config: TrainingConfig): EventLog {
    const metrics = metricsPath(run);
    const lines = readMetrics(metrics);
    let wallTime = statSync(metrics).mtimeMs / 1000 - lines.reduce((total, { seconds }) => total + seconds, 0);
    const directory = tensorboardDirectory(run);
    mkdirSync(directory, { recursive: true });
    const earlier = readdirSync(directory).filter((name) => FILE.test(name));
    const last = Math.max(0, ...earlier.map((name) => Number(FILE.exec(name)![1])));
    const second = String(Math.floor(Date.now() / 1000)).padStart(10, "0");
    const path = join(directory, `events.out.tfevents.${second}.milora.${last + 1}`);
    const log = new EventLog(path, config, wallTime);
    for (const line of lines) {
      wallTime += line.seconds;
      log.append(line, wallTime);
    }
    for (const name of earlier) retire(join(directory, name));
    return log;
  }

  /** @param wallTime Unix time of the measurement, seconds */
  append(line: StepMetrics | EvaluationMetrics, wallTime = Date.now() / 1000): void {
    const values = line.type === "step" ? stepScalars(line, this.#experts) : evaluationScalars(line);
    this.#write(scalarsEvent(wallTime, line.step, new Map(values)));
  }

  #write(event: Uint8Array): void {
    appendFileSync(this.#handle, frame(event));
  }

  [Symbol.dispose](): void {
    closeSync(this.#handle);
  }
}

/** Writes the event file of a run that nobody is training and returns its path. Throws `InputError`, TrainingError. */
export function writeEvents(run: string): string {
  const config = readRunConfig(run);
  using _held = RunDirectory.open(run, true);
  using log = EventLog.open(run, config);
  return log.path;
}
