/** @file Items next to each other in memory, as the mixed graph takes them: rows come and go, their order means nothing. */
import type { Site } from "../models/index.ts";
import { type Binding, Tensor } from "../runtime/index.ts";
import { type ItemGroup, lowInputs, type VectorKind, vectorInputs, vectorWidth } from "./mixed-graph.ts";
import type { Row } from "./steps.ts";

/** What a row adds at a site, y += factor · (x Aᵀ) Bᵀ, written in parts where they are wanted. */
export interface LowSource {
  readonly site: Site;
  readonly rank: number;
  readonly factor: number;
  /** Ranks from `from` on of A, [chunk, in]; what there are not so many of is zero. */
  writeA(target: Float32Array, from: number, chunk: number): void;
  /** The same ranks of `outputs` outputs of B from `first` on, [outputs, chunk]. */
  writeB(target: Float32Array, from: number, chunk: number, first: number, outputs: number): void;
}

interface Owned<S> {
  readonly row: Row;
  readonly source: S;
}

/** A buffer of places of one shape, seen by sessions up to the number that is in use. */
class Places implements Disposable {
  readonly #dtype: "float32" | "int64";
  #shape: readonly number[] = [];
  #buffer: Tensor | undefined;
  readonly #views = new Map<number, Tensor>();
  capacity = 0;

  constructor(dtype: "float32" | "int64") {
    this.#dtype = dtype;
  }

  /** Forgets everything. Memory is used when it is written. */
  renew(capacity: number, shape: readonly number[]): void {
    this[Symbol.dispose]();
    this.capacity = capacity;
    this.#shape = shape;
    this.#buffer = Tensor.allocate(this.#dtype, [capacity, ...shape]);
  }

  /** Numbers of a place. */
  get width(): number {
    return this.#shape.reduce((a, b) => a * b, 1);
  }

  get data(): Tensor["data"] {
    return this.#buffer!.data;
  }

  view(count: number): Tensor {
    const view = this.#views.get(count) ?? this.#buffer!.view(0, [count, ...this.#shape]);
    this.#views.set(count, view);
    return view;
  }

  [Symbol.dispose](): void {
    for (const view of this.#views.values()) view.dispose();
    this.#views.clear();
    this.#buffer?.dispose();
  }
}

/** Things with a place each, without gaps. */
class Slots<T> implements Disposable {
  readonly taken: T[] = [];
  readonly #places = new Places("float32");

  get bytes(): number {
    return 4 * this.#places.width * this.taken.length;
  }

  get capacity(): number {
    return this.#places.capacity;
  }

  renew(capacity: number, shape: readonly number[]): void {
    this.taken.length = 0;
    this.#places.renew(capacity, shape);
  }

  /** Takes out what is `gone` and puts `come` in. */
  update(gone: (one: T) => boolean, come: readonly T[], write: (one: T, target: Float32Array) => void): void {
    const holes: number[] = [];
    for (let at = 0; at < this.taken.length; at++) if (gone(this.taken[at]!)) holes.push(at);
    let filled = 0;
    for (const one of come) {
      const at = filled < holes.length ? holes[filled++]! : this.taken.length;
      this.taken[at] = one;
      write(one, this.#at(at));
    }
    // What is left of the holes, from behind: the last takes each place.
    for (const hole of holes.slice(filled).reverse()) {
      const last = this.taken.length - 1;
      if (hole !== last) {
        this.#at(hole).set(this.#at(last));
        this.taken[hole] = this.taken[last]!;
      }
      this.taken.pop();
    }
  }

  view(): Tensor {
    return this.#places.view(this.taken.length);
  }

  [Symbol.dispose](): void {
    this.#places[Symbol.dispose]();
  }

  #at(index: number): Float32Array {
    const { width } = this.#places;
    return (this.#places.data as Float32Array).subarray(index * width, (index + 1) * width);
  }
}

function fill<T>(places: Places, of: readonly T[], numberOf: (one: T) => number): void {
  const data = places.data as BigInt64Array;
  for (let at = 0; at < of.length; at++) data[at] = BigInt(numberOf(of[at]!));
}

interface Item extends Owned<LowSource> {
  readonly from: number;
  /** Its place. */
  at: number;
}

/** A unit of an item's outputs. */
interface ItemUnit {
  readonly item: Item;
  readonly index: number;
}

/** Ranks an item may have, besides the most that a row has. */
const CHUNKS = [8, 16, 32, 64];
/** What an item costs besides its ranks, in ranks: small products read memory more slowly. */
const ITEM_COST = 6;

/** The low-rank items of a group of modules. */
export class LowList implements Disposable {
  readonly #group: ItemGroup;
  readonly #maxRows: number;
  readonly #items = new Slots<Item>();
  readonly #units = new Slots<ItemUnit>();
  readonly #rows = new Places("int64");
  readonly #factors = new Places("float32");
  readonly #unitRows = new Places("int64");
  readonly #unitItems = new Places("int64");
  #chunk = 1;
  /** Counts the buffers it has had. */
  #renewed = 0;

  constructor(group: ItemGroup, maxRows: number) {
    this.#group = group;
    this.#maxRows = maxRows;
    this.#renew(1, 1);
  }

  /** What has to be bound is equal where this is equal. */
  get key(): string {
    return [this.#renewed, this.count, this.#units.taken.length].join();
  }

  get count(): number {
    return this.#items.taken.length;
  }

  get bytes(): number {
    return this.#items.bytes + this.#units.bytes;
  }

  /** Takes out the items of rows, and puts those of others in. */
  update(gone: ReadonlySet<Row>, come: readonly Owned<LowSource>[]): void {
    const kept = new Map<LowSource, Row>();
    for (const { row, source } of this.#items.taken) if (!gone.has(row)) kept.set(source, row);
    const all = [...[...kept].map(([source, row]) => ({ row, source })), ...come];
    const chunk = this.#chunkFor(all.map(({ source }) => source.rank));
    let [items, units] = [0, 0];
    for (const { source } of all) {
      const count = Math.ceil(source.rank / chunk);
      items += count;
      units += (count * source.site.outFeatures) / this.#group.unit;
    }
    const renews = chunk !== this.#chunk || items > this.#items.capacity || units > this.#units.capacity;
    if (renews) {
      this.#chunk = chunk;
      this.#renew(items, units);
    }
    const added = this.#cut(renews ? all : come, chunk);
    this.#items.update(
      ({ row }) => gone.has(row),
      added.items,
      ({ source, from }, target) => source.writeA(target, from, chunk),
    );
    const { unit } = this.#group;
    this.#units.update(
      ({ item }) => gone.has(item.row),
      added.units,
      ({ item: { source, from }, index }, target) => source.writeB(target, from, chunk, index * unit, unit),
    );
  }

  /** Says where the rows are now. */
  place(indexOf: ReadonlyMap<Row, number>): void {
    const { sites, unit, units } = this.#group;
    const items = this.#items.taken;
    for (let at = 0; at < items.length; at++) items[at]!.at = at;
    fill(this.#rows, items, ({ row }) => indexOf.get(row)!);
    const factors = this.#factors.data;
    for (let at = 0; at < items.length; at++) factors[at] = items[at]!.source.factor;
    const offsets = new Map<Site, number>();
    let offset = 0;
    for (const site of sites) {
      offsets.set(site, offset);
      offset += site.outFeatures / unit;
    }
    fill(
      this.#unitRows,
      this.#units.taken,
      ({ item: { row, source }, index }) => indexOf.get(row)! * units + offsets.get(source.site)! + index,
    );
    if (this.#group.divided) fill(this.#unitItems, this.#units.taken, ({ item }) => item.at);
  }

  bind(binding: Binding): void {
    const names = lowInputs(this.#group);
    binding
      .input(names.rows, this.#rows.view(this.count))
      .input(names.a, this.#items.view())
      .input(names.factors, this.#factors.view(this.count))
      .input(names.b, this.#units.view())
      .input(names.unitRows, this.#unitRows.view(this.#units.taken.length));
    if (this.#group.divided) binding.input(names.unitItems, this.#unitItems.view(this.#units.taken.length));
  }

  [Symbol.dispose](): void {
    const parts = [this.#items, this.#units, this.#rows, this.#factors, this.#unitRows, this.#unitItems];
    for (const part of parts) part[Symbol.dispose]();
  }

  #cut(of: readonly Owned<LowSource>[], chunk: number): { items: Item[]; units: ItemUnit[] } {
    const times = <T>(count: number, make: (index: number) => T): T[] =>
      Array.from({ length: count }, (_, i) => make(i));
    const items = of.flatMap(({ row, source }) =>
      times(Math.ceil(source.rank / chunk), (i) => ({ row, source, from: i * chunk, at: 0 })),
    );
    const units = items.flatMap((item) =>
      times(item.source.site.outFeatures / this.#group.unit, (index) => ({ item, index })),
    );
    return { items, units };
  }

  /** Ranks an item: cut so that little is filled up with zeros, and kept where another size is not much better. */
  #chunkFor(ranks: readonly number[]): number {
    const cost = (chunk: number): number =>
      ranks.reduce((sum, rank) => sum + Math.ceil(rank / chunk) * (chunk + ITEM_COST), 0);
    let best = Math.max(1, ...ranks);
    for (const chunk of CHUNKS) if (chunk < best && cost(chunk) < cost(best)) best = chunk;
    return cost(this.#chunk) <= 1.2 * cost(best) ? this.#chunk : best;
  }

  /** Room for so many items and units, and for one of each site in every row. */
  #renew(items: number, units: number): void {
    this.#renewed++;
    const { sites, unit } = this.#group;
    const roomForItems = Math.max(items, this.#maxRows * sites.length);
    const roomForUnits = Math.max(units, this.#maxRows * this.#group.units);
    this.#items.renew(roomForItems, [this.#chunk, sites[0]!.inFeatures]);
    this.#units.renew(roomForUnits, [unit, this.#chunk]);
    this.#rows.renew(roomForItems, [1]);
    this.#factors.renew(roomForItems, [1, 1]);
    this.#unitRows.renew(roomForUnits, [1]);
    this.#unitItems.renew(roomForUnits, []);
  }
}

/** The vectors of one kind at a module. */
export class VectorList implements Disposable {
  readonly #kind: VectorKind;
  readonly #site: Site;
  readonly #vectors = new Slots<Owned<Float32Array>>();
  readonly #rows = new Places("int64");

  constructor(kind: VectorKind, site: Site, maxRows: number) {
    this.#kind = kind;
    this.#site = site;
    this.#vectors.renew(maxRows, [vectorWidth(kind, site)]);
    this.#rows.renew(maxRows, [1]);
  }

  get key(): string {
    return String(this.count);
  }

  get count(): number {
    return this.#vectors.taken.length;
  }

  get bytes(): number {
    return this.#vectors.bytes;
  }

  update(gone: ReadonlySet<Row>, come: readonly Owned<Float32Array>[]): void {
    this.#vectors.update(
      ({ row }) => gone.has(row),
      come,
      ({ source }, target) => target.set(source),
    );
  }

  place(indexOf: ReadonlyMap<Row, number>): void {
    fill(this.#rows, this.#vectors.taken, ({ row }) => indexOf.get(row)!);
  }

  bind(binding: Binding): void {
    const names = vectorInputs(this.#kind, this.#site);
    binding.input(names.rows, this.#rows.view(this.count)).input(names.values, this.#vectors.view());
  }

  [Symbol.dispose](): void {
    this.#vectors[Symbol.dispose]();
    this.#rows[Symbol.dispose]();
  }
}
