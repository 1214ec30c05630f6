/** @file What all batches of an engine share. */
import type { Backbone } from "../models/index.ts";
import type { DeviceName } from "../runtime/index.ts";
import type { AdapterCache } from "./derived.ts";
import type { SessionCache } from "./graphs.ts";
import type { BufferPool } from "./pool.ts";
import type { PrefixCache } from "./prefix-cache.ts";
import type { Runner } from "./runner.ts";

/** What every batch of an engine shares. */
export interface Shared {
  readonly backbone: Backbone;
  /** Where everything runs, and where weights, adapters and key-value caches are. */
  readonly device: DeviceName;
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
