/** @file Key-value caches: what a batch asks of one, how they grow, and how sessions get them. */
import { type Backbone, readsHalves } from "../models/index.ts";
import { type Binding, type DeviceName, operators, type Tensor } from "../runtime/index.ts";
import type { Span } from "./slices.ts";

/** Keys and values of a layer, float32 [rows, kvHeads, S, headDim] each: views that whoever asked for them disposes. */
export interface LayerCache {
  readonly key: Tensor;
  readonly value: Tensor;
}

export type KvPrecision = "float32" | "float16";

/** Whether keys and values are float16: elsewhere nothing could read them. @param precision see `EngineOptions.kvPrecision` */
export function holdsHalves({ config, weights }: Backbone, device: DeviceName, precision?: KvPrecision): boolean {
  if (device !== "cpu" || operators() === undefined) return false;
  return precision === undefined ? weights.kind !== "float32" && readsHalves(config) : precision === "float16";
}

/** Sequences, and positions of each. */
export interface Extent {
  readonly rows: number;
  readonly positions: number;
}

/** Positions a cache grows by at least. */
const STEP = 64;

/**
 * Cache of up to `rows` sequences with `capacity` positions each. Positions at and after a sequence's length may hold
 * anything: attention never looks at them before they are written.
 */
export interface KvCache extends Disposable {
  /** Sequences there is room for. */
  readonly rows: number;
  /** Positions a sequence may take. */
  readonly capacity: number;
  /** Another one than before when views made before are of no use any more, but for `grow`. */
  readonly version: number;
  /** Keys and values of layers `from` … `to` - 1 (default: all), for the rows from `first` on. */
  layers(first: number, rows: number, from?: number, to?: number): LayerCache[];
  /** Copies positions `start` … `end` - 1 of row `from`, and perhaps others, to the same positions of row `to`. */
  copyRow(from: number, to: number, start: number, end: number): void;
  /** Makes the first `end` positions of row `to` those of row 0 of another cache of this kind. */
  copyFrom(other: KvCache, to: number, end: number): void;
  /** A copy of positions `start` … `end` - 1 of a row on the CPU, float32 [layers · 2, kvHeads, end - start, headDim]. */
  read(row: number, start: number, end: number): Tensor;
  /** Fills positions `start` … `end` - 1 of a row with what `read` gave. */
  write(row: number, start: number, end: number, values: Tensor): void;
  holds(extent: Extent): boolean;
  /**
   * Makes room for what is `needed`: by half as much again as there is, so that growing sequences are copied seldom, but
   * not beyond `limit`, nor for much more than twice what is needed, whatever there was room for. The first `used` rows
   * and positions are kept. Views made before are of no use after.
   */
  grow(needed: Extent, limit: Extent, used: Extent): void;
}

/** What a cache of `has` grows to, see `KvCache.grow`. */
export function grown(has: Extent, needed: Extent, limit: Extent): Extent {
  const more = (has: number, need: number, most: number, step: number): number =>
    need <= has ? has : Math.max(need, Math.min(Math.ceil((has * 1.5) / step) * step, most));
  let rows = more(has.rows, needed.rows, limit.rows, 1);
  let positions = more(has.positions, needed.positions, limit.positions, STEP);
  const most = 2 * needed.rows * Math.max(needed.positions, STEP);
  positions = Math.max(needed.positions, Math.min(positions, Math.floor(most / rows)));
  rows = Math.max(needed.rows, Math.min(rows, Math.floor(most / positions)));
  return { rows, positions };
}

/** Positions to begin with: the whole need when it is small, else room for the beginning of a long answer. */
export function initialCapacity(prompt: number, needed: number): number {
  return Math.min(needed, Math.ceil((prompt + 256) / STEP) * STEP);
}

/** Binds rows of a cache as past and present, for some layers or all; returns the views made for it. */
export function bindCache(binding: Binding, cache: KvCache, first: number, rows: number, layers?: Span): Tensor[] {
  const from = layers?.from ?? 0;
  return cache.layers(first, rows, from, layers?.to).flatMap(({ key, value }, index) => {
    const layer = from + index;
    binding
      .input(`past.${layer}.key`, key)
      .output(`present.${layer}.key`, key)
      .input(`past.${layer}.value`, value)
      .output(`present.${layer}.value`, value);
    return [key, value];
  });
}
