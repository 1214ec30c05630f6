/** @file The order of examples through a run, and the padded arrays that one pass of the graph takes. */
import { deriveSeed, Random } from "../base/index.ts";
import { Tensor } from "../runtime/index.ts";
import type { Example } from "./data.ts";

/** Sequence lengths are rounded up to this, so that fewer shapes occur and memory plans are reused. */
const LENGTH_STEP = 16;
/** The same for the number of supervised positions; the added ones weigh nothing. */
const POSITION_STEP = 16;

/**
 * An endless, seeded order over `size` examples: one permutation an epoch, which depends on the seed and the epoch
 * only. A position in it is one integer, and resuming needs nothing else.
 */
export class Order {
  readonly #size: number;
  readonly #seed: number;
  readonly #purpose: string;
  #epoch = -1;
  #permutation: Uint32Array = new Uint32Array();

  constructor(size: number, seed: number, purpose: string) {
    this.#size = size;
    this.#seed = seed;
    this.#purpose = purpose;
  }

  /** Index of the example at `position` (0, 1, 2, … across epochs). */
  at(position: number): number {
    const epoch = Math.floor(position / this.#size);
    if (epoch !== this.#epoch) {
      this.#permutation = new Random(deriveSeed(this.#seed, `${this.#purpose}/${epoch}`)).permutation(this.#size);
      this.#epoch = epoch;
    }
    return this.#permutation[position % this.#size]!;
  }
}

/** Optimizer steps in one epoch; the last batch of an epoch may be smaller. */
export function stepsPerEpoch(examples: number, batchSize: number): number {
  return Math.ceil(examples / batchSize);
}

/** The examples of step `step` (0-based); batches never cross the border between two epochs. */
export function batchOfStep<T>(examples: readonly T[], order: Order, step: number, batchSize: number): T[] {
  const perEpoch = stepsPerEpoch(examples.length, batchSize);
  const start = Math.floor(step / perEpoch) * examples.length + (step % perEpoch) * batchSize;
  const end = Math.min(start + batchSize, (Math.floor(step / perEpoch) + 1) * examples.length);
  return Array.from({ length: end - start }, (_, i) => examples[order.at(start + i)]!);
}

/** Splits a batch into micro-batches of examples of similar length, so that little is padding. */
export function microBatches(batch: readonly Example[], size: number): Example[][] {
  const sorted = batch.toSorted((a, b) => b.tokens.length - a.tokens.length);
  return Array.from({ length: Math.ceil(sorted.length / size) }, (_, i) => sorted.slice(i * size, (i + 1) * size));
}

/** Supervised tokens: every one after the prompt. */
export function supervisedTokens(examples: readonly Example[]): number {
  return examples.reduce((sum, { tokens, promptLength }) => sum + tokens.length - promptLength, 0);
}

export function countTokens(examples: readonly Example[]): number {
  return examples.reduce((sum, { tokens }) => sum + tokens.length, 0);
}

const roundUp = (n: number, step: number): number => Math.ceil(n / step) * step;

/** The inputs of one pass over B sequences, right-padded to T, with S supervised positions. */
export class Collated implements Disposable {
  readonly tokens: Tensor; // int64 [B, T]
  readonly promptMask: Tensor; // float32 [B, T], 1 on prompt tokens
  readonly positions: Tensor; // int64 [S], rows of the [B·T, d] activations that predict a supervised token
  readonly labels: Tensor; // int64 [S]
  readonly weights: Tensor; // float32 [S], 1, or 0 on filling
  readonly supervised: number;

  constructor(examples: readonly Example[], maxLength: number) {
    const longest = Math.max(...examples.map(({ tokens }) => tokens.length));
    const B = examples.length;
    const T = Math.max(longest, Math.min(roundUp(longest, LENGTH_STEP), maxLength));
    this.supervised = supervisedTokens(examples);
    const S = roundUp(this.supervised, POSITION_STEP);
    const tokens = new BigInt64Array(B * T); // padding is never seen by a real token, so any id will do
    const mask = new Float32Array(B * T);
    const positions = new BigInt64Array(S);
    const labels = new BigInt64Array(S);
    const weights = new Float32Array(S);
    let s = 0;
    for (const [b, example] of examples.entries()) {
      for (const [t, id] of example.tokens.entries()) {
        tokens[b * T + t] = BigInt(id);
        if (t < example.promptLength) mask[b * T + t] = 1;
        else {
          positions[s] = BigInt(b * T + t - 1); // the position before a token predicts it
          labels[s] = BigInt(id);
          weights[s] = 1;
          s++;
        }
      }
    }
    this.tokens = Tensor.from("int64", [B, T], tokens);
    this.promptMask = Tensor.from("float32", [B, T], mask);
    this.positions = Tensor.from("int64", [S], positions);
    this.labels = Tensor.from("int64", [S], labels);
    this.weights = Tensor.from("float32", [S], weights);
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.tokens, this.promptMask, this.positions, this.labels, this.weights]) tensor.dispose();
  }
}
