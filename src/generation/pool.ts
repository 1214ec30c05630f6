/** @file Where key-value caches come from: buffers that are used again, or the memory of a device. */
import type { BackboneConfig } from "../models/index.ts";
import { type DeviceName, Tensor } from "../runtime/index.ts";
import type { KvCache } from "./cache.ts";
import { DeviceCache, RowCopier } from "./device-cache.ts";
import { HostCache } from "./host-cache.ts";

/** Buffers that wait for their next batch, so that a generation neither asks the system for memory nor clears any. */
export class BufferPool implements Disposable {
  readonly #free: Tensor[] = [];
  readonly #keep: number;
  readonly #copier: RowCopier | undefined;
  readonly halves: boolean;
  #bytes = 0;

  /**
   * @param keep how many unused buffers are kept
   * @param device where caches are; only on the CPU they are made of buffers of the pool
   * @param halves caches on the CPU are float16
   */
  constructor(keep = 2, device: DeviceName = "cpu", halves = false) {
    this.halves = halves;
    this.#keep = keep;
    this.#copier = device === "cpu" ? undefined : new RowCopier(device);
  }

  /** A cache for `rows` sequences of `capacity` positions each, which grows. */
  cache(config: BackboneConfig, rows: number, capacity: number): KvCache {
    return this.#copier
      ? new DeviceCache(config, this.#copier, rows, capacity)
      : new HostCache(config, this, rows, capacity, this.halves);
  }

  /** Bytes of all buffers, those in use and those that wait. */
  get bytes(): number {
    return this.#bytes + (this.#copier?.bytes ?? 0);
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
    this.#copier?.[Symbol.dispose]();
  }

  #drop(buffer: Tensor): void {
    this.#bytes -= buffer.byteLength;
    buffer.dispose();
  }
}
