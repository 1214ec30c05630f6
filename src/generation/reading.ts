/** @file A pass over prompts that fills their rows of the KV cache, in one run or slice by slice. */
import { steadyLength } from "../models/index.ts";
import { RuntimeError, Tensor } from "../runtime/index.ts";
import { bindCache, type KvCache } from "./cache.ts";
import type { PreparedAdapter } from "./derived.ts";
import type { Lease } from "./graphs.ts";
import type { Shared } from "./prefill.ts";
import { type CachedPrompt, isCausal } from "./prefix-cache.ts";
import { planSlices, type Slice, type Span } from "./slices.ts";

export interface ReadingOptions {
  /** Row and position of every hidden state that is wanted. */
  readonly positions: readonly (readonly [row: number, position: number])[];
  readonly cache: KvCache;
  /** Row of the cache that the first prompt takes. */
  readonly first: number;
  /** How many tokens of each row count as its prompt (for a method that reads prompts); default all. */
  readonly promptLengths?: readonly number[] | undefined;
  /** For whom prompts are looked for among those read before, and kept. Default: neither is done. */
  readonly sharing?: { readonly scope: string | undefined } | undefined;
  /** About how many tokens a slice reads; default: all is one. */
  readonly sliceTokens?: number | undefined;
}

/** An output of a method's graph for some prompts, float32 [rows, layers, …]. */
export interface MethodOutput {
  readonly shape: readonly number[];
  readonly data: Float32Array;
}

/** What a run of the session gives besides keys and values. */
type Results = Map<string, Tensor>;

/**
 * Reads right-padded sequences of one adapter: `advance` until it says that all is read. Of a single sequence, what is
 * known of it is not read again.
 */
export class PromptReading implements Disposable {
  /** Tokens of a single prompt that are known already. */
  readonly reused: number;
  readonly #shared: Shared;
  readonly #lease: Lease;
  readonly #adapter: PreparedAdapter;
  readonly #sequences: readonly (readonly number[])[];
  readonly #options: ReadingOptions;
  readonly #width: number;
  readonly #slices: Slice[];
  readonly #hidden: Tensor;
  readonly #outputs = new Map<string, MethodOutput>();
  /** The residual stream after the last stage, float32 [rows, T, d]. */
  #stream: Tensor | undefined;

  /** @param lease of the adapter's prefill */
  constructor(
    shared: Shared,
    lease: Lease,
    adapter: PreparedAdapter,
    sequences: readonly (readonly number[])[],
    options: ReadingOptions,
  ) {
    const { config } = shared.backbone;
    this.#shared = shared;
    this.#lease = lease;
    this.#adapter = adapter;
    this.#sequences = sequences;
    this.#options = options;
    this.#width = Math.max(...sequences.map((sequence) => sequence.length));
    this.#hidden = Tensor.allocate("float32", [options.positions.length, config.hiddenSize]);
    const rows = sequences.length;
    const from = this.#restore();
    this.reused = from;
    const size = { rows, tokens: { from, to: this.#width }, layers: config.numLayers };
    const { sliceTokens = Number.POSITIVE_INFINITY } = options;
    const divisible = rows === 1 && this.#divisible;
    this.#slices = from === this.#width ? [] : planSlices({ ...size, divisible }, sliceTokens);
  }

  /** Slices that are still to be read. */
  get left(): number {
    return this.#slices.length;
  }

  /** Hidden states that were wanted, float32 [positions, d], when all is read. Goes with the reading. */
  get hidden(): Tensor {
    return this.#hidden;
  }

  /** What the method's graph gave, by the names of its outputs, when all is read. */
  get outputs(): ReadonlyMap<string, MethodOutput> {
    return this.#outputs;
  }

  /**
   * Reads the next slice; true when nothing is left.
   * @throws RuntimeError RUN_CANCELLED; it is of no use then
   */
  async advance(signal?: AbortSignal): Promise<boolean> {
    const slice = this.#slices[0];
    if (!slice) return true;
    if (signal?.aborted) throw new RuntimeError("RUN_CANCELLED", "the prompt's pass was cancelled");
    if (slice.layers) {
      for (let from = slice.layers.from; from < slice.layers.to; from++) {
        await this.#run(slice.tokens, { from, to: from + 1 }, signal);
      }
    } else await this.#run(slice.tokens, undefined, signal);
    this.#slices.shift();
    if (this.#slices.length > 0) return false;
    this.#keep();
    return true;
  }

  [Symbol.dispose](): void {
    this.#hidden.dispose();
    this.#stream?.dispose();
  }

  /** Whether tokens may be read without those after them: by the method, and by rotations that depend on the length. */
  get #divisible(): boolean {
    return isCausal(this.#adapter) && this.#lease.prefix + this.#width <= steadyLength(this.#shared.backbone.config);
  }

  /** Runs some tokens through some layers. */
  async #run(tokens: Span, layers: Span | undefined, signal: AbortSignal | undefined): Promise<void> {
    const { cache, first, positions } = this.#options;
    const rows = this.#sequences.length;
    const length = tokens.to - tokens.from;
    const wanted = [...positions.keys()].filter((i) => tokens.from <= positions[i]![1] && positions[i]![1] < tokens.to);
    const made: Tensor[] = [];
    const results: Results = new Map();
    const whole = layers === undefined && tokens.from === 0;
    const part = { ...(layers && { layers }), continued: tokens.from > 0 };
    const { adapter } = this.#adapter;
    using lease = whole ? undefined : await this.#shared.sessions.lease({ kind: "prefill", adapter, part });
    const { session } = lease ?? this.#lease;
    try {
      using binding = session.bind();
      const asked = wanted.map((i) => positions[i]!);
      const feeds = this.#feeds(tokens, asked.length > 0 ? asked : [[0, tokens.from]]);
      for (const { name } of session.inputs) {
        const feed = feeds[name]?.();
        if (!feed) continue;
        if (feed !== this.#stream) made.push(feed);
        binding.input(name, feed);
      }
      this.#adapter.bind(session, binding);
      made.push(...bindCache(binding, cache, first, rows, layers));
      const sizes: Record<string, number> = { B: rows, T: length, R: Math.max(1, asked.length) };
      for (const { name, shape } of session.outputs) {
        if (name.startsWith("present.")) continue;
        const tensor = Tensor.allocate(
          "float32",
          shape.map((size) => (typeof size === "number" ? size : sizes[size]!)),
        );
        results.set(name, tensor);
        binding.output(name, tensor);
      }
      await this.#shared.runner.run(session, binding, rows * length, signal);
    } catch (error) {
      for (const tensor of results.values()) tensor.dispose();
      throw error;
    } finally {
      for (const tensor of made) tensor.dispose();
    }
    this.#take(results, wanted);
  }

  /** What a run of some tokens is fed with, by the names of the graph's inputs. */
  #feeds(
    { from, to }: Span,
    positions: readonly (readonly [row: number, position: number])[],
  ): Record<string, () => Tensor | undefined> {
    const rows = this.#sequences.length;
    const length = to - from;
    // Attention is told that every sequence is as long as the longest. It is causal, so no real token sees padding,
    // and what padding leaves in the cache is overwritten before a sequence gets there. Told the true lengths, it
    // would leave numbers of padded positions undefined, and a NaN there would reach the router's sums.
    const end = this.#lease.prefix + to;
    return {
      stream: () => this.#stream,
      tokens: () => {
        const ids = new BigInt64Array(rows * length); // padded with token 0
        this.#sequences.forEach((sequence, row) => {
          for (let t = from; t < Math.min(to, sequence.length); t++)
            ids[row * length + t - from] = BigInt(sequence[t]!);
        });
        return Tensor.from("int64", [rows, length], ids);
      },
      promptMask: () => {
        const mask = new Float32Array(rows * length);
        this.#sequences.forEach((sequence, row) => {
          const prompt = this.#options.promptLengths?.[row] ?? sequence.length;
          mask.fill(1, row * length, row * length + Math.max(0, Math.min(prompt, to) - from));
        });
        return Tensor.from("float32", [rows, length], mask);
      },
      rows: () => {
        const indices = BigInt64Array.from(positions, ([row, position]) => BigInt(row * length + position - from));
        return Tensor.from("int64", [positions.length], indices);
      },
      lastPositions: () => Tensor.from("int32", [rows], new Int32Array(rows).fill(end - 1)),
      totalLength: () => Tensor.scalar("int32", end),
    };
  }

  /** Takes over what a run gave. @param wanted which of the positions it was asked for */
  #take(results: Results, wanted: readonly number[]): void {
    this.#stream?.dispose();
    this.#stream = undefined;
    for (const [name, tensor] of results) {
      if (name === "next") {
        this.#stream = tensor;
        continue;
      }
      const data = tensor.data as Float32Array;
      if (name === "hidden") {
        const width = tensor.shape[1]!;
        const target = this.#hidden.data as Float32Array;
        wanted.forEach((i, at) => {
          target.set(data.subarray(at * width, (at + 1) * width), i * width);
        });
      } else {
        this.#outputs.set(name, joined(this.#outputs.get(name), { shape: tensor.shape, data: data.slice() }));
      }
      tensor.dispose();
    }
  }

  #query(row: number): CachedPrompt {
    const sequence = this.#sequences[row]!;
    const tokens = sequence.slice(0, this.#options.promptLengths?.[row]);
    const scope = this.#options.sharing?.scope;
    return { adapter: this.#adapter.adapter, scope, tokens, prefix: this.#lease.prefix };
  }

  /** Fills the row of a single sequence with what is known; returns how many tokens that spares. */
  #restore(): number {
    const { cache, first, positions, sharing } = this.#options;
    const { prefixes } = this.#shared;
    if (!prefixes || !sharing) return 0;
    if (this.#sequences.length > 1) {
      for (const _ of this.#sequences) prefixes.missed();
      return 0;
    }
    // Positions that are asked for have to be read.
    if (this.#divisible)
      return prefixes.restore(this.#query(0), Math.min(...positions.map(([, at]) => at)), cache, first);
    const read = this.#wantsLast ? prefixes.restoreWhole(this.#query(0), cache, first) : undefined;
    if (!read) return 0;
    (this.#hidden.data as Float32Array).set(read.hidden);
    for (const [name, output] of read.outputs) this.#outputs.set(name, output);
    return this.#width;
  }

  /** Whether the last token of each prompt is all that is asked for. */
  get #wantsLast(): boolean {
    const { positions, promptLengths } = this.#options;
    return (
      promptLengths === undefined &&
      positions.length === this.#sequences.length &&
      positions.every(([row, at], i) => row === i && at === this.#sequences[row]!.length - 1)
    );
  }

  #keep(): void {
    const { cache, first, sharing } = this.#options;
    const { prefixes } = this.#shared;
    if (!prefixes || !sharing) return;
    const steady = steadyLength(this.#shared.backbone.config);
    for (const row of this.#sequences.keys()) {
      const query = this.#query(row);
      if (isCausal(query)) {
        // All of a batch are rotated as the longest is.
        if (this.#lease.prefix + this.#width <= steady) prefixes.keep(query, cache, first + row);
      } else if (this.#wantsLast && (this.#sequences.length === 1 || this.#lease.prefix + this.#width <= steady)) {
        const hidden = rowOf({ shape: this.#hidden.shape, data: this.#hidden.data as Float32Array }, row).data;
        const outputs = new Map([...this.#outputs].map(([name, output]) => [name, rowOf(output, row)]));
        prefixes.keepWhole(query, cache, first + row, { hidden, outputs });
      }
    }
  }
}

/** One row of an output, as a copy. */
function rowOf({ shape: [rows, ...rest], data }: MethodOutput, row: number): MethodOutput {
  const size = data.length / rows!;
  return { shape: [1, ...rest], data: data.slice(row * size, (row + 1) * size) };
}

/** An output with that of further layers behind it. */
function joined(before: MethodOutput | undefined, after: MethodOutput): MethodOutput {
  if (!before) return after;
  const [rows, layers, ...rest] = before.shape as [number, number, ...number[]];
  const sizes = [before.data.length / rows, after.data.length / rows] as const;
  const data = new Float32Array(before.data.length + after.data.length);
  for (let row = 0; row < rows; row++) {
    const at = row * (sizes[0] + sizes[1]);
    data.set(before.data.subarray(row * sizes[0], (row + 1) * sizes[0]), at);
    data.set(after.data.subarray(row * sizes[1], (row + 1) * sizes[1]), at + sizes[0]);
  }
  return { shape: [rows, layers + after.shape[1]!, ...rest], data };
}
