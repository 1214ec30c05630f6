/** @file What all batches of an engine share, and reading prompts at once. */
import type { Backbone } from "../models/index.ts";
import type { Tensor } from "../runtime/index.ts";
import type { BufferPool } from "./cache.ts";
import type { AdapterCache, PreparedAdapter } from "./derived.ts";
import type { Lease, SessionCache } from "./graphs.ts";
import type { PrefixCache } from "./prefix-cache.ts";
import { PromptReading, type ReadingOptions } from "./reading.ts";
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
  /** What was read of earlier prompts, where that is kept. */
  readonly prefixes?: PrefixCache | undefined;
}

/** Most prompt tokens, padding included, that one prefill run reads (a single longer prompt is read alone). */
export const PREFILL_TOKENS = 2048;

export interface ReadOptions extends ReadingOptions {
  readonly signal?: AbortSignal | undefined;
  /** Where an output of the method goes, or undefined not to have it. The shape's rows are those of the prompts. */
  output(name: string, shape: readonly number[]): Tensor | undefined;
}

/** Reads right-padded sequences at once. Returns float32 [positions, d], to be disposed by the caller. */
export async function readPrompts(
  shared: Shared,
  lease: Lease,
  adapter: PreparedAdapter,
  sequences: readonly (readonly number[])[],
  { signal, output, ...options }: ReadOptions,
): Promise<Tensor> {
  const reading = new PromptReading(shared, lease, adapter, sequences, options);
  try {
    while (!(await reading.advance(signal)));
    for (const [name, { shape, data }] of reading.outputs)
      (output(name, shape)?.data as Float32Array | undefined)?.set(data);
    return reading.hidden;
  } catch (error) {
    reading[Symbol.dispose]();
    throw error;
  }
}
