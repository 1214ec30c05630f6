/** @file Perplexity of the responses of rows, each after its own prompt. */
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
  const mean = logprobs.reduce((a, b) => a + b, 0) / logprobs.length;
  return {
    perplexity: Math.exp(-mean),
    tokens: logprobs.length,
    greedy: scores.filter((score) => score.greedy).length,
  };
}
