/** @file The engine: one backbone, any number of adapters, and everything that asks them for text or probabilities. */
import type { Adapter } from "../methods/index.ts";
import type { Backbone } from "../models/index.ts";
import { Batch } from "./batch.ts";
import { BufferPool } from "./cache.ts";
import { decodeSequences, type Emission, searchSequences } from "./decode.ts";
import { AdapterCache } from "./derived.ts";
import { GenerationError, Problems } from "./errors.ts";
import { SessionCache } from "./graphs.ts";
import type { Shared } from "./prefill.ts";
import { readPromptLogprobs } from "./prompt-logprobs.ts";
import {
  checkAdapter,
  checkRequests,
  checkTokens,
  type GenerationRequest,
  type GenerationResult,
  type RouteReport,
  type StreamedToken,
  tokenizerOf,
} from "./request.ts";
import { Runner } from "./runner.ts";
import { type ScoreOptions, scoreSequences } from "./score.ts";
import { batchesOf, type PromptGroup, paysToShare, scoreGroups } from "./score-shared.ts";
import { Sequence } from "./sequence.ts";

export interface EngineOptions {
  /** Most positions of a sequence; default: the backbone's longest context. */
  readonly context?: number;
  /** Positions a KV cache is made for at once; default: it starts with what the prompts need and grows. */
  readonly capacity?: number;
  /** Sequences (beams counted) that decode together; default 8. */
  readonly maxBatch?: number;
  /** Decode sessions kept for single routes of routed adapters; default 8, 0 for none. */
  readonly routeSessions?: number;
}

export interface ScoreResult {
  /** Natural logarithm of each continuation token's probability. */
  readonly logprobs: number[];
  /** Every continuation token is the most likely one. */
  readonly greedy: boolean;
}

export interface TokenInspection {
  /** Logits after the last token, float32 [V]. */
  readonly logits: Float32Array;
  /** Log-probabilities of tokens 1 … n - 1, each given those before it. */
  readonly logprobs: number[];
  /** What a routed adapter chooses with all tokens as the prompt. */
  readonly route?: RouteReport;
}

/**
 * Generates and scores with one backbone, bare or through adapters.
 *
 * An adapter is a part of the request; adapters of one method config share their sessions, so that a new one costs
 * nothing. Calls may overlap. Dispose the engine before the backbone, when no call is under way.
 */
export class Engine implements Disposable {
  readonly backbone: Backbone;
  readonly maxBatch: number;
  readonly #shared: Shared;
  #open = true;
  #calls = 0;

  private constructor(backbone: Backbone, options: EngineOptions) {
    this.backbone = backbone;
    this.maxBatch = options.maxBatch ?? 8;
    const sessions = new SessionCache(backbone, { routes: options.routeSessions ?? 8 });
    const runner = new Runner();
    this.#shared = {
      backbone,
      sessions,
      adapters: new AdapterCache(backbone, sessions, runner),
      pool: new BufferPool(),
      runner,
      context: Math.min(options.context ?? backbone.config.maxPositions, backbone.config.maxPositions),
      capacity: options.capacity,
    };
  }

  static create(backbone: Backbone, options: EngineOptions = {}): Engine {
    return new Engine(backbone, options);
  }

  /** Most tokens of a sequence under an adapter: the context, less the adapter's attention prefix. */
  async contextOf(adapter?: Adapter): Promise<number> {
    if (!adapter) return this.#shared.context;
    using _call = this.#enter();
    using lease = await this.#shared.sessions.lease({ kind: "prefill", adapter });
    return this.#shared.context - lease.prefix;
  }

  /** Number of open sessions; for metrics and tests. */
  get sessions(): number {
    return this.#shared.sessions.size;
  }

  /**
   * Generates token by token. The return value is the whole result; leaving the loop early frees everything. With
   * beams, all tokens come when the search is over.
   *
   * @throws InputError PROMPT_TOO_LONG, PROMPT_INVALID, SAMPLING_OPTIONS_INVALID, … before anything runs
   */
  async *stream(request: GenerationRequest): AsyncGenerator<StreamedToken, GenerationResult> {
    using _call = this.#enter();
    checkRequests([request], this.backbone, this.#shared.context);
    const sequence = this.#sequence(request);
    for await (const emissions of this.#run([sequence])) for (const { token } of emissions) yield token;
    return sequence.result();
  }

  /**
   * Generates for many requests, those of one adapter together in batches; results in the order of the requests, equal
   * to what each gives alone (up to float rounding, which depends on the batch's size).
   *
   * @param onProgress told how many requests are finished
   * @throws InputError naming every request that is wrong, before anything runs
   */
  async generate(
    requests: readonly GenerationRequest[],
    onProgress?: (finished: number, total: number) => void,
  ): Promise<GenerationResult[]> {
    using _call = this.#enter();
    checkRequests(requests, this.backbone, this.#shared.context);
    const sequences = requests.map((request) => this.#sequence(request));
    let finished = 0;
    for (const group of groupBy(sequences, ({ request }) => request.adapter)) {
      for (const alike of groupBy(group, ({ request }) => request.options.beams ?? 1)) {
        for await (const emissions of this.#run(alike)) {
          const ended = emissions.filter(({ sequence }, index) => sequence.finished && isLast(emissions, index)).length;
          finished += ended;
          if (ended > 0) onProgress?.(finished, requests.length);
        }
      }
    }
    return sequences.map((sequence) => sequence.result());
  }

  /**
   * Log-probabilities of continuations. A routed adapter chooses its experts by `prompt` alone, as in generation.
   * Several continuations of one prompt, the choices of a question, share the pass over it where that is less work.
   *
   * @throws InputError PROMPT_INVALID, PROMPT_TOO_LONG, ADAPTER_MISMATCH; RuntimeError RUN_CANCELLED
   */
  async score(
    rows: readonly { readonly prompt: readonly number[]; readonly continuation: readonly number[] }[],
    adapter?: Adapter,
    options: ScoreOptions = {},
  ): Promise<ScoreResult[]> {
    using _call = this.#enter();
    const problems = new Problems();
    checkAdapter(problems, "the score request", adapter, this.backbone);
    rows.forEach(({ prompt, continuation }, index) => {
      const { vocabSize } = this.backbone.config;
      checkTokens(problems, `prompt ${index}`, prompt, vocabSize);
      checkTokens(problems, `continuation ${index}`, continuation, vocabSize, { allowEmpty: true });
      // The last token is never read, only looked up.
      // The last token is asked for and never read.
      this.#checkLength(
        problems,
        `row ${index}`,
        prompt.length + continuation.length,
        Math.min(1, continuation.length),
      );
    });
    problems.throwIfAny("score");
    const { signal, onProgress } = options;
    const results = new Array<ScoreResult>(rows.length);
    const shared: (PromptGroup & { readonly rows: readonly number[] })[] = [];
    const single: number[] = [];
    for (const alike of groupBy([...rows.keys()], (row) => rows[row]!.prompt.join())) {
      const scored = alike.filter((row) => rows[row]!.continuation.length > 0);
      const continuations = scored.map((row) => rows[row]!.continuation);
      const group = { prompt: rows[alike[0]!]!.prompt, continuations, rows: scored };
      if (scored.length > 1 && paysToShare(group)) shared.push(group);
      else single.push(...scored);
      for (const row of alike) results[row] = { logprobs: [], greedy: true };
    }
    let finished = rows.length - single.length - shared.reduce((sum, group) => sum + group.rows.length, 0);
    for (const indices of batchesOf(shared)) {
      signal?.throwIfAborted();
      const groups = indices.map((index) => shared[index]!);
      const scores = await scoreGroups(this.#shared, adapter, groups, signal);
      groups.forEach((group, g) => {
        group.rows.forEach((row, i) => {
          results[row] = scores[g]![i]!;
        });
        finished += group.rows.length;
      });
      onProgress?.(finished, rows.length);
    }
    const sequences = single.map((row) => {
      const { prompt, continuation } = rows[row]!;
      return { tokens: [...prompt, ...continuation], promptLength: prompt.length, from: prompt.length };
    });
    const scores = await scoreSequences(this.#shared, adapter, sequences, {
      signal,
      onProgress: (done) => onProgress?.(finished + done, rows.length),
    });
    scores.forEach(({ logprobs, greedy }, i) => {
      results[single[i]!] = { logprobs, greedy };
    });
    return results;
  }

  /**
   * What the model says about a sequence of at least one token.
   *
   * @throws InputError PROMPT_INVALID, PROMPT_TOO_LONG, ADAPTER_MISMATCH
   */
  async inspectTokens(tokens: readonly number[], adapter?: Adapter): Promise<TokenInspection> {
    using _call = this.#enter();
    const problems = new Problems();
    checkAdapter(problems, "the request", adapter, this.backbone);
    checkTokens(problems, "the sequence", tokens, this.backbone.config.vocabSize);
    this.#checkLength(problems, "the sequence", tokens.length);
    problems.throwIfAny("inspect");
    const [scores] = await scoreSequences(this.#shared, adapter, [
      { tokens, promptLength: tokens.length, from: 1, last: true },
    ]);
    const { logprobs, last, route } = scores!;
    return { logits: last!.logits, logprobs, ...(route && { route }) };
  }

  /**
   * Says that an adapter's numbers have changed, or that it will not be used again: what the engine has derived from
   * them (DoRA's scales) is dropped. Calls that are under way end with the old ones.
   */
  forget(adapter: Adapter): void {
    this.#shared.adapters.forget(adapter);
  }

  /**
   * Frees sessions and buffers. A second call does nothing.
   * @throws GenerationError ENGINE_BUSY while a call is under way; cancel it and await it, or finish the stream, first
   */
  dispose(): void {
    if (!this.#open) return;
    if (this.#calls > 0) {
      const calls = this.#calls === 1 ? "1 call" : `${this.#calls} calls`;
      throw new GenerationError("ENGINE_BUSY", `the engine cannot be disposed while ${calls} run; await them first`);
    }
    this.#open = false;
    this.#shared.adapters[Symbol.dispose]();
    this.#shared.sessions[Symbol.dispose]();
    this.#shared.pool[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Marks a call as under way, to the end of the block that holds the result. */
  #enter(): Disposable {
    if (!this.#open) throw new GenerationError("ENGINE_CLOSED", "the engine was disposed; create a new one");
    this.#calls++;
    return { [Symbol.dispose]: () => this.#calls-- };
  }

  #checkLength(problems: Problems, label: string, length: number, unread = 0): void {
    const { context } = this.#shared;
    if (length - unread > context) {
      problems.add("PROMPT_TOO_LONG", `${label} has ${length} tokens, the context holds ${context}`);
    }
  }

  #sequence(request: GenerationRequest): Sequence {
    return new Sequence(request, tokenizerOf(this.backbone), this.backbone.config.eosTokenIds);
  }

  /** Runs sequences of one adapter and one number of beams to their ends; yields the tokens as they come. */
  async *#run(all: readonly Sequence[]): AsyncGenerator<readonly Emission[]> {
    const asked = all.filter(({ request, cancelled }) => request.promptLogprobs && !cancelled);
    const told = await readPromptLogprobs(this.#shared, asked);
    yield asked.flatMap((sequence, i) => (told[i] ? [{ sequence, token: told[i] }] : []));
    const sequences = all.filter(({ finished }) => !finished);
    const first = sequences[0];
    if (!first) return;
    const { options } = first.request;
    const beams = options.beams ?? 1;
    // Longest first: the cache is then large enough from the start, and no long one is left to run alone at the end.
    const queue = sequences.toSorted((a, b) => b.longest - a.longest);
    const rows = Math.max(beams, Math.min(queue.length * beams, this.maxBatch - (this.maxBatch % beams)));
    using batch = new Batch(this.#shared, rows, {
      prompt: Math.max(...queue.map(({ request }) => request.prompt.length)),
      longest: queue[0]!.longest,
    });
    if (beams === 1) yield* decodeSequences(batch, queue);
    else yield* searchSequences(batch, queue, beams, tokenizerOf(this.backbone), this.backbone.config.eosTokenIds);
  }
}

function groupBy<T, K>(items: readonly T[], keyOf: (item: T) => K): T[][] {
  const groups = new Map<K, T[]>();
  for (const item of items) {
    const key = keyOf(item);
    const group = groups.get(key);
    if (group) group.push(item);
    else groups.set(key, [item]);
  }
  return [...groups.values()];
}

/** Whether no later emission is of the same sequence. */
function isLast(emissions: readonly Emission[], index: number): boolean {
  return emissions[index + 1]?.sequence !== emissions[index]!.sequence;
}
