/** @file Reading prompts: one run over right-padded sequences that fills their rows of the KV cache. */
import type { Backbone } from "../models/index.ts";
import { type Binding, Tensor } from "../runtime/index.ts";
import type { BufferPool, KvCache } from "./cache.ts";
import type { AdapterCache, PreparedAdapter } from "./derived.ts";
import type { Lease, SessionCache } from "./graphs.ts";
import type { Runner } from "./runner.ts";

/** What every batch of an engine shares. */
export interface Shared {
  readonly backbone: Backbone;
  readonly sessions: SessionCache;
  readonly adapters: AdapterCache;
  readonly pool: BufferPool;
  readonly runner: Runner;
  /** Most positions of a sequence. */
  readonly context: number;
  /** Fixed number of positions a cache is made for, or undefined to let it grow. */
  readonly capacity: number | undefined;
}

/** Most prompt tokens, padding included, that one prefill run reads (a single longer prompt is read alone). */
export const PREFILL_TOKENS = 2048;

/** Binds rows of a cache as past and present; returns the views made for it. */
export function bindCache(binding: Binding, cache: KvCache, first: number, rows: number): Tensor[] {
  return cache.layers(first, rows).flatMap(({ key, value }, layer) => {
    binding
      .input(`past.${layer}.key`, key)
      .output(`present.${layer}.key`, key)
      .input(`past.${layer}.value`, value)
      .output(`present.${layer}.value`, value);
    return [key, value];
  });
}

export interface ReadOptions {
  /** Row and position of every hidden state that is wanted. */
  readonly positions: readonly (readonly [row: number, position: number])[];
  readonly cache: KvCache;
  /** Row of the cache that the first prompt takes. */
  readonly first: number;
  /** How many tokens of each row count as its prompt (for a method that reads prompts); default all. */
  readonly promptLengths?: readonly number[];
  readonly signal?: AbortSignal | undefined;
  /** Where an output of the method goes, or undefined not to have it. The shape's rows are those of the prompts. */
  output(name: string, shape: readonly number[]): Tensor | undefined;
}

/** Runs a prefill over right-padded sequences. Returns float32 [positions, d], to be disposed by the caller. */
export async function readPrompts(
  shared: Shared,
  { session, prefix }: Lease,
  adapter: PreparedAdapter,
  sequences: readonly (readonly number[])[],
  { positions, cache, first, promptLengths, signal, output }: ReadOptions,
): Promise<Tensor> {
  const rows = sequences.length;
  const width = Math.max(...sequences.map((sequence) => sequence.length));
  const tokens = new BigInt64Array(rows * width); // padded with token 0
  const promptMask = new Float32Array(rows * width);
  sequences.forEach((sequence, row) => {
    sequence.forEach((token, t) => {
      tokens[row * width + t] = BigInt(token);
    });
    promptMask.fill(1, row * width, row * width + (promptLengths?.[row] ?? sequence.length));
  });
  const inputs: Tensor[] = [];
  const input = (tensor: Tensor): Tensor => {
    inputs.push(tensor);
    return tensor;
  };
  const hidden = Tensor.allocate("float32", [positions.length, shared.backbone.config.hiddenSize]);
  let done = false;
  try {
    using binding = session.bind();
    const rowIndices = BigInt64Array.from(positions, ([row, position]) => BigInt(row * width + position));
    // Attention is told that every sequence is as long as the longest. It is causal, so no real token sees padding,
    // and what padding leaves in the cache is overwritten before a sequence gets there. Told the true lengths, it
    // would leave numbers of padded positions undefined, and a NaN there would reach the router's sums.
    const feeds: Record<string, () => Tensor> = {
      tokens: () => Tensor.from("int64", [rows, width], tokens),
      rows: () => Tensor.from("int64", [positions.length], rowIndices),
      promptMask: () => Tensor.from("float32", [rows, width], promptMask),
      lastPositions: () => Tensor.from("int32", [rows], new Int32Array(rows).fill(prefix + width - 1)),
      totalLength: () => Tensor.scalar("int32", prefix + width),
    };
    for (const { name } of session.inputs) {
      const make = feeds[name];
      if (make) binding.input(name, input(make()));
    }
    adapter.bind(session, binding);
    inputs.push(...bindCache(binding, cache, first, rows));
    binding.output("hidden", hidden);
    for (const { name, shape } of session.outputs) {
      const target = output(name, [rows, ...shape.slice(1).map(Number)]);
      if (target) binding.output(name, target);
    }
    await shared.runner.run(session, binding, rows * width, signal);
    done = true;
    return hidden;
  } finally {
    for (const tensor of inputs) tensor.dispose();
    if (!done) hidden.dispose();
  }
}
