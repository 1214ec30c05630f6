/** @file Key-value cache on the CPU: one flat buffer, written in place by the sessions through views. */
import { type BackboneConfig, cacheWidth } from "../models/index.ts";
import { Tensor } from "../runtime/index.ts";
import { type Extent, grown, type KvCache, type LayerCache } from "./cache.ts";
import type { BufferPool } from "./pool.ts";

export class HostCache implements KvCache {
  readonly version = 0;
  readonly #pool: BufferPool;
  readonly #layers: number;
  readonly #heads: number;
  readonly #dim: number;
  #rows: number;
  #capacity: number;
  #buffer: Tensor | undefined;

  /** @param halves float16, two numbers in each float32; what is done here copies alone */
  constructor(config: BackboneConfig, pool: BufferPool, rows: number, capacity: number, halves: boolean) {
    this.#rows = rows;
    this.#pool = pool;
    this.#layers = config.numLayers;
    this.#heads = config.numKvHeads;
    this.#dim = cacheWidth(config, halves);
    this.#capacity = capacity;
    this.#buffer = pool.take(this.#blocks * rows * this.#rowSize(capacity));
  }

  get rows(): number {
    return this.#rows;
  }

  get capacity(): number {
    return this.#capacity;
  }

  layers(first: number, rows: number, from = 0, to = this.#layers): LayerCache[] {
    const shape = [rows, this.#heads, this.#capacity, this.#dim];
    return Array.from({ length: to - from }, (_, index) => ({
      key: this.#flat.view(this.#offset(2 * (from + index), first), shape),
      value: this.#flat.view(this.#offset(2 * (from + index) + 1, first), shape),
    }));
  }

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

  copyFrom(other: HostCache, to: number, end: number): void {
    const data = this.#flat.data as Float32Array;
    const source = other.#flat.data as Float32Array;
    const size = end * this.#dim;
    this.#eachHead(to, 0, (at, head) => {
      const from = head * other.#capacity * this.#dim; // of one row only: heads stand one after the other
      data.set(source.subarray(from, from + size), at);
    });
  }

  read(row: number, start: number, end: number): Tensor {
    const copy = Tensor.allocate("float32", [this.#blocks, this.#heads, end - start, this.#dim]);
    const size = (end - start) * this.#dim;
    const values = copy.data as Float32Array;
    const data = this.#flat.data as Float32Array;
    this.#eachHead(row, start, (at, head) => values.set(data.subarray(at, at + size), head * size));
    return copy;
  }

  write(row: number, start: number, end: number, copy: Tensor): void {
    const size = (end - start) * this.#dim;
    const values = copy.data as Float32Array;
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

  grow(needed: Extent, limit: Extent, used: Extent): void {
    if (this.holds(needed)) return;
    const { rows, positions: capacity } = grown({ rows: this.#rows, positions: this.#capacity }, needed, limit);
    const old = this.#flat;
    const source = old.data as Float32Array;
    const larger = this.#pool.take(this.#blocks * rows * this.#rowSize(capacity));
    const target = larger.data as Float32Array;
    const size = used.positions * this.#dim;
    for (let block = 0; block < this.#blocks; block++) {
      for (let head = 0; head < used.rows * this.#heads; head++) {
        const from = (block * this.#rows * this.#heads + head) * this.#capacity * this.#dim;
        target.set(source.subarray(from, from + size), (block * rows * this.#heads + head) * capacity * this.#dim);
      }
    }
    this.#pool.give(old);
    this.#buffer = larger;
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
