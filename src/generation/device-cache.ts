/** @file Key-value cache on a device, where there are no views: a tensor for each stretch of rows, cut and joined as runs need them. */
import { concat, exportOnnx, Graph, gather } from "../graph/index.ts";
import { type BackboneConfig, cacheWidth } from "../models/index.ts";
import { type DeviceName, Session, Tensor } from "../runtime/index.ts";
import { type Extent, grown, type KvCache, type LayerCache } from "./cache.ts";

/** Makes tensors [N, heads, S, D] on a device of rows or positions of others there. */
export class RowCopier implements Disposable {
  readonly device: DeviceName;
  readonly #sessions = new Map<string, Session>();
  /** Of the caches that use it. */
  bytes = 0;

  constructor(device: DeviceName) {
    this.device = device;
  }

  /** Rows of one or two tensors, as they stand one after the other. */
  rows(sources: readonly Tensor[], indices: readonly number[], target = this.device): Tensor {
    const [, ...row] = sources[0]!.shape;
    return this.#run(0, sources, indices, Tensor.allocate("float32", [indices.length, ...row], target));
  }

  /** Positions of every row and head. */
  positions(source: Tensor, indices: readonly number[]): Tensor {
    const [rows, heads, , dim] = source.shape as [number, number, number, number];
    const target = Tensor.allocate("float32", [rows, heads, indices.length, dim], this.device);
    return this.#run(2, [source], indices, target);
  }

  [Symbol.dispose](): void {
    for (const session of this.#sessions.values()) session.dispose();
    this.#sessions.clear();
  }

  #run(axis: number, sources: readonly Tensor[], indices: readonly number[], target: Tensor): Tensor {
    const session = this.#session(axis, sources.length);
    using index = Tensor.from("int64", [indices.length], BigInt64Array.from(indices, BigInt));
    using binding = session.bind().input("indices", index).output("y", target);
    for (const [i, source] of sources.entries()) binding.input(`x${i}`, source);
    session.run(binding);
    return target;
  }

  #session(axis: number, sources: number): Session {
    const key = `${axis} ${sources}`;
    const known = this.#sessions.get(key);
    if (known) return known;
    const graph = new Graph("rows", this.device);
    const inputs = Array.from({ length: sources }, (_, i) => graph.input(`x${i}`, "float32", [`R${i}`, "H", "S", "D"]));
    const indices = graph.input("indices", "int64", ["N"]);
    graph.output("y", gather(inputs.length === 1 ? inputs[0]! : concat(inputs, 0), indices, axis));
    const session = Session.create(exportOnnx(graph), { device: this.device });
    this.#sessions.set(key, session);
    return session;
  }
}

/** Keys and values, one after the other, of all layers for rows `first` … `first + rows` - 1. */
interface Stretch {
  readonly first: number;
  /** The tensors may have more of them behind, of no use any more. */
  readonly rows: number;
  readonly blocks: readonly Tensor[];
}

const upTo = (count: number, from = 0): number[] => Array.from({ length: count }, (_, i) => from + i);

/**
 * Runs take rows as tensors of their own, and which rows run together changes as sequences come and go. A stretch serves
 * for its first rows too; what overlaps it otherwise has it cut, and joined with its neighbours, by copies on the device.
 */
export class DeviceCache implements KvCache {
  readonly #copier: RowCopier;
  readonly #layers: number;
  readonly #heads: number;
  readonly #dim: number;
  #rows: number;
  #capacity: number;
  #version = 0;
  /** They do not overlap. */
  #stretches: Stretch[] = [];

  constructor(config: BackboneConfig, copier: RowCopier, rows: number, capacity: number) {
    this.#copier = copier;
    this.#layers = config.numLayers;
    this.#heads = config.numKvHeads;
    this.#dim = cacheWidth(config, false);
    this.#rows = rows;
    this.#capacity = capacity;
  }

  get rows(): number {
    return this.#rows;
  }

  get capacity(): number {
    return this.#capacity;
  }

  get version(): number {
    return this.#version;
  }

  layers(first: number, rows: number, from = 0, to = this.#layers): LayerCache[] {
    const { blocks } = this.#stretch(first, rows);
    const view = (tensor: Tensor): Tensor => tensor.view(0, [rows, ...tensor.shape.slice(1)]);
    return upTo(to - from, from).map((layer) => ({
      key: view(blocks[2 * layer]!),
      value: view(blocks[2 * layer + 1]!),
    }));
  }

  copyRow(from: number, to: number, _start: number, end: number): void {
    if (from === to || end === 0) return;
    const source = this.#holder(from)!;
    const target = this.#holder(to);
    if (!target) {
      this.#put({
        first: to,
        rows: 1,
        blocks: this.#made(source, (x) => this.#copier.rows([x], [from - source.first])),
      });
      return;
    }
    const apart = source !== target;
    const places = upTo(target.rows);
    places[to - target.first] = from - source.first + (apart ? target.blocks[0]!.shape[0]! : 0);
    const blocks = this.#made(target, (x, block) =>
      this.#copier.rows(apart ? [x, source.blocks[block]!] : [x], places),
    );
    this.#drop(target);
    this.#put({ ...target, blocks });
  }

  copyFrom(other: DeviceCache, to: number, end: number): void {
    const source = other.#holder(0)!;
    const places = upTo(this.#capacity).map((at) => (at < end ? at : 0));
    const blocks = this.#made(source, (x) => {
      using row = this.#copier.rows([x], [0]);
      return this.#copier.positions(row, places);
    });
    this.#cut(to, 1);
    this.#put({ first: to, rows: 1, blocks });
  }

  read(row: number, start: number, end: number): Tensor {
    const holder = this.#holder(row)!;
    const size = (end - start) * this.#dim;
    const copy = Tensor.allocate("float32", [2 * this.#layers, this.#heads, end - start, this.#dim]);
    const values = copy.data as Float32Array;
    for (const [block, tensor] of holder.blocks.entries()) {
      using whole = this.#copier.rows([tensor], [row - holder.first], "cpu");
      const data = whole.data as Float32Array;
      for (let head = 0; head < this.#heads; head++) {
        const at = (head * this.#capacity + start) * this.#dim;
        values.set(data.subarray(at, at + size), (block * this.#heads + head) * size);
      }
    }
    return copy;
  }

  write(row: number, start: number, end: number, copy: Tensor): void {
    const size = (end - start) * this.#dim;
    const values = copy.data as Float32Array;
    const holder = this.#holder(row);
    const blocks = upTo(2 * this.#layers).map((block) => {
      using whole = holder
        ? this.#copier.rows([holder.blocks[block]!], [row - holder.first], "cpu")
        : Tensor.allocate("float32", [1, this.#heads, this.#capacity, this.#dim]);
      for (let head = 0; head < this.#heads; head++) {
        const part = block * this.#heads + head;
        const at = (head * this.#capacity + start) * this.#dim;
        (whole.data as Float32Array).set(values.subarray(part * size, (part + 1) * size), at);
      }
      return this.#count(whole.copyTo(this.#copier.device));
    });
    this.#cut(row, 1);
    this.#put({ first: row, rows: 1, blocks });
  }

  holds({ rows, positions }: Extent): boolean {
    return rows <= this.#rows && positions <= this.#capacity;
  }

  grow(needed: Extent, limit: Extent, used: Extent): void {
    if (this.holds(needed)) return;
    const { rows, positions } = grown({ rows: this.#rows, positions: this.#capacity }, needed, limit);
    this.#rows = rows;
    if (positions === this.#capacity) return;
    this.#capacity = positions;
    // What comes after the sequences may be anything that is a number.
    const places = upTo(positions).map((at) => (at < used.positions ? at : 0));
    for (const stretch of [...this.#stretches]) {
      if (stretch.first < used.rows) {
        const blocks = this.#made(stretch, (x) => this.#copier.positions(x, places));
        this.#put({ ...stretch, blocks });
      }
      this.#drop(stretch);
    }
  }

  [Symbol.dispose](): void {
    for (const stretch of [...this.#stretches]) this.#drop(stretch);
  }

  /** Just these rows, or such as begin with them. */
  #stretch(first: number, rows: number): Stretch {
    const found = this.#stretches.find((stretch) => stretch.first === first && stretch.rows >= rows);
    if (found) return found;
    let blocks: Tensor[] | undefined;
    for (const stretch of this.#overlapping(first, rows)) {
      const others = this.#joined(blocks, stretch, first, rows);
      for (const block of blocks ?? []) this.#uncount(block);
      blocks = others;
    }
    this.#cut(first, rows);
    const shape = [rows, this.#heads, this.#capacity, this.#dim];
    blocks ??= upTo(2 * this.#layers).map(() => this.#count(Tensor.allocate("float32", shape, this.#copier.device)));
    const made = { first, rows, blocks };
    this.#put(made);
    return made;
  }

  /** Rows from `first` on, those that a stretch has being taken from it, the others as they were so far. */
  #joined(before: readonly Tensor[] | undefined, stretch: Stretch, first: number, rows: number): Tensor[] {
    const places = upTo(rows).map((i) => {
      const at = first + i - stretch.first;
      const there = at >= 0 && at < stretch.rows;
      if (!before) return there ? at : 0; // what nobody has yet may be anything that is a number
      return there ? rows + at : i;
    });
    return this.#made(stretch, (x, block) => this.#copier.rows(before ? [before[block]!, x] : [x], places));
  }

  #overlapping(first: number, rows: number): Stretch[] {
    return this.#stretches.filter((stretch) => stretch.first < first + rows && first < stretch.first + stretch.rows);
  }

  /** The stretch of a row. */
  #holder(row: number): Stretch | undefined {
    return this.#overlapping(row, 1)[0];
  }

  /** Leaves nothing of these rows. */
  #cut(first: number, rows: number): void {
    for (const stretch of this.#overlapping(first, rows)) {
      const end = stretch.first + stretch.rows;
      const after = end - (first + rows);
      if (after > 0) {
        const places = upTo(after, first + rows - stretch.first);
        const blocks = this.#made(stretch, (x) => this.#copier.rows([x], places));
        this.#put({ first: first + rows, rows: after, blocks });
      }
      if (stretch.first < first) {
        this.#stretches.splice(this.#stretches.indexOf(stretch), 1);
        this.#put({ ...stretch, rows: first - stretch.first });
      } else this.#drop(stretch);
    }
  }

  #put(stretch: Stretch): void {
    this.#stretches.push(stretch);
  }

  #drop(stretch: Stretch): void {
    this.#stretches.splice(this.#stretches.indexOf(stretch), 1);
    this.#version++;
    for (const block of stretch.blocks) this.#uncount(block);
  }

  #made({ blocks }: Stretch, make: (block: Tensor, index: number) => Tensor): Tensor[] {
    return blocks.map((block, index) => this.#count(make(block, index)));
  }

  #count(tensor: Tensor): Tensor {
    this.#copier.bytes += tensor.byteLength;
    return tensor;
  }

  #uncount(tensor: Tensor): void {
    this.#copier.bytes -= tensor.byteLength;
    tensor.dispose();
  }
}
