/** @file One update of one adapter: the micro-batches it takes, what they gave, and the optimizer at the end. */
import { deriveSeed } from "../base/index.ts";
import { type BatchInputs, Collated, microBatches, supervisedTokens } from "./batches.ts";
import type { Example } from "./data.ts";
import { TrainingError } from "./errors.ts";
import { addActive, type GradientPass, type PassResult } from "./gradients.ts";
import type { StepLosses } from "./metrics.ts";
import type { Group } from "./optimizer.ts";
import { PackedBatch, packedBatches } from "./packing.ts";
import type { StepInput, Trainer } from "./trainer.ts";

export interface UpdateResult {
  readonly losses: StepLosses;
  readonly active: number[][] | undefined;
}

interface Part {
  readonly examples: readonly Example[];
  /** Where sequences share rows. */
  readonly rows: readonly (readonly Example[])[] | undefined;
}

/** Begins with clean gradients, and is done when `finish` was called after all passes. */
export class Update {
  /** Of the noise that the method is trained with. */
  readonly seed: number;
  readonly progress: number;
  readonly #trainer: Trainer;
  readonly #names: readonly Group[];
  readonly #batch: readonly Example[];
  readonly #tokens: number;
  readonly #lr: number;
  readonly #number: number;
  readonly #parts: readonly Part[];
  readonly #passes: PassResult[] = [];

  constructor(
    trainer: Trainer,
    names: readonly Group[],
    batch: readonly Example[],
    lr: number,
    { number, progress = 1 }: Pick<StepInput, "number" | "progress">,
  ) {
    const { packing = false, microBatchSize, maxLength, seed = 0 } = trainer.options;
    const step = trainer.updates.get(names[0]!)! + 1;
    this.seed = deriveSeed(seed, `noise/${names[0]}/${step}`);
    this.progress = progress;
    this.#trainer = trainer;
    this.#names = names;
    this.#batch = batch;
    this.#tokens = supervisedTokens(batch);
    this.#lr = lr;
    this.#number = number ?? step;
    this.#parts = packing
      ? packedBatches(batch, microBatchSize, maxLength).map((rows) => ({ examples: rows.flat(), rows }))
      : microBatches(batch, microBatchSize).map((examples) => ({ examples, rows: undefined }));
    trainer.accumulated.clear(); // what an aborted or failed step, or the other step of a pair, left behind
  }

  /** Passes that it takes. */
  get passes(): number {
    return this.#parts.length;
  }

  /** The inputs of a pass; whoever asked for them disposes the batch. Undefined after the last. */
  pass(index: number): GradientPass | undefined {
    const part = this.#parts[index];
    if (part === undefined) return undefined;
    const { maxLength } = this.#trainer.options;
    const batch: BatchInputs = part.rows
      ? new PackedBatch(part.rows, maxLength)
      : new Collated(part.examples, maxLength);
    return { batch, inverseTokens: 1 / this.#tokens, promptShare: this.#shareOf(part) };
  }

  /** What a pass gave, in their order. */
  take(result: PassResult): void {
    this.#passes.push(result);
  }

  /** Steps the optimizer. Throws TRAINING_NOT_FINITE; nothing is then updated. */
  async finish(): Promise<UpdateResult> {
    const bad: Example[] = []; // of micro-batches whose own loss is not finite
    const auxiliary: Record<string, number> = {};
    let crossEntropy = 0;
    for (const [i, pass] of this.#passes.entries()) {
      const part = this.#parts[i]!;
      if (![pass.crossEntropy, ...pass.auxiliary.values()].every(Number.isFinite)) bad.push(...part.examples);
      crossEntropy += pass.crossEntropy;
      const share = this.#shareOf(part);
      for (const [name, value] of pass.auxiliary) auxiliary[name] = (auxiliary[name] ?? 0) + value * share;
    }
    const lmLoss = crossEntropy / this.#tokens;
    const loss = Object.values(auxiliary).reduce((a, b) => a + b, lmLoss);
    if (!Number.isFinite(loss)) throw this.#notFinite("the loss", loss, bad);
    const norm = await this.#trainer.update(this.#names, this.#lr, (norm) =>
      this.#notFinite("the norm of the gradients", norm, this.#batch),
    );
    const losses = { loss, lm_loss: lmLoss, auxiliary, lr: this.#lr, grad_norm: norm };
    return { losses, active: addActive(this.#passes) };
  }

  #shareOf({ examples }: Part): number {
    return examples.length / this.#batch.length;
  }

  /** @param rows those that it may be due to */
  #notFinite(what: string, value: number, rows: readonly Example[]): TrainingError {
    const where = this.#names.length === 1 && this.#names[0] === "activation" ? " on the dev batch" : "";
    return new TrainingError(
      "TRAINING_NOT_FINITE",
      `step ${this.#number}: ${what}${where} is ${value}; nothing was updated${rowsOf(rows)}. Lower the learning rate, or look for damaged weights`,
      { exitCode: 1 },
    );
  }
}

/** `; rows: data/train.jsonl 3, 17; other.jsonl 5`, as far as the examples come from files. */
function rowsOf(examples: readonly Example[]): string {
  const byFile = new Map<string, number[]>();
  for (const { origin } of examples) {
    if (origin) byFile.set(origin.file, [...(byFile.get(origin.file) ?? []), origin.row]);
  }
  const files = [...byFile].map(([file, rows]) => `${file} ${rows.sort((a, b) => a - b).join(", ")}`);
  return files.length ? `; rows: ${files.join("; ")}` : "";
}
