/** @file What changes logits before a token is chosen: biases of tokens, and penalties for those that came before. */
import type { SamplingOptions } from "./request.ts";

/**
 * Biases and penalties of one sequence, in the order in which vLLM applies them: bias, repetition, frequency, presence.
 * With c[j] the number of times that token j was generated:
 *
 *   logit[j] ← logit[j] + bias[j]
 *   logit[j] ← logit[j] / repetition if positive, else · repetition, where j is in the prompt or c[j] > 0
 *   logit[j] ← logit[j] - c[j] · frequency - (c[j] > 0) · presence
 */
export class Penalties {
  readonly #presence: number;
  readonly #frequency: number;
  readonly #repetition: number;
  readonly #bias: readonly (readonly [token: number, bias: number])[];
  /** Tokens of the prompt. */
  readonly #prompt: ReadonlySet<number>;
  /** How often each token was generated. */
  readonly #counts = new Map<number, number>();

  private constructor(options: SamplingOptions, prompt: readonly number[]) {
    this.#presence = options.presencePenalty ?? 0;
    this.#frequency = options.frequencyPenalty ?? 0;
    this.#repetition = options.repetitionPenalty ?? 1;
    this.#bias = Object.entries(options.logitBias ?? {}).map(([token, bias]) => [Number(token), bias]);
    this.#prompt = new Set(this.#repetition === 1 ? [] : prompt);
  }

  /** Undefined where the options change no logits. */
  static of(options: SamplingOptions, prompt: readonly number[]): Penalties | undefined {
    const made = new Penalties(options, prompt);
    const none = made.#presence === 0 && made.#frequency === 0 && made.#repetition === 1 && made.#bias.length === 0;
    return none ? undefined : made;
  }

  /** A token was generated. */
  count(token: number): void {
    this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
  }

  /** The changed logits, float32 [V], in memory that the next call uses again. */
  apply(logits: Float32Array): Float32Array {
    const changed = scratchOf(logits);
    for (const [token, bias] of this.#bias) changed[token]! += bias;
    if (this.#repetition !== 1) {
      for (const token of this.#prompt) this.#repeat(changed, token);
      for (const token of this.#counts.keys()) if (!this.#prompt.has(token)) this.#repeat(changed, token);
    }
    for (const [token, count] of this.#counts) changed[token]! -= count * this.#frequency + this.#presence;
    return changed;
  }

  #repeat(logits: Float32Array, token: number): void {
    const value = logits[token]!;
    logits[token] = value > 0 ? value / this.#repetition : value * this.#repetition;
  }
}

let scratch = new Float32Array(0);

function scratchOf(values: Float32Array): Float32Array {
  if (scratch.length !== values.length) scratch = new Float32Array(values.length);
  scratch.set(values);
  return scratch;
}
