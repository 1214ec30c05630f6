/** @file metrics.jsonl: what was measured at each step and evaluation, one JSON object a line. */
import { closeSync, fstatSync, fsyncSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { TrainingError } from "./errors.ts";
import type { RoutingMetrics } from "./routing.ts";

/** Losses of one optimizer step; means over the supervised tokens of the whole batch. */
export interface StepLosses {
  /** What is minimised: `lm_loss` and the method's own losses. */
  readonly loss: number;
  /** Cross entropy, nats a supervised token. */
  readonly lm_loss: number;
  /** The method's own losses, already weighted, by name. */
  readonly auxiliary: Readonly<Record<string, number>>;
  readonly lr: number;
  /** Global norm of the gradients before clipping. */
  readonly grad_norm: number;
}

export interface SourceCounts {
  readonly rows: number;
  readonly tokens: number;
}

export interface StepMetrics extends StepLosses {
  readonly type: "step";
  /** 1-based: the number of optimizer steps done. */
  readonly step: number;
  /** Passes over the training rows so far. */
  readonly epoch: number;
  /** The bi-level step on a dev batch that followed, when there was one. */
  readonly activation?: StepLosses;
  /** Routed methods: for each layer, the share of each expert among all that were active. */
  readonly expert_shares?: readonly (readonly number[])[];
  /** Mixed data: rows and tokens of the training batch, by source. */
  readonly sources?: Readonly<Record<string, SourceCounts>>;
  /** Prompt and response tokens, without padding; dev tokens of a bi-level step included. */
  readonly tokens: number;
  readonly supervised_tokens: number;
  readonly seconds: number;
  readonly tokens_per_second: number;
}

export interface EvaluationMetrics {
  readonly type: "evaluation";
  readonly step: number;
  readonly epoch: number;
  /** Mean cross entropy over all supervised dev tokens, nats. */
  readonly dev_loss: number;
  readonly dev_perplexity: number;
  /** Whether this is the best so far. */
  readonly best: boolean;
  /** Routed methods: what their routers did on the dev rows. */
  readonly routing?: RoutingMetrics;
  readonly seconds: number;
}

/** Fields that differ between two runs of the same computation. */
export const TIME_FIELDS: readonly string[] = ["seconds", "tokens_per_second"];

/** An append-only file whose length is remembered by checkpoints, so that resuming cuts off what came after one. */
export class MetricsLog implements Disposable {
  readonly #path: string;
  #handle: number | undefined;
  #bytes: number;

  private constructor(path: string, handle: number, bytes: number) {
    this.#path = path;
    this.#handle = handle;
    this.#bytes = bytes;
  }

  /** Opens the log and cuts it to `bytes`. Throws CHECKPOINT_INVALID when it is shorter than that. */
  static open(path: string, bytes: number): MetricsLog {
    const handle = openSync(path, bytes === 0 ? "w" : "r+");
    const { size } = fstatSync(handle);
    if (size < bytes) {
      closeSync(handle);
      throw new TrainingError(
        "CHECKPOINT_INVALID",
        `${path} has ${size} bytes, but ${bytes} when the checkpoint was made; it was changed, start the run anew`,
      );
    }
    ftruncateSync(handle, bytes);
    return new MetricsLog(path, handle, bytes);
  }

  /** Length of the file. */
  get bytes(): number {
    return this.#bytes;
  }

  append(line: StepMetrics | EvaluationMetrics): void {
    if (this.#handle === undefined) throw new TrainingError("TRAINER_CLOSED", `${this.#path} is closed`);
    const data = Buffer.from(`${JSON.stringify(line)}\n`);
    for (let done = 0; done < data.byteLength; ) {
      done += writeSync(this.#handle, data, done, data.byteLength - done, this.#bytes + done);
    }
    this.#bytes += data.byteLength;
  }

  /** Makes all lines durable; before a checkpoint that counts on them. */
  sync(): void {
    if (this.#handle !== undefined) fsyncSync(this.#handle);
  }

  [Symbol.dispose](): void {
    if (this.#handle !== undefined) closeSync(this.#handle);
    this.#handle = undefined;
  }
}
