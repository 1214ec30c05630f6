/** @file How the next token is chosen from logits: arg-max, or temperature → top-k → top-p → min-p as transformers applies them. */
import type { Random } from "../base/index.ts";
import { logitsNotFinite } from "./errors.ts";
import type { TokenLogprob } from "./request.ts";

/** How a token is drawn; a temperature of 0 is greedy and the others are then without effect. */
export interface Sampling {
  readonly temperature: number;
  /** Keep the k most likely tokens (and any that tie with the last of them). */
  readonly topK?: number | undefined;
  /** Keep the fewest most likely tokens whose probabilities sum to at least this. */
  readonly topP?: number | undefined;
  /** Then keep the tokens whose probability is at least this part of the largest. */
  readonly minP?: number | undefined;
}

/**
 * Index of the largest value, the first of equals.
 *
 * A vocabulary has up to 256k entries and this runs once a token and row, so most values are only compared with the
 * best so far, in blocks of eight without a branch between them.
 */
export function argmax(values: Float32Array, start = 0, end = values.length): number {
  let best = Number.NEGATIVE_INFINITY;
  let at = -1;
  let i = start;
  for (const stop = end - 7; i < stop; i += 8) {
    if (
      values[i]! > best ||
      values[i + 1]! > best ||
      values[i + 2]! > best ||
      values[i + 3]! > best ||
      values[i + 4]! > best ||
      values[i + 5]! > best ||
      values[i + 6]! > best ||
      values[i + 7]! > best
    ) {
      for (let j = i; j < i + 8; j++) {
        if (values[j]! > best) {
          best = values[j]!;
          at = j;
        }
      }
    }
  }
  for (; i < end; i++) {
    if (values[i]! > best) {
      best = values[i]!;
      at = i;
    }
  }
  if (at < 0) throw logitsNotFinite();
  return at - start;
}

/**
 * The tokens that may be drawn, most likely first, with their weights (not normalised, the largest is 1).
 *
 * @param logits float32 [V]
 */
export function candidates(logits: Float32Array, sampling: Sampling): { ids: Int32Array; weights: Float64Array } {
  const vocabulary = logits.length;
  const { temperature, topP, minP = 0 } = sampling;
  const largest = logits[argmax(logits)]!;
  const topK = Math.min(sampling.topK ?? vocabulary, vocabulary);
  let floor = topK < vocabulary ? kthLargest(logits, topK) : Number.NEGATIVE_INFINITY;
  let total = 0;
  if (topP !== undefined && topP < 1) {
    let kept = 0;
    for (let i = 0; i < vocabulary; i++) {
      if (logits[i]! >= floor) {
        total += Math.exp((logits[i]! - largest) / temperature);
        kept++;
      }
    }
    // All tokens whose probability is below (1 - p) / count together have less than 1 - p: none is in the nucleus,
    // so that only a few are left to sort. The margin keeps rounding from taking one more.
    const negligible = (1 - topP) / kept;
    floor = Math.max(floor, largest + temperature * Math.log(negligible * total) - 1e-3 * temperature);
  }
  // Only a saving of sorting, with a margin for rounding; the comparison that decides is below.
  if (minP > 0) floor = Math.max(floor, largest + temperature * (Math.log(minP) - 1e-3));
  let count = 0;
  for (let i = 0; i < vocabulary; i++) if (logits[i]! >= floor) count++;
  let ids = new Int32Array(count);
  count = 0;
  for (let i = 0; i < vocabulary; i++) if (logits[i]! >= floor) ids[count++] = i;
  ids.sort((a, b) => logits[b]! - logits[a]! || a - b);
  let weights = Float64Array.from(ids, (id) => Math.exp((logits[id]! - largest) / temperature));
  if (topP !== undefined && topP < 1) {
    let sum = 0;
    let n = 0;
    while (n < weights.length && (n === 0 || sum < topP * total)) sum += weights[n++]!;
    ids = ids.subarray(0, n);
    weights = weights.subarray(0, n);
  }
  if (minP > 0) {
    let n = weights.length;
    while (n > 1 && weights[n - 1]! < minP) n--;
    ids = ids.subarray(0, n);
    weights = weights.subarray(0, n);
  }
  return { ids, weights };
}

/**
 * Chooses a token from logits float32 [V]. One number is drawn from `random` for each call unless greedy, whatever
 * the distribution, so that a sequence's draws do not depend on what runs beside it.
 */
export function chooseToken(logits: Float32Array, sampling: Sampling, random: Random): number {
  if (sampling.temperature === 0) return argmax(logits);
  const u = random.uniform();
  if ((sampling.topK ?? logits.length) < logits.length || (sampling.topP ?? 1) < 1 || (sampling.minP ?? 0) > 0) {
    const { ids, weights } = candidates(logits, sampling);
    return ids[draw(weights, u)]!;
  }
  const largest = logits[argmax(logits)]!;
  const weights = scratchOf(logits.length);
  for (let i = 0; i < weights.length; i++) weights[i] = Math.exp((logits[i]! - largest) / sampling.temperature);
  return draw(weights, u);
}

/** The `count` likeliest tokens of log-probabilities float32 [V], most likely first, of equals the lower id first. */
export function likeliest(logProbs: Float32Array, count: number): TokenLogprob[] {
  const best: { token: number; logprob: number }[] = [];
  if (count === 0) return best;
  let floor = Number.NEGATIVE_INFINITY;
  for (let token = 0; token < logProbs.length; token++) {
    const logprob = logProbs[token]!;
    if (!(logprob > floor)) continue;
    let at = best.length;
    while (at > 0 && best[at - 1]!.logprob < logprob) at--;
    best.splice(at, 0, { token, logprob });
    if (best.length > count) best.pop();
    if (best.length === count) floor = best[count - 1]!.logprob;
  }
  return best;
}

/** Index i with probability weights[i] / Σ weights, by inversion of u in [0, 1). */
function draw(weights: Float64Array, u: number): number {
  let total = 0;
  for (let i = 0; i < weights.length; i++) total += weights[i]!;
  let left = u * total;
  let last = 0;
  for (let i = 0; i < weights.length; i++) {
    if (weights[i] === 0) continue;
    last = i;
    left -= weights[i]!;
    if (left < 0) break;
  }
  return last;
}

let scratch = new Float64Array(0);
function scratchOf(size: number): Float64Array {
  if (scratch.length < size) scratch = new Float64Array(size);
  return scratch.subarray(0, size);
}

/** The k-th largest value: a heap of the k best, its root the smallest of them. O(V log k) at worst, near O(V). */
function kthLargest(values: Float32Array, k: number): number {
  const heap = new Float32Array(k).fill(Number.NEGATIVE_INFINITY);
  for (let i = 0; i < values.length; i++) {
    const value = values[i]!;
    if (!(value > heap[0]!)) continue;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= k) break;
      if (child + 1 < k && heap[child + 1]! < heap[child]!) child++;
      if (heap[child]! >= value) break;
      heap[at] = heap[child]!;
      at = child;
    }
    heap[at] = value;
  }
  return heap[0]!;
}
