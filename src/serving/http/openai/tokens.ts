/** @file How tokens are named in answers, and the forms in which OpenAI tells their probabilities. */
import type { PromptLogprob, TokenLogprob } from "../../../generation/index.ts";
import type { Tokenizer } from "../../../models/index.ts";

/** A token with what was likeliest in its place. */
export interface TokenFacts extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
}

/** `/v1/completions`. */
export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: (number | null)[];
  readonly top_logprobs: (Record<string, number> | null)[];
  readonly text_offset: number[];
}

interface ChatToken {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: number[] | null;
}

/** `/v1/chat/completions`. */
export interface ChatTokenLogprob extends ChatToken {
  readonly top_logprobs: ChatToken[];
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** JSON has no infinity; what cannot be is very unlikely. */
const finite = (logprob: number): number => Math.max(logprob, -9999);

/** Spells tokens. */
export class TokenNames {
  readonly #tokenizer: Tokenizer | undefined;
  readonly #asIds: boolean;

  /** @param asIds `token_id:N`, as vLLM does on request; also where there is no tokenizer */
  constructor(tokenizer: Tokenizer | undefined, asIds = false) {
    this.#tokenizer = tokenizer;
    this.#asIds = asIds || tokenizer === undefined;
  }

  /** The text of a token; `bytes:\x…` where it is a part of a character, so that different tokens differ. */
  of(token: number): string {
    if (this.#asIds) return `token_id:${token}`;
    const bytes = this.bytes(token);
    try {
      return strict.decode(bytes);
    } catch {
      return `bytes:${[...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}`;
    }
  }

  bytes(token: number): Uint8Array {
    return this.#tokenizer?.bytesOf(token) ?? new Uint8Array();
  }

  chat({ token, logprob, top }: TokenFacts, count: number): ChatTokenLogprob {
    const tell = (one: TokenLogprob): ChatToken => ({
      token: this.of(one.token),
      logprob: finite(one.logprob),
      bytes: this.#tokenizer ? [...this.bytes(one.token)] : null,
    });
    return { ...tell({ token, logprob }), top_logprobs: top.slice(0, count).map(tell) };
  }
}

/** Lists the tokens of one choice, prompt and answer; `take` empties it for what a stream has sent. */
export class LogprobsWriter {
  readonly #names: TokenNames;
  readonly #decoder: { push(token: number): string } | undefined;
  #offset = 0;
  #list: CompletionLogprobs = empty();

  /** @param options.continuation the first token that is listed follows others */
  constructor(names: TokenNames, tokenizer: Tokenizer | undefined, options: { readonly continuation: boolean }) {
    this.#names = names;
    this.#decoder = tokenizer?.decodeStream(options);
  }

  /** @param facts null for a first token, which follows nothing */
  push(token: number, facts: TokenFacts | PromptLogprob | null): void {
    const list = this.#list;
    list.tokens.push(this.#names.of(token));
    list.token_logprobs.push(facts && finite(facts.logprob));
    list.top_logprobs.push(facts && this.#top(facts));
    list.text_offset.push(this.#offset);
    this.#offset += this.#decoder?.push(token).length ?? 0;
  }

  take(): CompletionLogprobs {
    const list = this.#list;
    this.#list = empty();
    return list;
  }

  /** The likeliest, and the token itself where it is none of them. */
  #top({ token, logprob, top }: TokenFacts): Record<string, number> {
    const all = top.some((one) => one.token === token) ? top : [...top, { token, logprob }];
    return Object.fromEntries(all.map((one) => [this.#names.of(one.token), finite(one.logprob)]));
  }
}

function empty(): CompletionLogprobs {
  return { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
}
