/** @file What the variants of `decode` are told and answer. */

export interface DecodeSettings {
  readonly shape: string;
  readonly threads: number;
  /** Whether milora's idle threads spin. */
  readonly spin: boolean;
  /** Tokens of the prompt, in the KV cache before the first timed step. */
  readonly past: number;
  /** Timed steps a round. */
  readonly steps: number;
  /** Positions of the KV cache. */
  readonly capacity: number;
  /** Weights that share a scale in milora's int4 form. */
  readonly blockSize: number;
  readonly adapter?: { readonly method: string; readonly options?: Readonly<Record<string, unknown>> };
}

export interface DecodeRound {
  /** From the request to the first token, ms. */
  readonly prefillMs: number;
  /** Of every further token, ms: run, sampling, and what the API adds. */
  readonly stepMs: readonly number[];
}

/** The prompt that every variant reads: arbitrary token ids above the special ones. */
export function promptOf(length: number, vocabSize: number): number[] {
  return Array.from({ length }, (_, i) => 260 + ((i * 7919) % (vocabSize - 260)));
}
