/** @file One request on its way: its tokens so far, how the next is chosen, and when it is over. */
import { type Clock, machineClock, type Random } from "../base/index.ts";
import type { Tokenizer } from "../models/index.ts";
import { logitsNotFinite } from "./errors.ts";
import { Penalties } from "./penalties.ts";
import {
  type GenerationRequest,
  type GenerationResult,
  type PromptLogprob,
  type RouteReport,
  randomOf,
  type StreamedToken,
  type TokenLogprob,
} from "./request.ts";
import { chooseToken, likeliest, type Sampling } from "./sampler.ts";
import { TextStream } from "./text.ts";

export class Sequence {
  readonly request: GenerationRequest;
  readonly tokens: number[] = [];
  readonly logprobs: number[] = [];
  route: RouteReport | undefined;
  promptLogprobs: readonly (PromptLogprob | null)[] | undefined;
  prefillMs = 0;
  /** When its prompt had been read. */
  startedAt = 0;
  readonly #text: TextStream;
  readonly #random: Random;
  readonly #sampling: Sampling;
  readonly #penalties: Penalties | undefined;
  readonly #top: (readonly TokenLogprob[])[] = [];
  readonly #ends: ReadonlySet<number>;
  readonly #clock: Clock;
  #finish: GenerationResult["finishReason"] | undefined;
  #endedAt = 0;
  #reused = 0;

  /** @param eosTokenIds the backbone's, unless the request has its own */
  constructor(
    request: GenerationRequest,
    tokenizer: Tokenizer | undefined,
    eosTokenIds: readonly number[],
    clock: Clock = machineClock,
  ) {
    const { options } = request;
    this.request = request;
    this.#clock = clock;
    this.#text = new TextStream(tokenizer?.decodeStream({ continuation: true }), options.stop);
    this.#random = randomOf(options);
    const { temperature = 0, topK, topP, minP } = options;
    this.#sampling = { temperature, topK, topP, minP };
    this.#penalties = Penalties.of(options, request.prompt);
    this.#ends = new Set(options.eosTokenIds ?? eosTokenIds);
  }

  get finished(): boolean {
    return this.#finish !== undefined;
  }

  get finishReason(): GenerationResult["finishReason"] | undefined {
    return this.#finish;
  }

  /**
   * Chooses the next token. Both are float32 [V].
   * @throws GenerationError LOGITS_NOT_FINITE
   */
  advance(logits: Float32Array, logProbs: Float32Array): StreamedToken {
    const token = chooseToken(this.#penalties?.apply(logits) ?? logits, this.#sampling, this.#random);
    const logprob = logProbs[token]!;
    // One NaN among the logits makes every probability one.
    if (Number.isNaN(logprob)) throw logitsNotFinite();
    this.#penalties?.count(token);
    const { topLogprobs } = this.request.options;
    return this.accept(token, logprob, topLogprobs ? likeliest(logProbs, topLogprobs) : undefined);
  }

  /** Takes a token that was chosen elsewhere. */
  accept(token: number, logprob: number, top?: readonly TokenLogprob[]): StreamedToken {
    this.tokens.push(token);
    if (top) this.#top.push(top);
    this.logprobs.push(logprob);
    const ended = this.#ends.has(token);
    let text = ended ? "" : this.#text.push(token);
    if (ended || this.#text.stopped) this.#finish = "stop";
    else if (this.tokens.length >= this.request.options.maxNewTokens) this.#finish = "length";
    if (this.#finish) text += this.#end();
    return { token, text, logprob, ...(top && { top }) };
  }

  /** Its prompt has been read. */
  read(prefillMs: number, route: RouteReport | undefined, reused: number): void {
    this.#reused = reused;
    this.prefillMs = prefillMs;
    this.startedAt = this.#clock.now();
    this.route = route;
  }

  /** Ends it where no new token is asked for. */
  finish(): void {
    this.#finish = "length";
    this.#end();
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
      ...(this.request.options.topLogprobs && { topLogprobs: this.#top }),
      ...(this.promptLogprobs && { promptLogprobs: this.promptLogprobs }),
      finishReason: this.#finish ?? "cancelled",
      ...(this.route && { route: this.route }),
      ...(this.#reused > 0 && { cachedTokens: this.#reused }),
      timing: {
        prefillMs: this.prefillMs,
        decodeMs: this.startedAt === 0 ? 0 : Math.max(0, this.#endedAt - this.startedAt),
        steps: Math.max(0, this.tokens.length - 1),
      },
    };
  }

  #end(): string {
    this.#endedAt = this.#clock.now();
    return this.#text.end();
  }
}
