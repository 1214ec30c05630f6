/** @file One request on its way: its tokens so far, how the next is chosen, and when it is over. */
import type { Random } from "../base/index.ts";
import type { Tokenizer } from "../models/index.ts";
import {
  type GenerationRequest,
  type GenerationResult,
  type RouteReport,
  randomOf,
  type StreamedToken,
} from "./request.ts";
import { chooseToken, type Sampling } from "./sampler.ts";
import { TextStream } from "./text.ts";

/** Milliseconds of a monotonic clock. */
export const now = (): number => performance.now();

export class Sequence {
  readonly request: GenerationRequest;
  readonly tokens: number[] = [];
  readonly logprobs: number[] = [];
  route: RouteReport | undefined;
  prefillMs = 0;
  /** When its prompt had been read. */
  startedAt = 0;
  readonly #text: TextStream;
  readonly #random: Random;
  readonly #sampling: Sampling;
  readonly #ends: ReadonlySet<number>;
  #finish: GenerationResult["finishReason"] | undefined;
  #endedAt = 0;

  /** @param eosTokenIds the backbone's, unless the request has its own */
  constructor(request: GenerationRequest, tokenizer: Tokenizer | undefined, eosTokenIds: readonly number[]) {
    const { options } = request;
    this.request = request;
    this.#text = new TextStream(tokenizer?.decodeStream({ continuation: true }), options.stop);
    this.#random = randomOf(options);
    this.#sampling = { temperature: options.temperature ?? 0, topK: options.topK, topP: options.topP };
    this.#ends = new Set(options.eosTokenIds ?? eosTokenIds);
  }

  get finished(): boolean {
    return this.#finish !== undefined;
  }

  get cancelled(): boolean {
    return this.request.signal?.aborted ?? false;
  }

  /** Positions the prompt and the longest answer take. The last token is never fed again. */
  get longest(): number {
    return this.request.prompt.length + this.request.options.maxNewTokens - 1;
  }

  /** Chooses the next token. Both are float32 [V]. */
  advance(logits: Float32Array, logProbs: Float32Array): StreamedToken {
    const token = chooseToken(logits, this.#sampling, this.#random);
    return this.accept(token, logProbs[token]!);
  }

  /** Takes a token that was chosen elsewhere. */
  accept(token: number, logprob: number): StreamedToken {
    this.tokens.push(token);
    this.logprobs.push(logprob);
    const ended = this.#ends.has(token);
    let text = ended ? "" : this.#text.push(token);
    if (ended || this.#text.stopped) this.#finish = "stop";
    else if (this.tokens.length >= this.request.options.maxNewTokens) this.#finish = "length";
    if (this.#finish) text += this.#end();
    return { token, text, logprob };
  }

  /** Ends it with what it has. */
  cancel(): void {
    if (this.#finish) return;
    this.#finish = "cancelled";
    this.#end();
  }

  result(): GenerationResult {
    return {
      tokens: this.tokens,
      text: this.#text.text,
      logprobs: this.logprobs,
      finishReason: this.#finish ?? "cancelled",
      ...(this.route && { route: this.route }),
      timing: {
        prefillMs: this.prefillMs,
        decodeMs: this.startedAt === 0 ? 0 : Math.max(0, this.#endedAt - this.startedAt),
        steps: Math.max(0, this.tokens.length - 1),
      },
    };
  }

  #end(): string {
    this.#endedAt = now();
    return this.#text.end();
  }
}
