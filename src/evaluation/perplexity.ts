/** @file Perplexity of the responses of rows, each after its own prompt, and of a plain text. */
import { InputError, mean } from "../base/index.ts";
import type { Engine } from "../generation/index.ts";
import type { Adapter } from "../methods/index.ts";
import type { Tokenizer } from "../models/index.ts";
import { type Row, renderRow, type Template } from "../training/index.ts";

export interface PerplexityResult {
  /** exp of the mean negative log-likelihood of a response token. */
  readonly perplexity: number;
  /** Response tokens that were scored. */
  readonly tokens: number;
  /** Rows whose response is all arg-maxima. */
  readonly greedy: number;
}

const perplexityOf = (logprobs: readonly number[]): number => Math.exp(-mean(logprobs));

/** Scores `response | prompt` of every row; every token weighs the same, as in the training loss. */
export async function perplexity(
  engine: Engine,
  tokenizer: Tokenizer,
  rows: readonly Row[],
  options: { readonly adapter?: Adapter; readonly template?: Template } = {},
): Promise<PerplexityResult> {
  const { adapter, template = "alpaca" } = options;
  const parts = rows.map((row) => renderRow(row, tokenizer, { template }));
  const scores = await engine.score(
    parts.map(({ prompt, response }) => ({ prompt, continuation: response })),
    adapter,
  );
  const logprobs = scores.flatMap((score) => score.logprobs);
  return {
    perplexity: perplexityOf(logprobs),
    tokens: logprobs.length,
    greedy: scores.filter((score) => score.greedy).length,
  };
}

/**
 * Perplexity of a text, cut into pieces of `length` tokens that do not see each other, each behind the token that begins
 * a sequence.
 *
 * @param options pieces: at most so many, from the beginning of the text
 * @throws InputError DATA_INVALID for a text of fewer than two tokens
 */
export async function textPerplexity(
  engine: Engine,
  tokenizer: Tokenizer,
  text: string,
  options: { readonly length?: number; readonly pieces?: number } = {},
): Promise<{ readonly perplexity: number; readonly tokens: number }> {
  const { length = 256, pieces = 64 } = options;
  const ids = tokenizer.encode(text, { addSpecialTokens: false });
  const begin = tokenizer.bosTokenId === undefined ? [] : [tokenizer.bosTokenId];
  const rows = [];
  for (let at = 0; at < ids.length && rows.length < pieces; at += length) {
    const tokens = [...begin, ...ids.slice(at, at + length)];
    if (tokens.length > 1) rows.push({ prompt: tokens.slice(0, 1), continuation: tokens.slice(1) });
  }
  if (rows.length === 0) throw new InputError("DATA_INVALID", "text", "has fewer than two tokens");
  const logprobs = (await engine.score(rows)).flatMap((score) => score.logprobs);
  return { perplexity: perplexityOf(logprobs), tokens: logprobs.length };
}
