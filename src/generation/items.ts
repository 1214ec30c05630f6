/** @file The items of a batch's rows in the mixed graph: each row's share of its adapter, copied next to the others'. */
import type { LoweredModule } from "../methods/index.ts";
import { type Backbone, type Site, sitesOf } from "../models/index.ts";
import { type Binding, Tensor } from "../runtime/index.ts";
import { ITEM_KINDS, type ItemKind, type ItemPart, itemParts, rowsInput } from "./mixed-graph.ts";
import type { Row } from "./steps.ts";

/** What a row has at a module of one kind. */
interface Source {
  readonly rank: number;
  /** Writes `count` ranks from `from` on, or the vector, to the parts of an item; what is left of it is zero. */
  write(targets: readonly Float32Array[], from: number, chunk: number): void;
}

interface Piece {
  readonly row: Row;
  readonly source: Source;
  readonly from: number;
}

/** Ranks an item may have, besides the most that a row has. */
const CHUNKS = [8, 16, 32, 64];
/** What an item costs besides its ranks, in ranks: small products read memory more slowly. */
const ITEM_COST = 6;

/** The items of one kind at one module. Their order means nothing. */
class ItemList implements Disposable {
  readonly #rowsName: string;
  readonly #parts: readonly ItemPart[];
  readonly #maxRows: number;
  readonly #pieces: Piece[] = [];
  #chunk = 1;
  #capacity = 0;
  #rows: Tensor | undefined; // int64 [capacity, 1]
  #buffers: readonly Tensor[] = []; // [capacity, …] each
  readonly #views = new Map<number, readonly Tensor[]>();
  /** Counts changes of what has to be bound. */
  version = 0;

  constructor(kind: ItemKind, site: Site, maxRows: number) {
    this.#rowsName = rowsInput(kind, site);
    this.#parts = itemParts(kind, site);
    this.#maxRows = maxRows;
  }

  get count(): number {
    return this.#pieces.length;
  }

  get bytes(): number {
    return this.count * this.#parts.reduce((sum, { shape }) => sum + 4 * sizeOf(shape(this.#chunk)), 0);
  }

  /** Takes out the items of rows, and puts those of others in. */
  update(gone: ReadonlySet<Row>, come: readonly { readonly row: Row; readonly source: Source }[]): void {
    const before = this.#pieces.length;
    const holes: number[] = [];
    for (const [at, { row }] of this.#pieces.entries()) if (gone.has(row)) holes.push(at);
    const sources = [...new Set(this.#pieces.filter(({ row }) => !gone.has(row)).map(({ source }) => source))];
    const chunk = this.#chunkFor([...sources, ...come.map(({ source }) => source)]);
    const pieces = come.flatMap(({ row, source }) => cut(row, source, chunk));
    const count = before - holes.length + pieces.length;
    if (chunk !== this.#chunk || count > this.#capacity) {
      const rows = new Map(this.#pieces.map(({ row, source }) => [source, row]));
      this.#pieces.length = 0;
      this.#chunk = chunk;
      this.#allocate(count);
      for (const piece of [...sources.flatMap((source) => cut(rows.get(source)!, source, chunk)), ...pieces]) {
        this.#write(this.#pieces.length, piece);
      }
      this.version++;
      return;
    }
    for (const piece of pieces) this.#write(holes.shift() ?? this.#pieces.length, piece);
    // What is left of the holes, from behind: the last item takes each place.
    for (const hole of holes.reverse()) {
      const last = this.#pieces.length - 1;
      if (hole !== last) this.#move(last, hole);
      this.#pieces.pop();
    }
    if (this.#pieces.length !== before) this.version++;
  }

  /** Says where the rows are now. */
  place(indexOf: ReadonlyMap<Row, number>): void {
    const rows = this.#rows?.data as BigInt64Array | undefined;
    for (const [at, { row }] of this.#pieces.entries()) rows![at] = BigInt(indexOf.get(row)!);
  }

  bind(binding: Binding): void {
    const count = this.#pieces.length;
    if (!this.#rows) this.#allocate(1);
    let views = this.#views.get(count);
    if (!views) {
      const rows = this.#rows!.view(0, [count, 1]);
      views = [rows, ...this.#parts.map(({ shape }, i) => this.#buffers[i]!.view(0, [count, ...shape(this.#chunk)]))];
      this.#views.set(count, views);
    }
    binding.input(this.#rowsName, views[0]!);
    for (const [i, { name }] of this.#parts.entries()) binding.input(name, views[i + 1]!);
  }

  [Symbol.dispose](): void {
    for (const views of this.#views.values()) for (const view of views) view.dispose();
    this.#views.clear();
    this.#rows?.dispose();
    for (const buffer of this.#buffers) buffer.dispose();
  }

  /** Ranks an item: cut so that little is filled up with zeros, and kept where another size is not much better. */
  #chunkFor(sources: readonly Source[]): number {
    const ranks = sources.map(({ rank }) => rank);
    const cost = (chunk: number): number =>
      ranks.reduce((sum, r) => sum + Math.ceil(r / chunk) * (chunk + ITEM_COST), 0);
    let best = Math.max(1, ...ranks);
    for (const chunk of CHUNKS) if (chunk < best && cost(chunk) < cost(best)) best = chunk;
    return this.#capacity > 0 && cost(this.#chunk) <= 1.2 * cost(best) ? this.#chunk : best;
  }

  /** Room for `count` items, or for as many ranks in every row as there are in one. Their memory is used when written. */
  #allocate(count: number): void {
    this[Symbol.dispose]();
    this.#capacity = Math.max(count, this.#maxRows);
    this.#rows = Tensor.allocate("int64", [this.#capacity, 1]);
    this.#buffers = this.#parts.map(({ shape }) => Tensor.allocate("float32", [this.#capacity, ...shape(this.#chunk)]));
  }

  #write(at: number, piece: Piece): void {
    this.#pieces[at] = piece;
    piece.source.write(this.#targets(at), piece.from, this.#chunk);
  }

  #move(from: number, to: number): void {
    const [sources, targets] = [this.#targets(from), this.#targets(to)];
    for (const [i, target] of targets.entries()) target.set(sources[i]!);
    this.#pieces[to] = this.#pieces[from]!;
  }

  /** Where an item's parts are. */
  #targets(at: number): Float32Array[] {
    return this.#buffers.map(({ data, size }) => {
      const width = size / this.#capacity;
      return (data as Float32Array).subarray(at * width, (at + 1) * width);
    });
  }
}

/** Cuts what a row has into items of `chunk` ranks. */
function cut(row: Row, source: Source, chunk: number): Piece[] {
  return Array.from({ length: Math.ceil(source.rank / chunk) }, (_, i) => ({ row, source, from: i * chunk }));
}

const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Gates of a row, float32 [layers, experts]; undefined where its method has none. */
export type GatesOf = (row: number) => Float32Array | undefined;

/** The items of all rows that run together. */
export class Items implements Disposable {
  readonly #backbone: Backbone;
  readonly #lists: ReadonlyMap<ItemKind, ReadonlyMap<string, ItemList>>;
  readonly #placed = new Set<Row>();
  /** What each binding has of the lists. */
  readonly #bound = new WeakMap<Binding, Map<ItemList, number>>();

  constructor(backbone: Backbone, maxRows: number) {
    this.#backbone = backbone;
    const sites = sitesOf(backbone.config);
    this.#lists = new Map(
      ITEM_KINDS.map((kind) => [kind, new Map(sites.map((site) => [site.path, new ItemList(kind, site, maxRows)]))]),
    );
  }

  /** Kinds that some row has. */
  get kinds(): ReadonlySet<ItemKind> {
    return new Set(
      [...this.#lists].filter(([, lists]) => [...lists.values()].some(({ count }) => count > 0)).map(([k]) => k),
    );
  }

  /** Bytes that a step reads of items. */
  get bytes(): number {
    return [...this.#lists.values()].flatMap((lists) => [...lists.values()]).reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Takes the rows that run now, in their order; those that are not listed have no items. */
  update(rows: readonly Row[], gatesOf: GatesOf): void {
    const indexOf = new Map(rows.map((row, index) => [row, index]));
    const gone = new Set([...this.#placed].filter((row) => !indexOf.has(row)));
    const come = new Map<ItemList, { row: Row; source: Source }[]>();
    for (const [index, row] of rows.entries()) {
      if (this.#placed.has(row)) continue;
      this.#placed.add(row);
      for (const [kind, path, source] of this.#sourcesOf(row, gatesOf(index))) {
        const list = this.#lists.get(kind)!.get(path)!;
        come.set(list, [...(come.get(list) ?? []), { row, source }]);
      }
    }
    for (const row of gone) this.#placed.delete(row);
    for (const lists of this.#lists.values()) {
      for (const list of lists.values()) {
        const added = come.get(list) ?? [];
        if (gone.size > 0 || added.length > 0) list.update(gone, added);
        list.place(indexOf);
      }
    }
  }

  /** Binds what has changed since the binding was last here. */
  bind(binding: Binding, kinds: readonly ItemKind[]): void {
    let known = this.#bound.get(binding);
    if (!known) {
      known = new Map();
      this.#bound.set(binding, known);
    }
    for (const kind of kinds) {
      for (const list of this.#lists.get(kind)!.values()) {
        if (known.get(list) === list.version) continue;
        list.bind(binding);
        known.set(list, list.version);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const lists of this.#lists.values()) for (const list of lists.values()) list[Symbol.dispose]();
  }

  *#sourcesOf(row: Row, gates: Float32Array | undefined): Generator<[ItemKind, string, Source]> {
    const layers = this.#backbone.config.numLayers;
    for (const module of row.resident.lowered ?? []) {
      const { site, expert, low } = module;
      const gate = expert === undefined ? 1 : gates![(site.layer * gates!.length) / layers + expert]!;
      if (gate === 0) continue;
      const { scale, bias, input } = this.#vectorsOf(module, gate);
      if (low) yield ["low", site.path, lowSource(low, gate, site)];
      if (scale) yield ["scale", site.path, vectorSource(scale)];
      if (bias) yield ["bias", site.path, vectorSource(bias)];
      if (input) yield ["input", site.path, vectorSource(input)];
    }
  }

  /** Scale and bias with the gate in them: of y' - y, so that a gate of 0 leaves y. */
  #vectorsOf({ site, scale, bias, keepsBias, inputScale }: LoweredModule, gate: number) {
    const gated = scale && (gate === 1 ? scale : scale.map((s) => 1 + gate * (s - 1)));
    let added = bias && (gate === 1 ? bias : bias.map((b) => gate * b));
    const frozen = keepsBias && site.hasBias ? this.#backbone.initializers().get(`${site.path}.bias`) : undefined;
    if (frozen && gated) {
      const kept = (frozen.data as Float32Array).map((b, o) => b * (1 - gated[o]!));
      added = added ? added.map((b, o) => b + kept[o]!) : kept;
    }
    return { scale: gated, bias: added, input: inputScale };
  }
}

function vectorSource(values: Float32Array): Source {
  return { rank: 1, write: ([target]) => target!.set(values) };
}

function lowSource(
  { a, b, rank, scaling, ranks, outputs }: NonNullable<LoweredModule["low"]>,
  gate: number,
  { inFeatures, outFeatures }: Site,
): Source {
  const factor = scaling * gate;
  return {
    rank,
    write([toA, toB], from, chunk) {
      const count = Math.min(chunk, rank - from);
      toA!.set(a.subarray(from * inFeatures, (from + count) * inFeatures));
      toA!.fill(0, count * inFeatures);
      if (ranks) {
        for (let r = 0; r < count; r++) {
          for (let i = r * inFeatures; i < (r + 1) * inFeatures; i++) toA![i]! *= ranks[from + r]!;
        }
      }
      for (let o = 0; o < outFeatures; o++) {
        const scale = outputs ? factor * outputs[o]! : factor;
        const [source, target] = [o * rank + from, o * chunk];
        for (let r = 0; r < count; r++) toB![target + r] = scale * b[source + r]!;
        for (let r = count; r < chunk; r++) toB![target + r] = 0;
      }
    },
  };
}
