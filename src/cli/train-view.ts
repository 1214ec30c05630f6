/** @file What a person sees of training runs: notes above, one bar below, and how they ended. */
import { join, resolve } from "node:path";
import { sum } from "../base/index.ts";
import type { TrainingEvent, TrainingResult } from "../training/index.ts";
import { type Progress, startProgress } from "./progress.ts";
import { duration, grouped, note, paint, print } from "./terminal.ts";

/** Short names for runs, by the ends of their directories as far as these differ; a run alone needs none. */
export function namesOf(directories: readonly string[]): string[] {
  if (directories.length === 1) return [""];
  const parts = directories.map((directory) => resolve(directory).split("/"));
  const longest = Math.max(...parts.map(({ length }) => length));
  for (let depth = 1; depth < longest; depth++) {
    const names = parts.map((path) => path.slice(-depth).join("/"));
    if (new Set(names).size === names.length) return names;
  }
  return [...directories];
}

interface RunState {
  step: number;
  loss: string;
  tokensPerSecond: number;
}

/** Runs that go on together, in one bar. */
export class RunView {
  readonly #names: readonly string[];
  readonly #runs: RunState[] = [];
  readonly #warnings = new Set<string>();
  #progress: Progress | undefined;
  #started = 0;
  #total = 0;

  /** @param names of the runs; none for a run alone */
  constructor(names: readonly string[]) {
    this.#names = names;
  }

  show(event: TrainingEvent, run: number): void {
    const named = this.#names[run] ? `${this.#names[run]}: ` : "";
    switch (event.type) {
      case "warning":
        if (this.#warnings.has(event.message)) break; // runs over the same rows
        this.#warnings.add(event.message);
        this.#note(`${paint("yellow", "note:", process.stderr)} ${event.message}`);
        break;
      case "start":
        note(
          `${named}${grouped(event.trainExamples)} training and ${grouped(event.devExamples)} dev rows, ` +
            `${grouped(event.trainableParameters)} parameters, ${event.totalSteps - event.firstStep} steps` +
            (event.firstStep > 0 ? ` (from step ${event.firstStep})` : ""),
        );
        this.#runs[run] = { step: event.firstStep, loss: "", tokensPerSecond: 0 };
        this.#total += event.totalSteps;
        this.#started++;
        if (this.#started === this.#names.length) this.#progress = startProgress("training", this.#total);
        break;
      case "step": {
        const { step, lm_loss, tokens_per_second } = event.metrics;
        this.#runs[run] = { step, loss: lm_loss.toFixed(3), tokensPerSecond: tokens_per_second };
        const going = this.#runs.filter(({ loss }) => loss !== "");
        this.#progress?.update(sum(this.#runs.map((each) => each.step)), [
          `loss ${going.map(({ loss }) => loss).join(" ")}`,
          `${grouped(Math.round(sum(going.map(({ tokensPerSecond }) => tokensPerSecond))))} tokens/s`,
        ]);
        break;
      }
      case "evaluation":
        this.#note(
          `${named}step ${event.metrics.step}: dev perplexity ${event.metrics.dev_perplexity.toFixed(4)}${event.metrics.best ? ", the best" : ""}`,
        );
        break;
      case "structure":
        this.#note(
          `${named}step ${event.step}: structure found, ${grouped(event.trainableParameters)} parameters from here on`,
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

/** @param name of the run, where there are several */
export function summarise(result: TrainingResult, name = ""): void {
  const { best, bestDirectory, steps, totalSteps, stoppedBecause, seconds } = result;
  const why = { finished: "finished", early_stopping: "stopped early", interrupted: "interrupted" }[stoppedBecause];
  print(`${name ? `${name}: ` : ""}${why} after ${steps} of ${totalSteps} steps, ${duration(seconds)}`);
  if (best) print(`best dev perplexity ${best.devPerplexity.toFixed(4)} at step ${best.step}`);
  if (bestDirectory) print(`adapter: ${paint("bold", relative(bestDirectory))}`);
  print(`report: ${relative(join(result.directory, "report.html"))}`);
}

function relative(path: string): string {
  const base = `${resolve(".")}/`;
  return resolve(path).startsWith(base) ? resolve(path).slice(base.length) : path;
}
