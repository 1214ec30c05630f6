/** @file A pass over prompts that fills their rows of the KV cache, in one run or slice by slice. */
import { steadyLength } from "../models/index.ts";
import { RuntimeError, Tensor } from "../runtime/index.ts";
import { bindCache, type KvCache } from "./cache.ts";
import { type MethodOutput, type Pass, type PassPrompt, passOf } from "./pass.ts";
import { type CachedPrompt, isCausal } from "./prefix-cache.ts";
import type { Shared } from "./shared.ts";
import { planSlices, type Slice, type Span } from "./slices.ts";

/** A sequence to be read under its adapter. */
export interface ReadingPrompt extends PassPrompt {
  /** How many of its tokens count as the prompt, for a method that reads prompts; default all. */
  readonly promptLength?: number | undefined;
  /** What was read is shared with prompts of the same scope. */
  readonly scope?: string | undefined;
}

export interface ReadingOptions {
  /** Row and position of every hidden state that is wanted. */
  readonly positions: readonly (readonly [row: number, position: number])[];
  readonly cache: KvCache;
  /** Row of the cache that the first prompt takes. */
  readonly first: number;
  /** Whether prompts are looked for among those read before, and kept. */
  readonly shares: boolean;
  /** About how many tokens a slice reads; default: all is one. */
  readonly sliceTokens?: number | undefined;
  /** Also reports what routers attend to, see `PrefillPart`; the prompts are of one adapter. */
  readonly watched?: boolean;
}

/** What a run of the session gives besides keys and values. */
type Results = Map<string, Tensor>;

/**
 * Reads right-padded sequences, of one adapter or of several that take items: `advance` until it says that all is read. Of
 * a single sequence, what is known of it is not read again.
 */
export class PromptReading implements Disposable {
  /** Tokens of a single prompt that are known already. */
  readonly reused: number;
  readonly #shared: Shared;
  readonly #prompts: readonly ReadingPrompt[];
  readonly #options: ReadingOptions;
  readonly #pass: Pass;
  /** Places of the attention prefix before each sequence. */
  readonly #prefix: number;
  readonly #width: number;
  readonly #slices: Slice[];
  readonly #hidden: Tensor;
  readonly #outputs = new Map<string, MethodOutput>();
  /** The residual stream after the last stage, float32 [rows, T, d]. */
  #stream: Tensor | undefined;

  constructor(shared: Shared, prompts: readonly ReadingPrompt[], options: ReadingOptions) {
    const { config } = shared.backbone;
    this.#shared = shared;
    this.#prompts = prompts;
    this.#options = options;
    this.#pass = passOf(prompts, options.watched);
    this.#prefix = prompts[0]!.adapter.prefix;
    this.#width = Math.max(...prompts.map(({ tokens }) => tokens.length));
    this.#hidden = Tensor.allocate("float32", [options.positions.length, config.hiddenSize]);
    const rows = prompts.length;
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

  /** What the methods' graph gave for a prompt, by the names of its outputs, when all is read. */
  outputsOf(row: number): Map<string, MethodOutput> {
    const own = new Map<string, MethodOutput>();
    for (const [name, output] of this.#outputs) {
      const part = this.#pass.outputOf(row, output);
      if (part) own.set(name, part);
    }
    return own;
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
    return isCausal(this.#prompts[0]!.adapter) && this.#isSteady;
  }

  /** Whether rotations are those of a shorter sequence, too: all of a pass are rotated as the longest is. */
  get #isSteady(): boolean {
    return this.#prefix + this.#width <= steadyLength(this.#shared.backbone.config);
  }

  /** Runs some tokens through some layers. */
  async #run(tokens: Span, layers: Span | undefined, signal: AbortSignal | undefined): Promise<void> {
    const { cache, first, positions } = this.#options;
    const rows = this.#prompts.length;
    const length = tokens.to - tokens.from;
    const wanted = [...positions.keys()].filter((i) => tokens.from <= positions[i]![1] && positions[i]![1] < tokens.to);
    const made: Tensor[] = [];
    const results: Results = new Map();
    const whole = layers === undefined && tokens.from === 0;
    const part = whole ? undefined : { ...(layers && { layers }), continued: tokens.from > 0 };
    using lease = await this.#shared.sessions.lease(this.#pass.program(part));
    const { session } = lease;
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
      made.push(...this.#pass.bind(session, binding, tokens));
      made.push(...bindCache(binding, cache, first, rows, layers));
      const sizes: Record<string, number> = { B: rows, T: length, R: Math.max(1, asked.length) };
      for (const { name, shape } of session.outputs) {
        if (name.startsWith("present.")) continue;
        const tensor = Tensor.allocate(
          "float32",
          shape.map((size) => (typeof size === "number" ? size : sizes[size]!)),
          name === "next" ? this.#shared.device : "cpu",
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
    const rows = this.#prompts.length;
    const length = to - from;
    // Attention is told that every sequence is as long as the longest. It is causal, so no real token sees padding,
    // and what padding leaves in the cache is overwritten before a sequence gets there. Told the true lengths, it
    // would leave numbers of padded positions undefined, and a NaN there would reach the router's sums.
    const end = this.#prefix + to;
    return {
      stream: () => this.#stream,
      tokens: () => {
        const ids = new BigInt64Array(rows * length); // padded with token 0
        this.#prompts.forEach(({ tokens }, row) => {
          for (let t = from; t < Math.min(to, tokens.length); t++) ids[row * length + t - from] = BigInt(tokens[t]!);
        });
        return Tensor.from("int64", [rows, length], ids);
      },
      promptMask: () => {
        const mask = new Float32Array(rows * length);
        this.#prompts.forEach(({ tokens, promptLength: prompt = tokens.length }, row) => {
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
    const { adapter, tokens, promptLength, scope } = this.#prompts[row]!;
    return { adapter: adapter.adapter, scope, tokens: tokens.slice(0, promptLength), prefix: this.#prefix };
  }

  /** Fills the row of a single sequence with what is known; returns how many tokens that spares. */
  #restore(): number {
    const { cache, first, positions, shares } = this.#options;
    const { prefixes } = this.#shared;
    if (!prefixes || !shares) return 0;
    if (this.#prompts.length > 1) {
      for (const _ of this.#prompts) prefixes.missed();
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
    const { positions } = this.#options;
    return (
      positions.length === this.#prompts.length &&
      positions.every(([row, at], i) => row === i && at === this.#prompts[row]!.tokens.length - 1) &&
      this.#prompts.every(({ promptLength }) => promptLength === undefined)
    );
  }

  #keep(): void {
    const { cache, first, shares } = this.#options;
    const { prefixes } = this.#shared;
    if (!prefixes || !shares) return;
    const width = this.#shared.backbone.config.hiddenSize;
    for (const row of this.#prompts.keys()) {
      const query = this.#query(row);
      if (isCausal(query)) {
        if (this.#isSteady) prefixes.keep(query, cache, first + row);
      } else if (this.#wantsLast && (this.#prompts.length === 1 || this.#isSteady)) {
        const hidden = (this.#hidden.data as Float32Array).slice(row * width, (row + 1) * width);
        prefixes.keepWhole(query, cache, first + row, { hidden, outputs: this.outputsOf(row) });
      }
    }
  }
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
