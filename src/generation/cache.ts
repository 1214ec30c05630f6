/** @file Key-value cache of a batch: one flat buffer, written in place by the sessions, from a pool of reused buffers. */
import { type BackboneConfig, cacheHeadDim } from "../models/index.ts";
import { type Binding, Tensor } from "../runtime/index.ts";
import type { Span } from "./slices.ts";

/** Keys and values of a layer, float32 [rows, kvHeads, S, headDim] each: views that whoever asked for them disposes. */
export interface LayerCache {
  readonly key: Tensor;
  readonly value: Tensor;
}

/** Buffers that wait for their next batch, so that a generation neither asks the system for memory nor clears any. */
export class BufferPool implements Disposable {
  readonly #free: Tensor[] = [];
  readonly #keep: number;
  #bytes = 0;

  /** @param keep how many unused buffers are kept */
  constructor(keep = 2) {
    this.#keep = keep;
  }

  /** Bytes of all buffers, those in use and those that wait. */
  get bytes(): number {
    return this.#bytes;
  }

  /** A float32 buffer [n], n ≥ `size`, with whatever was in it before. */
  take(size: number): Tensor {
    let best = -1;
    for (const [index, buffer] of this.#free.entries()) {
      // A much larger one stays for a batch that needs it.
      if (buffer.size < size || buffer.size > 4 * size) continue;
      if (best < 0 || buffer.size < this.#free[best]!.size) best = index;
    }
    if (best >= 0) return this.#free.splice(best, 1)[0]!;
    const buffer = Tensor.allocate("float32", [size]);
    this.#bytes += buffer.byteLength;
    return buffer;
  }

  give(buffer: Tensor): void {
    this.#free.push(buffer);
    if (this.#free.length > this.#keep) {
      this.#free.sort((a, b) => b.size - a.size);
      this.#drop(this.#free.pop()!);
    }
  }

  [Symbol.dispose](): void {
    for (const buffer of this.#free.splice(0)) this.#drop(buffer);
  }

  #drop(buffer: Tensor): void {
    this.#bytes -= buffer.byteLength;
    buffer.dispose();
  }
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
export class KvCache implements Disposable {
  readonly #pool: BufferPool;
  readonly #layers: number;
  readonly #heads: number;
  readonly #dim: number;
  #rows: number;
  #capacity: number;
  #buffer: Tensor | undefined;

  constructor(config: BackboneConfig, pool: BufferPool, rows: number, capacity: number) {
    this.#rows = rows;
    this.#pool = pool;
    this.#layers = config.numLayers;
    this.#heads = config.numKvHeads;
    this.#dim = cacheHeadDim(config);
    this.#capacity = capacity;
    this.#buffer = pool.take(this.#blocks * rows * this.#rowSize(capacity));
  }

  /** Sequences there is room for. */
  get rows(): number {
    return this.#rows;
  }

  /** Positions a sequence may take. */
  get capacity(): number {
    return this.#capacity;
  }

  /** Keys and values of layers `from` … `to` - 1, for the rows from `first` on. */
  layers(first: number, rows: number, from = 0, to = this.#layers): LayerCache[] {
    const shape = [rows, this.#heads, this.#capacity, this.#dim];
    return Array.from({ length: to - from }, (_, index) => ({
      key: this.#flat.view(this.#offset(2 * (from + index), first), shape),
      value: this.#flat.view(this.#offset(2 * (from + index) + 1, first), shape),
    }));
  }

  /** Copies positions `start` … `end` - 1 of row `from` to the same positions of row `to`. */
  copyRow(from: number, to: number, start: number, end: number): void {
    if (from === to || end <= start) return;
    const data = this.#flat.data as Float32Array;
    const head = this.#capacity * this.#dim;
    for (let block = 0; block < this.#blocks; block++) {
      const source = this.#offset(block, from);
      const target = this.#offset(block, to);
      for (let h = 0; h < this.#heads; h++) {
        const at = h * head + start * this.#dim;
        data.copyWithin(target + at, source + at, source + h * head + end * this.#dim);
      }
    }
  }

  /** Makes the first `end` positions of row `to` those of another cache's row 0. */
  copyFrom(other: KvCache, to: number, end: number): void {
    const data = this.#flat.data as Float32Array;
    const source = other.#flat.data as Float32Array;
    const size = end * this.#dim;
    this.#eachHead(to, 0, (at, head) => {
      const from = head * other.#capacity * this.#dim; // of one row only: heads stand one after the other
      data.set(source.subarray(from, from + size), at);
    });
  }

  /** A copy of positions `start` … `end` - 1 of a row, float32 [layers · 2, kvHeads, end - start, headDim]. */
  read(row: number, start: number, end: number): Float32Array {
    const size = (end - start) * this.#dim;
    const values = new Float32Array(this.#blocks * this.#heads * size);
    const data = this.#flat.data as Float32Array;
    this.#eachHead(row, start, (at, head) => values.set(data.subarray(at, at + size), head * size));
    return values;
  }

  /** Fills positions `start` … `end` - 1 of a row with what `read` gave. */
  write(row: number, start: number, end: number, values: Float32Array): void {
    const size = (end - start) * this.#dim;
    const data = this.#flat.data as Float32Array;
    this.#eachHead(row, start, (at, head) => data.set(values.subarray(head * size, (head + 1) * size), at));
  }

  /** Visits where position `start` of a row is in the buffer, for every head of keys and values. */
  #eachHead(row: number, start: number, visit: (at: number, head: number) => void): void {
    for (let block = 0; block < this.#blocks; block++) {
      for (let h = 0; h < this.#heads; h++) {
        const at = this.#offset(block, row) + (h * this.#capacity + start) * this.#dim;
        visit(at, block * this.#heads + h);
      }
    }
  }

  holds({ rows, positions }: Extent): boolean {
    return rows <= this.#rows && positions <= this.#capacity;
  }

  /**
   * Makes room for what is `needed`: by half as much again as there is, so that growing sequences are copied seldom, but
   * not beyond `limit`, nor for much more than twice what is needed, whatever there was room for. The first `used` rows
   * and positions are kept. Views made before are of the old buffer.
   */
  grow(needed: Extent, limit: Extent, used: Extent): void {
    if (this.holds(needed)) return;
    const more = (has: number, need: number, most: number, step: number): number =>
      need <= has ? has : Math.max(need, Math.min(Math.ceil((has * 1.5) / step) * step, most));
    let rows = more(this.#rows, needed.rows, limit.rows, 1);
    let capacity = more(this.#capacity, needed.positions, limit.positions, STEP);
    const most = 2 * needed.rows * Math.max(needed.positions, STEP);
    capacity = Math.max(needed.positions, Math.min(capacity, Math.floor(most / rows)));
    rows = Math.max(needed.rows, Math.min(rows, Math.floor(most / capacity)));
    const old = this.#flat;
    const source = old.data as Float32Array;
    const grown = this.#pool.take(this.#blocks * rows * this.#rowSize(capacity));
    const target = grown.data as Float32Array;
    const size = used.positions * this.#dim;
    for (let block = 0; block < this.#blocks; block++) {
      for (let head = 0; head < used.rows * this.#heads; head++) {
        const from = (block * this.#rows * this.#heads + head) * this.#capacity * this.#dim;
        target.set(source.subarray(from, from + size), (block * rows * this.#heads + head) * capacity * this.#dim);
      }
    }
    this.#pool.give(old);
    this.#buffer = grown;
    this.#rows = rows;
    this.#capacity = capacity;
  }

  [Symbol.dispose](): void {
    if (this.#buffer) this.#pool.give(this.#buffer);
    this.#buffer = undefined;
  }

  /** Keys and values of all layers. */
  get #blocks(): number {
    return 2 * this.#layers;
  }

  get #flat(): Tensor {
    if (!this.#buffer) throw new Error("the key-value cache was disposed");
    return this.#buffer;
  }

  #rowSize(capacity: number): number {
    return this.#heads * capacity * this.#dim;
  }

  #offset(block: number, row: number): number {
    return (block * this.#rows + row) * this.#rowSize(this.#capacity);
  }
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
