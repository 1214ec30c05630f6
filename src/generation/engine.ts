/** @file The engine: one backbone, any number of adapters, and everything that asks them for text or probabilities. */
import type { Adapter } from "../methods/index.ts";
import { type Backbone, cacheWidth } from "../models/index.ts";
import { type DeviceName, requireDevice } from "../runtime/index.ts";
import { Batch } from "./batch.ts";
import { holdsHalves, type KvPrecision } from "./cache.ts";
import { decodeJobs } from "./decode.ts";
import { AdapterCache, prefixOf } from "./derived.ts";
import { GenerationError, Problems } from "./errors.ts";
import { checkExploration, type Exploration, type ExploreOptions, ExplorePlan } from "./explore.ts";
import { SessionCache } from "./graphs.ts";
import { groupBy } from "./group.ts";
import { type Emission, Job, jobContext } from "./job.ts";
import type { AdapterPrecision } from "./packed-adapter.ts";
import { BufferPool } from "./pool.ts";
import { PrefixCache, type PrefixCacheOptions, type PrefixCacheStats } from "./prefix-cache.ts";
import { readPromptLogprobs } from "./prompt-logprobs.ts";
import {
  checkAdapter,
  checkLength,
  checkRequests,
  checkTokens,
  type GenerationRequest,
  type GenerationResult,
  type RouteReport,
  type StreamedToken,
} from "./request.ts";
import { Runner } from "./runner.ts";
import { type ScoreOptions, scoreSequences } from "./score.ts";
import { checkScoreRows, ScorePlan, type ScoreResult, type ScoreRow } from "./score-rows.ts";
import { PREFILL_TOKENS, type Shared } from "./shared.ts";

export interface EngineOptions {
  /**
   * Where everything runs; default: cpu. On another device the weights, the adapters and the key-value cache are in its
   * memory, and calls hold up the event loop while it computes.
   */
  readonly device?: DeviceName | undefined;
  /** Most positions of a sequence; default: the backbone's longest context. */
  readonly context?: number;
  /** Positions a KV cache is made for at once; default: it starts with what the prompts need and grows. */
  readonly capacity?: number;
  /** Sequences (beams counted) that decode together; default 8. */
  readonly maxBatch?: number;
  /** Decode sessions kept for single routes of routed adapters; default 8, 0 for none. */
  readonly routeSessions?: number;
  /**
   * How generation holds the A and B of adapters under milora's operators: float16 halves what a step reads of them, int8
   * (a scale for each rank) quarters it.
   * Default: int8 over int4 weights, float16 over int8, float32 over float32.
   */
  readonly adapterPrecision?: AdapterPrecision | undefined;
  /**
   * How keys and values are held on the CPU under milora's operators: float16 halves what a step reads of them, and their
   * memory. Default: float16 over int4 and int8 weights, where attention reads that as it is; else float32.
   */
  readonly kvPrecision?: KvPrecision | undefined;
  /** Keeps what was read of prompts for others that begin alike, or are the same under routed adapters. Default: not. */
  readonly prefixCache?: PrefixCacheOptions | undefined;
}

export interface TokenInspection {
  /** Logits after the last token, float32 [V]. */
  readonly logits: Float32Array;
  /** Log-probabilities of tokens 1 … n - 1, each given those before it. */
  readonly logprobs: number[];
  /** What a routed adapter chooses with all tokens as the prompt. */
  readonly route?: RouteReport;
}

/** An engine's insides, for the rest of this room; it counts as in use until they are given back. */
export interface OpenEngine extends Disposable {
  readonly shared: Shared;
}
export let openEngine: (engine: Engine) => OpenEngine;

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

  static {
    openEngine = (engine) => ({ ...engine.#enter(), shared: engine.#shared });
  }

  private constructor(backbone: Backbone, options: EngineOptions) {
    this.backbone = backbone;
    this.maxBatch = options.maxBatch ?? 8;
    const device = options.device ?? "cpu";
    requireDevice(device);
    const halves = holdsHalves(backbone, device, options.kvPrecision);
    const sessions = new SessionCache(backbone, { routes: options.routeSessions ?? 8, device, halves });
    const runner = new Runner();
    this.#shared = {
      backbone,
      device,
      sessions,
      adapters: new AdapterCache(backbone, sessions, runner, options.adapterPrecision),
      pool: new BufferPool(2, device, halves),
      runner,
      context: Math.min(options.context ?? backbone.config.maxPositions, backbone.config.maxPositions),
      capacity: options.capacity,
      prefixes: options.prefixCache && new PrefixCache(backbone, options.prefixCache),
    };
  }

  /** @throws RuntimeError DEVICE_UNAVAILABLE */
  static create(backbone: Backbone, options: EngineOptions = {}): Engine {
    return new Engine(backbone, options);
  }

  /** Most tokens of a sequence under an adapter: the context, less the adapter's attention prefix. */
  contextOf(adapter?: Adapter): number {
    return this.#shared.context - prefixOf(adapter);
  }

  /** Number of open sessions; for metrics and tests. */
  get sessions(): number {
    return this.#shared.sessions.size;
  }

  /** Memory of key-value caches, of buffers that wait for their next use too. */
  get kvBytes(): number {
    return this.#shared.pool.bytes;
  }

  /** Of a position of a sequence, in all layers. */
  get kvBytesPerPosition(): number {
    const { numLayers, numKvHeads } = this.backbone.config;
    return 2 * 4 * numLayers * numKvHeads * cacheWidth(this.backbone.config, this.#shared.pool.halves);
  }

  /** What the prefix cache has done and holds, where there is one. */
  get prefixCache(): PrefixCacheStats | undefined {
    return this.#shared.prefixes?.stats;
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
    const job = this.#job(request);
    for await (const emissions of this.#run([job])) for (const { token } of emissions) yield token;
    return job.results()[0]!;
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
    const jobs = requests.map((request) => this.#job(request));
    for (const alike of groupBy(jobs, ({ request }) => request.adapter).values()) {
      for await (const emissions of this.#run(alike)) {
        if (!emissions.some(({ job }) => job.over)) continue;
        onProgress?.(jobs.filter(({ over }) => over).length, requests.length);
      }
    }
    return jobs.map((job) => job.results()[0]!);
  }

  /**
   * Log-probabilities of continuations. A routed adapter chooses its experts by `prompt` alone, as in generation.
   * Several continuations of one prompt, the choices of a question, share the pass over it where that is less work.
   *
   * @throws InputError PROMPT_INVALID, PROMPT_TOO_LONG, ADAPTER_MISMATCH; RuntimeError RUN_CANCELLED
   */
  async score(rows: readonly ScoreRow[], adapter?: Adapter, options: ScoreOptions = {}): Promise<ScoreResult[]> {
    using _call = this.#enter();
    checkScoreRows(rows, adapter, this.backbone, this.#shared.context);
    const { signal, onProgress, scope } = options;
    const { pieces, results } = new ScorePlan(this.#shared, rows, adapter, PREFILL_TOKENS, scope);
    let finished = rows.length - pieces.reduce((sum, piece) => sum + piece.rows, 0);
    for (const piece of pieces) {
      signal?.throwIfAborted();
      await piece.run(signal);
      finished += piece.rows;
      onProgress?.(finished, rows.length);
    }
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
    checkLength(problems, "the sequence", tokens.length, this.#shared.context);
    problems.throwIfAny("inspect");
    const [scores] = await scoreSequences(this.#shared, adapter, [
      { tokens, promptLength: tokens.length, from: 1, last: true },
    ]);
    const { logprobs, last, route } = scores!;
    return { logits: last!.logits, logprobs, ...(route && { route }) };
  }

  /**
   * What the routers of an adapter do with prompts: the same numbers that generation reports of them, and what they attend
   * to where `options.attention` asks for it.
   *
   * @throws InputError NOT_ROUTED, PROMPT_INVALID, PROMPT_TOO_LONG, ADAPTER_MISMATCH; RuntimeError RUN_CANCELLED
   */
  async explore(
    prompts: readonly (readonly number[])[],
    adapter: Adapter,
    options: ExploreOptions = {},
  ): Promise<Exploration[]> {
    using _call = this.#enter();
    checkExploration(this.#shared, prompts, adapter);
    const { attention, signal, onProgress } = options;
    using plan = new ExplorePlan(this.#shared, prompts, adapter, { attention, limit: PREFILL_TOKENS });
    let finished = 0;
    for (const piece of plan.pieces) {
      signal?.throwIfAborted();
      await piece.run(signal);
      finished += piece.rows;
      onProgress?.(finished, prompts.length);
    }
    return plan.results;
  }

  /**
   * Says by what digest an adapter's content is known (its files'), for the prefix cache: which would else compute one from
   * all of its numbers, 23 ms for the 38 MiB of rank 32 on a 135M model.
   */
  identify(adapter: Adapter, digest: string): void {
    this.#shared.prefixes?.identify(adapter, digest);
  }

  /**
   * Makes what requests with an adapter take (its numbers, packed), and keeps it until `forget`. Else the first of them does, and those that decode
   * wait for it. Arrays that `adapter.values` gave may be empty afterwards (`Adapter.closeValues`): for who leaves the
   * adapter to the engine.
   * @returns the memory of what was made, in bytes
   */
  async prepare(adapter: Adapter): Promise<number> {
    using _call = this.#enter();
    using prepared = await this.#shared.adapters.prepare(adapter, true);
    if (prepared.packed) adapter.closeValues();
    return prepared.bytes;
  }

  /**
   * Says that an adapter's numbers have changed, or that it will not be used again: what the engine has derived from
   * them (DoRA's scales) is dropped. Calls that are under way end with the old ones.
   */
  forget(adapter: Adapter): void {
    this.#shared.adapters.forget(adapter);
    this.#shared.prefixes?.forget(adapter);
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
    this.#shared.prefixes?.[Symbol.dispose]();
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

  #job(request: GenerationRequest): Job {
    return new Job(request, jobContext(this.backbone));
  }

  /** Runs jobs of one adapter to their ends; yields the tokens as they come. */
  async *#run(all: readonly Job[]): AsyncGenerator<readonly Emission[]> {
    const asked = all.filter(({ request, cancelled }) => request.promptLogprobs && !cancelled);
    if (asked.length > 0) {
      yield await readPromptLogprobs(this.#shared, asked);
      for (const { error } of asked) if (error !== undefined) throw error;
    }
    // Longest first: the cache is then large enough from the start, and no long one is left to run alone at the end.
    const queue = all.filter(({ over }) => !over).sort((a, b) => b.longest - a.longest);
    if (queue.length === 0) return;
    const rows = queue.reduce((sum, { width }) => sum + width, 0);
    const widest = Math.max(...queue.map(({ width }) => width));
    const batch = new Batch(this.#shared, Math.max(widest, Math.min(rows, this.maxBatch)), {
      prompt: Math.max(...queue.map(({ request }) => request.prompt.length)),
      longest: queue[0]!.longest,
    });
    yield* decodeJobs(batch, queue);
  }
}
