/** @file One request on its way through: its model, its admission, its tokens, and what they cost. */
import { setMaxListeners } from "node:events";
import type { FastifyReply, FastifyRequest } from "fastify";
import { InputError, sum } from "../../../base/index.ts";
import type { ChoiceToken, GenerationResult, RouteReport, SamplingOptions } from "../../../generation/index.ts";
import type { Adapter } from "../../../methods/index.ts";
import type { Tokenizer } from "../../../models/index.ts";
import { type AdapterRecord, qualified } from "../../adapters/index.ts";
import { ServingError } from "../../errors.ts";
import { RequestError } from "../errors.ts";
import type { Services } from "../services.ts";
import { mapped, merge } from "./merge.ts";

/** Longest token that is reckoned with, in characters: longer texts than this for each position cannot fit. */
const LONGEST_TOKEN = 256;

/** What all prompts of a request are answered with. */
export interface Ask {
  readonly prompts: readonly (readonly number[])[];
  /** Answers that are made of each prompt. */
  readonly candidates: number;
  readonly options: SamplingOptions;
  /** Whether answers get fewer new tokens where the context leaves no more; otherwise that is an error. */
  readonly fitted?: boolean;
  readonly promptLogprobs?: { readonly top: number };
}

/** A token of a prompt's answers. */
export interface AskedToken {
  /** Which prompt. */
  readonly index: number;
  readonly value: ChoiceToken;
}

export interface Usage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  /** Tokens that the prefix cache had. */
  readonly prompt_tokens_details: { readonly cached_tokens: number };
}

/** What `x_milora.routes` tells of a prompt. */
interface RoutesAnswer {
  /** The experts, in the order of the probabilities. */
  readonly experts: readonly string[];
  readonly layers: readonly { readonly chosen: readonly string[]; readonly probabilities: readonly number[] }[];
}

/** @throws InputError TOKENIZER_MISSING, PROMPT_TOO_LONG for a text that cannot fit */
export function encodePrompt({ engine }: Services, text: string, addSpecialTokens: boolean): number[] {
  const { config } = engine.backbone;
  if (!engine.backbone.hasTokenizer) {
    throw new InputError("TOKENIZER_MISSING", "prompt", "this model has none; send token ids");
  }
  if (text.length > config.maxPositions * LONGEST_TOKEN) {
    const problem = `has ${text.length} characters; the context holds ${config.maxPositions} tokens`;
    throw new InputError("PROMPT_TOO_LONG", "prompt", problem);
  }
  return engine.backbone.tokenizer.encode(text, { addSpecialTokens });
}

/** Aborted when the client leaves before its answer is whole, or the server stops. */
export function untilGone({ state }: Services, { raw }: FastifyReply): AbortSignal {
  const gone = new AbortController();
  raw.once("close", () => {
    if (!raw.writableFinished) gone.abort(new ServingError("REQUEST_TIMEOUT", 408, "the client has gone"));
  });
  const signal = AbortSignal.any([gone.signal, state.stop.signal]);
  setMaxListeners(0, signal); // one for each prompt that is under way
  return signal;
}

export class Call {
  readonly #services: Services;
  readonly #request: FastifyRequest;
  readonly record: AdapterRecord | undefined;
  readonly signal: AbortSignal;
  #experts: readonly string[] | undefined;

  private constructor(
    services: Services,
    request: FastifyRequest,
    reply: FastifyReply,
    record: AdapterRecord | undefined,
  ) {
    this.#services = services;
    this.#request = request;
    this.record = record;
    this.signal = untilGone(services, reply);
  }

  /** @throws InputError MODEL_NOT_FOUND */
  static async begin(services: Services, request: FastifyRequest, reply: FastifyReply, model: string): Promise<Call> {
    const record = await services.registry.resolve(request.principal, model);
    request.facts.adapter = record ? qualified(record) : services.base;
    return new Call(services, request, reply, record);
  }

  get tokenizer(): Tokenizer | undefined {
    const { backbone } = this.#services.engine;
    return backbone.hasTokenizer ? backbone.tokenizer : undefined;
  }

  /** @throws InputError TOKENIZER_MISSING, PROMPT_TOO_LONG for a text that cannot fit */
  encode(text: string, addSpecialTokens: boolean): number[] {
    return encodePrompt(this.#services, text, addSpecialTokens);
  }

  /**
   * Answers all prompts, some at a time; tokens as they come, results by prompt.
   *
   * Charges the tenant for what was read and generated, however it ends. The adapter stays in memory until then; it is
   * loaded only for who has a quota left.
   * @throws QUOTA_EXCEEDED, OVERLOADED, … at the first step; the reason of `signal` when that ended it
   */
  async *answer(ask: Ask): AsyncGenerator<AskedToken, (readonly GenerationResult[])[]> {
    const { store, registry, scheduler, config } = this.#services;
    const { principal, facts } = this.#request;
    const { record, signal } = this;
    const promptTokens = sum(ask.prompts.map(({ length }) => length));
    const most = ask.prompts.length * ask.candidates * (await this.#newTokens(ask));
    let generated = 0;
    let read = 0;
    using admission = await store.quotas.enter(principal, promptTokens + most);
    const claim = (): number => scheduler.served(principal.tenant);
    using lease = record && (await registry.lease(record, { signal, claim }));
    const adapter = lease?.adapter;
    const options = { ...ask.options, maxNewTokens: await this.#newTokens(ask, adapter) };
    this.#experts = adapter?.method.routing?.(adapter.config).experts;
    try {
      const { deadlineSeconds } = config.http;
      const tokens = merge(ask.prompts.length, scheduler.limits.maxBatch, (index) =>
        scheduler.submit({
          ...{ prompt: ask.prompts[index]!, options, n: ask.candidates, signal },
          ...{ tenant: principal.tenant, weight: principal.weight, scope: principal.tenant },
          ...(ask.promptLogprobs && { promptLogprobs: ask.promptLogprobs }),
          ...(adapter && { adapter, label: qualified(record!) }),
          ...(deadlineSeconds !== undefined && { deadlineMs: deadlineSeconds * 1000 }),
        }),
      );
      const results = yield* mapped(tokens, (token) => {
        read = promptTokens; // a first token: prompts are being read
        generated++;
        return token;
      });
      read = promptTokens;
      if (config.logPrompts) this.#logPrompts(ask, results);
      if (results.flat().some(({ finishReason }) => finishReason === "cancelled")) signal.throwIfAborted();
      return results;
    } finally {
      admission.settle(read + generated);
      facts.promptTokens = read;
      facts.completionTokens = generated;
      if (read > 0) {
        const used = { promptTokens: read, completionTokens: generated };
        store.usage.charge(principal, { adapter: record ? qualified(record) : "", ...used });
      }
    }
  }

  #logPrompts({ prompts }: Ask, results: readonly (readonly GenerationResult[])[]): void {
    const texts = prompts.map((prompt) => this.tokenizer?.decode(prompt, { skipSpecialTokens: false }) ?? prompt);
    const answers = results.map((all) => all.map(({ text }) => text));
    this.#services.log.info({ id: this.#request.id, prompts: texts, answers }, "prompts and answers");
  }

  /** The most new tokens of an answer. @param adapter some take a part of the context for themselves */
  async #newTokens({ prompts, options, fitted }: Ask, adapter?: Adapter): Promise<number> {
    if (!fitted) return options.maxNewTokens;
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    const room = this.#services.engine.contextOf(adapter) - longest;
    return Math.max(1, Math.min(options.maxNewTokens, room));
  }

  /**
   * What `x_milora` tells where the request asks for routes, in its body or by a header.
   * @param results by prompt; all answers to a prompt go the same way
   */
  extras(body: RoutesWish, results: readonly (readonly GenerationResult[])[]): { x_milora?: object } {
    if (!(body.x_milora?.routes ?? this.#request.headers["x-milora-routes"] === "true")) return {};
    const experts = this.#experts ?? [];
    const adapter = this.record ? { name: qualified(this.record), digest: this.record.digest } : null;
    const routes = results.map(([first]) => (first?.route ? routesAnswer(first.route, experts) : null));
    return { x_milora: { adapter, routes } };
  }
}

interface RoutesWish {
  readonly x_milora?: { readonly routes?: boolean | undefined } | undefined;
}

export function usageOf(
  prompts: readonly (readonly number[])[],
  results: readonly (readonly GenerationResult[])[],
): Usage {
  const prompt_tokens = sum(prompts.map(({ length }) => length));
  const completion_tokens = sum(results.flat().map(({ tokens }) => tokens.length));
  const total_tokens = prompt_tokens + completion_tokens;
  // All answers to a prompt come of one reading.
  const cached_tokens = sum(results.map(([first]) => first?.cachedTokens ?? 0));
  return { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details: { cached_tokens } };
}

/** The `n` likeliest answers, by log-probability per token; in their order where there are no more than `n`. */
export function best(results: readonly GenerationResult[], n: number): readonly GenerationResult[] {
  if (results.length <= n) return results;
  const mean = ({ logprobs }: GenerationResult): number => sum(logprobs) / Math.max(1, logprobs.length);
  return results.toSorted((a, b) => mean(b) - mean(a)).slice(0, n);
}

function routesAnswer(route: RouteReport, experts: readonly string[]): RoutesAnswer {
  return {
    experts,
    layers: route.experts.map((chosen, layer) => ({ chosen, probabilities: route.probabilities[layer] ?? [] })),
  };
}

/** @throws RequestError when more tokens are asked for than the server gives */
export function checkMost(asked: number, most: number | undefined, field: string): void {
  if (most !== undefined && asked > most) {
    throw new RequestError(`${field}: is ${asked}; this server gives at most ${most}`, field);
  }
}
