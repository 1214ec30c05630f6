/** @file What routers do with prompts, and what they attend to: the pass that generation begins with, and nothing after it. */
import type { Adapter } from "../methods/index.ts";
import { ATTENTION } from "./attention.ts";
import type { KvCache } from "./cache.ts";
import type { PreparedAdapter } from "./derived.ts";
import { Problems } from "./errors.ts";
import { REPORT } from "./graphs.ts";
import type { MethodOutput } from "./pass.ts";
import { PromptReading } from "./reading.ts";
import { checkAdapter, checkLength, checkTokens, type RouteReport } from "./request.ts";
import { readRoute } from "./routes.ts";
import type { ScorePiece } from "./score-rows.ts";
import type { Shared } from "./shared.ts";
import { planSlices, type Slice } from "./slices.ts";

/** What the routers of an adapter did with a prompt. */
export interface Exploration {
  readonly route: RouteReport;
  /**
   * For each layer the weights with which its router pooled the tokens, [T], of sum 1. Missing where they are not asked
   * for, and of a pooler that has none.
   */
  readonly attention?: readonly (readonly number[])[];
}

export interface ExploreOptions {
  /** Also tell what the routers attend to. Default: not. */
  readonly attention?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Told how many prompts are finished. */
  readonly onProgress?: ((finished: number, total: number) => void) | undefined;
}

/** Throws one `InputError` with everything that is wrong. */
export function checkExploration(
  { backbone, context }: Pick<Shared, "backbone" | "context">,
  prompts: readonly (readonly number[])[],
  adapter: Adapter,
): void {
  const problems = new Problems();
  checkAdapter(problems, "the exploration", adapter, backbone);
  for (const [index, tokens] of prompts.entries()) {
    const label = prompts.length === 1 ? "the prompt" : `prompt ${index}`;
    checkTokens(problems, label, tokens, backbone.config.vocabSize);
    checkLength(problems, label, tokens.length, context);
  }
  if (!adapter.method.routing) {
    const text = `${adapter.method.name} does not choose experts for a prompt; take an adapter of a method that does`;
    problems.add("NOT_ROUTED", text);
  }
  problems.throwIfAny("explore");
}

/** What several prompts take that are read in one pass, from its first slice to its last. */
interface Reading extends Disposable {
  readonly pass: PromptReading;
}

/** Exploring prompts, cut into pieces; `results` is whole when every piece has run. Dispose it however it ends. */
export class ExplorePlan implements Disposable {
  readonly results: Exploration[];
  readonly pieces: readonly ScorePiece[];
  readonly #shared: Shared;
  readonly #adapter: Adapter;
  readonly #attention: boolean;
  #reading: Reading | undefined;

  /** @param limit most tokens, padding included, that one piece reads, or as much work where a longer prompt is sliced */
  constructor(
    shared: Shared,
    prompts: readonly (readonly number[])[],
    adapter: Adapter,
    { attention = false, limit }: { readonly attention?: boolean | undefined; readonly limit: number },
  ) {
    this.#shared = shared;
    this.#adapter = adapter;
    this.#attention = attention;
    this.results = new Array<Exploration>(prompts.length);
    this.pieces = batchesOf(prompts, limit).flatMap((batch) => this.#piecesOf(prompts, batch, limit));
  }

  [Symbol.dispose](): void {
    this.#reading?.[Symbol.dispose]();
    this.#reading = undefined;
  }

  /** The slices of a pass, of which the last one brings the results. */
  #piecesOf(all: readonly (readonly number[])[], batch: readonly number[], limit: number): ScorePiece[] {
    const prompts = batch.map((index) => all[index]!);
    const width = Math.max(...prompts.map(({ length }) => length));
    const layers = this.#shared.backbone.config.numLayers;
    const size = { rows: prompts.length, tokens: { from: 0, to: width }, layers, divisible: false };
    const slices = planSlices(size, limit);
    const share = (slice: Slice): number => (slice.layers ? (slice.layers.to - slice.layers.from) / layers : 1);
    return slices.map((slice, at) => ({
      rows: at === slices.length - 1 ? prompts.length : 0,
      tokens: Math.ceil(prompts.reduce((sum, { length }) => sum + length, 0) * share(slice)),
      run: async (signal) => {
        this.#reading ??= await this.#begin(prompts, limit);
        const { pass } = this.#reading;
        if (!(await pass.advance(signal))) return;
        for (const [row, index] of batch.entries()) {
          this.results[index] = this.#resultOf(prompts[row]!, pass.outputsOf(row));
        }
        this[Symbol.dispose]();
      },
    }));
  }

  async #begin(prompts: readonly (readonly number[])[], sliceTokens: number): Promise<Reading> {
    let prepared: PreparedAdapter | undefined;
    let cache: KvCache | undefined;
    try {
      prepared = await this.#shared.adapters.prepare(this.#adapter);
      const width = Math.max(...prompts.map(({ length }) => length));
      cache = this.#shared.pool.cache(this.#shared.backbone.config, prompts.length, prepared.prefix + width);
      const adapter = prepared;
      const pass = new PromptReading(
        this.#shared,
        prompts.map((tokens) => ({ adapter, tokens })),
        {
          positions: prompts.map(({ length }, row) => [row, length - 1]),
          ...{ cache, first: 0, shares: false, sliceTokens, watched: this.#attention },
        },
      );
      const held = [pass, cache, prepared];
      return {
        pass,
        [Symbol.dispose]() {
          for (const one of held) one[Symbol.dispose]();
        },
      };
    } catch (error) {
      cache?.[Symbol.dispose]();
      prepared?.[Symbol.dispose]();
      throw error;
    }
  }

  #resultOf({ length }: readonly number[], outputs: ReadonlyMap<string, MethodOutput>): Exploration {
    const { report } = readRoute(this.#adapter, outputs)!;
    const attention = outputs.get(REPORT + ATTENTION);
    if (!attention) return { route: report };
    const [, layers, width] = attention.shape as [number, number, number];
    const rowOf = (layer: number) => Array.from(attention.data.subarray(layer * width, layer * width + length));
    return { route: report, attention: Array.from({ length: layers }, (_, layer) => rowOf(layer)) };
  }
}

/** Prompts of similar length together, in passes of at most `limit` tokens; a longer one by itself. */
function batchesOf(prompts: readonly (readonly number[])[], limit: number): number[][] {
  const order = [...prompts.keys()].sort((a, b) => prompts[a]!.length - prompts[b]!.length);
  const batches: number[][] = [];
  for (const index of order) {
    const last = batches.at(-1);
    if (last && prompts[index]!.length * (last.length + 1) <= limit) last.push(index);
    else batches.push([index]);
  }
  return batches;
}
