/** @file metrics.jsonl: what was measured at each step and evaluation, one JSON object a line. */
import { closeSync, constants, fstatSync, fsyncSync, ftruncateSync, openSync, readFileSync, writeSync } from "node:fs";
import { z } from "zod";
import { InputError, parseWith, reasonOf } from "../base/index.ts";
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
  readonly activation?: StepLosses | undefined;
  /** Routed methods: for each layer, the share of each expert among all that were active. */
  readonly expert_shares?: readonly (readonly number[])[] | undefined;
  /** Mixed data: rows and tokens of the training batch, by source. */
  readonly sources?: Readonly<Record<string, SourceCounts>> | undefined;
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
  readonly routing?: RoutingMetrics | undefined;
  readonly seconds: number;
}

/** Fields that differ between two runs of the same computation. */
export const TIME_FIELDS: readonly string[] = ["seconds", "tokens_per_second"];

/** Lines whose measured numbers are as `figure` has them. */
function lineSchemaOf<F extends z.ZodType>(figure: F) {
  const shares = z.array(z.array(figure));
  const losses = {
    loss: figure,
    lm_loss: figure,
    auxiliary: z.record(z.string(), figure),
    lr: figure,
    grad_norm: figure,
  };
  const stepSchema = z.object({
    type: z.literal("step"),
    step: z.number(),
    epoch: z.number(),
    ...losses,
    activation: z.object(losses).optional(),
    expert_shares: shares.optional(),
    sources: z.record(z.string(), z.object({ rows: z.number(), tokens: z.number() })).optional(),
    tokens: z.number(),
    supervised_tokens: z.number(),
    seconds: z.number(),
    tokens_per_second: figure,
  });
  const evaluationSchema = z.object({
    type: z.literal("evaluation"),
    step: z.number(),
    epoch: z.number(),
    dev_loss: figure,
    dev_perplexity: figure,
    best: z.boolean(),
    routing: z
      .object({
        rows: z.number(),
        experts: z.array(z.string()),
        expert_shares: shares,
        entropy: z.array(figure),
        routes: z.number(),
        layer_routes: z.array(z.number()),
        label_entropy: figure,
        mutual_information: z.array(figure),
        mutual_information_by_chance: z.array(figure),
        route_mutual_information: figure,
        route_mutual_information_by_chance: figure,
      })
      .optional(),
    seconds: z.number(),
  });
  return z.discriminatedUnion("type", [stepSchema, evaluationSchema]);
}

/** In JSON numbers that were not finite are null. */
const written = z.number().nullable();

/** A line as it is written; for whoever reads a million of them, since transforms take zod ten times as long. */
export const writtenLineSchema = lineSchemaOf(written);

export type WrittenLine = z.output<typeof writtenLineSchema>;

const lineSchema = lineSchemaOf(written.transform((value) => value ?? Number.NaN));

/**
 * The lines of a metrics.jsonl, perhaps of a run that is going on: a last line without its end is what a process that
 * was killed has left, or one that is writing. Throws `InputError` for a file that cannot be read or is not of a run.
 */
export function readMetrics(path: string): (StepMetrics | EvaluationMetrics)[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new InputError("FILE_UNREADABLE", path, reasonOf(error), { cause: error });
  }
  return text
    .split("\n")
    .slice(0, -1)
    .map((line, i) => {
      let value: unknown;
      try {
        value = JSON.parse(line);
      } catch (error) {
        throw new InputError("JSON_INVALID", `${path} line ${i + 1}`, reasonOf(error), { cause: error });
      }
      return parseWith(lineSchema, value, `${path} line ${i + 1}`);
    });
}

/** Another form of the same lines, written as they are. */
export interface MetricsMirror extends Disposable {
  append(line: StepMetrics | EvaluationMetrics): void;
}

/** An append-only file whose length is remembered by checkpoints, so that resuming cuts off what came after one. */
export class MetricsLog implements Disposable {
  readonly #path: string;
  #handle: number | undefined;
  #bytes: number;
  #mirror: MetricsMirror | undefined;

  private constructor(path: string, handle: number, bytes: number) {
    this.#path = path;
    this.#handle = handle;
    this.#bytes = bytes;
  }

  /** Opens the log and cuts it to `bytes`. Throws CHECKPOINT_INVALID when it is shorter than that. */
  static open(path: string, bytes: number): MetricsLog {
    const handle = openSync(path, constants.O_RDWR | constants.O_CREAT);
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
    this.#mirror?.append(line);
  }

  /** From here on lines go to `mirror`, too, which is closed with this. */
  mirrorTo(mirror: MetricsMirror): void {
    this.#mirror = mirror;
  }

  /** Makes all lines durable; before a checkpoint that counts on them. */
  sync(): void {
    if (this.#handle !== undefined) fsyncSync(this.#handle);
  }

  [Symbol.dispose](): void {
    if (this.#handle !== undefined) closeSync(this.#handle);
    this.#handle = undefined;
    this.#mirror?.[Symbol.dispose]();
    this.#mirror = undefined;
  }
}
