/** @file What the loads of `serve` are, and what their variants answer. */
import { FIRST_WORD } from "./serving-model.ts";

export interface ServeSettings {
  readonly shape: string;
  readonly threads: number;
  readonly rank: number;
  /** What decoding holds adapters as. */
  readonly precision: string;
  /** Requests at a time. */
  readonly streams: number;
  /** Tokens of a prompt, and of an answer. */
  readonly past: number;
  readonly tokens: number;
}

export interface ServeRound {
  /** Of all streams together, from the first request to the last token. */
  readonly tokensPerSecond: number;
  /** From the request to the first token, ms, over the streams. */
  readonly firstP50: number;
  readonly firstP95: number;
  /** From a token to the next one of its stream, ms. */
  readonly betweenP50: number;
  readonly betweenP95: number;
}

/** A prompt of arbitrary words that no other stream and no other round has: nothing of it can be remembered. */
export function promptOf(length: number, vocabSize: number, stream: number, round: number): number[] {
  const words = vocabSize - FIRST_WORD;
  const seed = round * 1009 + stream + 1;
  return Array.from({ length }, (_, i) => FIRST_WORD + ((seed * 7919 + i * (104_729 + seed)) % words));
}
