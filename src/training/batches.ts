/** @file The order of examples through a run, and the padded arrays that one pass of the graph takes. */
import { deriveSeed, Random, sum } from "../base/index.ts";
import { Tensor } from "../runtime/index.ts";
import type { Example } from "./data.ts";

/** Sequence lengths are rounded up to this, so that fewer shapes occur and memory plans are reused. */
export const LENGTH_STEP = 16;
/** The same for the number of supervised positions; the added ones weigh nothing. */
export const POSITION_STEP = 16;

/** Which example comes at a position (0, 1, 2, … across epochs). */
export interface ExampleOrder {
  at(position: number): number;
}

/**
 * An endless, seeded order over `size` examples: one permutation an epoch, which depends on the seed and the epoch
 * only. A position in it is one integer, and resuming needs nothing else.
 */
export class Order implements ExampleOrder {
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

  at(position: number): number {
    const epoch = Math.floor(position / this.#size);
    if (epoch !== this.#epoch) {
      this.#permutation = new Random(deriveSeed(this.#seed, `${this.#purpose}/${epoch}`)).permutation(this.#size);
      this.#epoch = epoch;
    }
    return this.#permutation[position % this.#size]!;
  }
}

/**
 * How many examples of each part an epoch takes: as many in all as there are, in the proportions of the weights, each
 * rounded down and what is left given to the largest remainders (Hamilton's method), so that every epoch has the same.
 */
export function quotas(sizes: readonly number[], weights: readonly number[]): number[] {
  const total = sum(sizes);
  const weight = sum(weights);
  const exact = weights.map((part) => (total * part) / weight);
  const result = exact.map(Math.floor);
  const left = total - sum(result);
  const byRemainder = exact.map((_, i) => i).sort((a, b) => exact[b]! - result[b]! - (exact[a]! - result[a]!) || a - b);
  for (const i of byRemainder.slice(0, left)) result[i]!++;
  return result;
}

/**
 * As `Order`, over parts that stand one after the other and are drawn by weight. In an epoch each part has its quota, in
 * places that the seed and the epoch decide. A part is gone through in its own order, on and on across epochs, so that
 * all of its examples are seen equally often, give or take one.
 */
export class MixOrder implements ExampleOrder {
  readonly #quotas: readonly number[];
  readonly #starts: readonly number[];
  readonly #orders: readonly Order[];
  readonly #places: Order;
  readonly #total: number;
  #epoch = -1;
  #indices: Uint32Array = new Uint32Array();

  constructor(sizes: readonly number[], weights: readonly number[], seed: number, purpose: string) {
    this.#quotas = quotas(sizes, weights);
    this.#starts = sizes.map((_, i) => sum(sizes.slice(0, i)));
    this.#orders = sizes.map((size, i) => new Order(size, seed, `${purpose}/part ${i}`));
    this.#total = sum(sizes);
    this.#places = new Order(this.#total, seed, purpose);
  }

  at(position: number): number {
    const epoch = Math.floor(position / this.#total);
    if (epoch !== this.#epoch) {
      this.#indices = Uint32Array.from(this.#epochOf(epoch));
      this.#epoch = epoch;
    }
    return this.#indices[this.#places.at(position)]!;
  }

  *#epochOf(epoch: number): Generator<number> {
    for (const [i, quota] of this.#quotas.entries()) {
      for (let k = 0; k < quota; k++) yield this.#starts[i]! + this.#orders[i]!.at(epoch * quota + k);
    }
  }
}

/** Optimizer steps in one epoch; the last batch of an epoch may be smaller. */
export function stepsPerEpoch(examples: number, batchSize: number): number {
  return Math.ceil(examples / batchSize);
}

/** The examples of step `step` (0-based); batches never cross the border between two epochs. */
export function batchOfStep<T>(examples: readonly T[], order: ExampleOrder, step: number, batchSize: number): T[] {
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
  return sum(examples.map(({ tokens, promptLength }) => tokens.length - promptLength));
}

export function countTokens(examples: readonly Example[]): number {
  return sum(examples.map(({ tokens }) => tokens.length));
}

export const roundUp = (n: number, step: number): number => Math.ceil(n / step) * step;

/** The inputs of one pass, by their names in the graph. */
export interface BatchInputs extends Disposable {
  readonly inputs: ReadonlyMap<string, Tensor>;
  readonly supervised: number;
}

/** The inputs of one pass over B sequences, right-padded to T, with S supervised positions. */
export class Collated implements BatchInputs {
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

  get inputs(): ReadonlyMap<string, Tensor> {
    const { tokens, promptMask, positions, labels, weights } = this;
    return new Map(Object.entries({ tokens, promptMask, positions, labels, weights }));
  }

  [Symbol.dispose](): void {
    for (const tensor of this.inputs.values()) tensor.dispose();
  }
}

/** For an adapter that has nothing to do in a pass of several: a sequence that costs little and counts for nothing. */
export const IDLE: readonly Example[] = [{ tokens: Int32Array.of(0, 0), promptLength: 1 }];
export const IDLE_LENGTH = 2;

/** The batches of one pass, one for each adapter. */
export class Together implements Disposable {
  readonly each: readonly BatchInputs[];

  constructor(each: readonly BatchInputs[]) {
    this.each = each;
  }

  [Symbol.dispose](): void {
    for (const batch of this.each) batch[Symbol.dispose]();
  }
}
