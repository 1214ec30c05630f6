/** @file A judge behind any OpenAI-compatible endpoint: asks side by side, again when that helps, and nothing twice. */
import { setTimeout as sleep } from "node:timers/promises";
import { InputError } from "../../base/index.ts";
import { JudgmentCache } from "./cache.ts";
import type { JudgeMessage } from "./prompts.ts";
import { attempt, type JudgeAnswer, type JudgeEndpoint } from "./protocol.ts";

export interface JudgeOptions extends JudgeEndpoint {
  /** Directory of judgements. */
  readonly cache: string;
  /** Requests that are under way at a time. Default 4. */
  readonly concurrency?: number | undefined;
  /** Attempts of one request. Default 8. */
  readonly attempts?: number | undefined;
  /** Pause before the second attempt, doubled before each further one. Default one second. */
  readonly backoffMs?: number | undefined;
  /** Told of each attempt that failed and is made again. */
  readonly onRetry?: ((why: string, pauseMs: number) => void) | undefined;
}

export interface AskOptions {
  /** Asks no more; what is under way is awaited and kept, since it is paid for. */
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** The longest pause of our own, and the longest that a server may ask for. */
const LONGEST_BACKOFF_MS = 60_000;
const LONGEST_ASKED_MS = 600_000;

export class Judge {
  readonly endpoint: JudgeEndpoint;
  readonly #options: JudgeOptions;
  readonly #cache: JudgmentCache;
  /** Newer models of OpenAI know the limit by another name; found out once. */
  #limit: "max_tokens" | "max_completion_tokens" = "max_tokens";
  #asked = 0;
  #promptTokens = 0;
  #completionTokens = 0;

  constructor(options: JudgeOptions) {
    this.endpoint = { ...options, url: judgeUrl(options.url) };
    this.#options = options;
    this.#cache = new JudgmentCache(options.cache, this.endpoint);
  }

  /** What was asked and paid for by this object; servers that tell no tokens count none. */
  get spent(): { readonly calls: number; readonly promptTokens: number; readonly completionTokens: number } {
    return { calls: this.#asked, promptTokens: this.#promptTokens, completionTokens: this.#completionTokens };
  }

  /** Requests that there is no judgement of yet, each once. */
  missing(requests: readonly (readonly JudgeMessage[])[]): (readonly JudgeMessage[])[] {
    const open = new Map<string, readonly JudgeMessage[]>();
    for (const messages of requests) {
      const key = this.#cache.keyOf(messages);
      if (!open.has(key) && this.#cache.get(key) === undefined) open.set(key, messages);
    }
    return [...open.values()];
  }

  /**
   * The judge's answers, in the order of the requests. Each is on disk as soon as it is there.
   * @throws InputError JUDGE_KEY_REFUSED, JUDGE_NOT_FOUND, JUDGE_REQUEST_REFUSED, JUDGE_ANSWER_INVALID,
   *   JUDGE_UNAVAILABLE; the signal's reason
   */
  async ask(requests: readonly (readonly JudgeMessage[])[], options: AskOptions = {}): Promise<JudgeAnswer[]> {
    const { signal, onProgress } = options;
    const open = this.missing(requests);
    const total = open.length;
    let done = 0;
    onProgress?.(done, total);
    const stop = new AbortController();
    const ended = signal ? AbortSignal.any([signal, stop.signal]) : stop.signal;
    const work = async () => {
      for (let messages = open.shift(); messages && !ended.aborted; messages = open.shift()) {
        const answer = await this.#askOne(messages, ended);
        if (answer === undefined) return;
        this.#cache.put(this.#cache.keyOf(messages), messages, answer);
        onProgress?.(++done, total);
      }
    };
    const workers = Array.from({ length: this.#options.concurrency ?? 4 }, () =>
      work().catch((error: unknown) => {
        stop.abort(error); // no worker begins another request
      }),
    );
    await Promise.all(workers);
    ended.throwIfAborted();
    return requests.map((messages) => this.#cache.get(this.#cache.keyOf(messages))!);
  }

  /** Undefined when it was ended between two attempts. */
  async #askOne(messages: readonly JudgeMessage[], ended: AbortSignal): Promise<JudgeAnswer | undefined> {
    const { attempts = 8, backoffMs = 1000, onRetry } = this.#options;
    for (let tried = 1; ; tried++) {
      const limit = this.#limit;
      const outcome = await attempt(this.endpoint, messages, limit);
      if (outcome.kind === "answer") {
        this.#asked++;
        this.#promptTokens += outcome.answer.usage?.promptTokens ?? 0;
        this.#completionTokens += outcome.answer.usage?.completionTokens ?? 0;
        return outcome.answer;
      }
      if (outcome.kind === "parameter" && outcome.name === "max_tokens" && limit === "max_tokens") {
        this.#limit = "max_completion_tokens";
        continue;
      }
      if (outcome.kind !== "again") throw outcome.error;
      const { why, pauseMs: asked = 0 } = outcome;
      const own = Math.min(backoffMs * 2 ** (tried - 1), LONGEST_BACKOFF_MS) * (0.5 + Math.random() / 2);
      if (tried >= attempts || asked > LONGEST_ASKED_MS) {
        const last = tried >= attempts ? `${tried} attempts, the last: ` : "";
        const wait = asked > LONGEST_ASKED_MS ? `; it asks to wait ${Math.round(asked / 60_000)} minutes` : "";
        const problem = `${last}${why}${wait}; what was judged is kept, and the same command goes on`;
        throw new InputError("JUDGE_UNAVAILABLE", this.endpoint.url, problem);
      }
      const pause = Math.max(asked, own);
      onRetry?.(why, pause);
      await sleep(pause, undefined, { signal: ended }).catch(() => undefined);
      if (ended.aborted) return undefined;
    }
  }
}

/**
 * The base of an endpoint without what follows it.
 * @throws InputError FLAG_INVALID
 */
export function judgeUrl(text: string): string {
  const refuse = (problem: string) => new InputError("FLAG_INVALID", "--judge-url", problem);
  const example = "such as https://api.openai.com/v1 or http://localhost:8000/v1";
  if (!URL.canParse(text)) throw refuse(`is no address, ${example}`);
  const url = new URL(text);
  if (url.protocol !== "https:" && url.protocol !== "http:")
    throw refuse(`must begin with https:// or http://, ${example}`);
  if (url.username || url.password) throw refuse("holds a password; keys come from the environment (--judge-key-env)");
  if (url.search || url.hash) throw refuse(`must end with its path, ${example}`);
  return `${url.origin}${url.pathname}`.replace(/\/+$/, "").replace(/\/chat\/completions$/, "");
}

/** The key that the environment has for an endpoint: that of `variable`, else MILORA_JUDGE_KEY, and OpenAI's own for OpenAI. */
export function judgeKey(url: string, variable?: string): string | undefined {
  const { env } = process;
  if (variable !== undefined) {
    if (!env[variable]) throw new InputError("FLAG_INVALID", "--judge-key-env", `the environment has no ${variable}`);
    return env[variable];
  }
  // Never sent anywhere else: whoever sets it has OpenAI in mind.
  const openai = new URL(judgeUrl(url)).host === "api.openai.com" ? env.OPENAI_API_KEY : undefined;
  return env.MILORA_JUDGE_KEY || openai || undefined;
}
