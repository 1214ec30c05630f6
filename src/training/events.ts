/** @file What a training run takes beside its config, tells while it runs, and gives. */
import type { Backbone } from "../models/index.ts";
import type { EvaluationMetrics, StepMetrics } from "./metrics.ts";

/** What happens in a run, as it happens. */
export type TrainingEvent =
  /** Something about the data or the config that a user should know. */
  | { readonly type: "warning"; readonly message: string }
  | {
      readonly type: "start";
      readonly directory: string;
      readonly trainExamples: number;
      readonly devExamples: number;
      readonly trainableParameters: number;
      readonly totalSteps: number;
      /** Steps that a checkpoint has already; 0 for a new run. */
      readonly firstStep: number;
    }
  | {
      readonly type: "step";
      readonly metrics: StepMetrics;
      readonly totalSteps: number;
      /** Estimate for the rest of the run; evaluations so far are in it. */
      readonly secondsLeft: number;
    }
  | { readonly type: "evaluation"; readonly metrics: EvaluationMetrics }
  /** The adapter has found its structure, after this step, and is trained with that from here on. */
  | { readonly type: "structure"; readonly step: number; readonly trainableParameters: number }
  | { readonly type: "checkpoint"; readonly step: number; readonly directory: string };

export interface TrainOptions {
  /** Ctrl-C: the current pass ends, a checkpoint is saved, and `train` returns. */
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((event: TrainingEvent) => void) | undefined;
  /** Go on from the newest checkpoint in `output_dir`. */
  readonly resume?: boolean | undefined;
  /** A backbone that is loaded already; it stays the caller's. Default: loaded from `model`. */
  readonly backbone?: Backbone | undefined;
}

/** For several runs at once: events come with the index of their run. */
export interface TogetherOptions extends Omit<TrainOptions, "onProgress"> {
  readonly onProgress?: ((event: TrainingEvent, run: number) => void) | undefined;
}

export interface TrainingResult {
  readonly directory: string;
  /** The best adapter by dev perplexity (without dev rows: the last); undefined when none was saved yet. */
  readonly bestDirectory: string | undefined;
  readonly best: { readonly step: number; readonly devLoss: number; readonly devPerplexity: number } | undefined;
  readonly steps: number;
  readonly totalSteps: number;
  readonly stoppedBecause: "finished" | "early_stopping" | "interrupted";
  /** Training time, over all resumptions. */
  readonly seconds: number;
}
