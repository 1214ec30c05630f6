/** @file What judging will cost, before anything is asked. */
import type { Judge } from "./judge.ts";
import type { JudgeMessage } from "./prompts.ts";

/** Money for a million tokens, in any currency. */
export interface Prices {
  readonly prompt: number;
  readonly completion: number;
}

export interface JudgingCost {
  /** Judgements wanted, and those of them that are on disk already. */
  readonly judgments: number;
  readonly known: number;
  /** Requests to be made. */
  readonly calls: number;
  /** Estimated: the judge's tokenizer is not known. */
  readonly promptTokens: number;
  /** Estimated, and the most that is allowed. */
  readonly completionTokens: number;
  readonly mostCompletionTokens: number;
  /** With prices: estimated, and at most. */
  readonly money: number | null;
  readonly mostMoney: number | null;
}

/** UTF-8 bytes of a token, about: English text in the tokenizers of today has 4 to 5. */
const BYTES_OF_TOKEN = 4;
/** Tokens around each message. */
const FRAME_TOKENS = 4;
/** What a judge writes before and with its verdict, about; GPT-4's judgements of MT-Bench have 100 to 300. */
const EXPLANATION_TOKENS = 300;

function tokensOfText(text: string): number {
  return Math.ceil(Buffer.byteLength(text) / BYTES_OF_TOKEN);
}

function tokensOf(messages: readonly JudgeMessage[]): number {
  return messages.reduce((tokens, { content }) => tokens + FRAME_TOKENS + tokensOfText(content), 0);
}

export function moneyOf({ prompt, completion }: Prices, promptTokens: number, completionTokens: number): number {
  return (promptTokens * prompt + completionTokens * completion) / 1e6;
}

/** @param requests all of them; those whose judgement is known cost nothing */
export function judgingCost(
  judge: Judge,
  requests: readonly (readonly JudgeMessage[])[],
  prices?: Prices,
): JudgingCost {
  const open = judge.missing(requests);
  const promptTokens = open.reduce((tokens, messages) => tokens + tokensOf(messages), 0);
  const { maxTokens } = judge.endpoint;
  const completionTokens = open.length * Math.min(EXPLANATION_TOKENS, maxTokens);
  const mostCompletionTokens = open.length * maxTokens;
  return {
    judgments: requests.length,
    known: requests.length - open.length,
    calls: open.length,
    promptTokens,
    completionTokens,
    mostCompletionTokens,
    money: prices ? moneyOf(prices, promptTokens, completionTokens) : null,
    mostMoney: prices ? moneyOf(prices, promptTokens, mostCompletionTokens) : null,
  };
}
