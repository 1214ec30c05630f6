/** @file The items of a batch's rows in the mixed graph: each row's share of its adapter, copied next to the others'. */
import type { LoweredModule } from "../methods/index.ts";
import { type Backbone, type Site, sitesOf } from "../models/index.ts";
import type { Binding } from "../runtime/index.ts";
import { LowList, type LowSource, VectorList } from "./item-lists.ts";
import { type ItemKind, type ItemKinds, itemGroups, VECTOR_KINDS, type VectorKind } from "./mixed-graph.ts";
import type { Resident } from "./residents.ts";
import type { Row } from "./steps.ts";

/** Gates of a row, float32 [layers, experts]; undefined where its method has none. */
export type GatesOf = (row: number) => Float32Array | undefined;

/** A row's items by the list that they go to. */
interface RowItems {
  readonly low: Map<LowList, { row: Row; source: LowSource }[]>;
  readonly vectors: Map<VectorList, { row: Row; source: Float32Array }[]>;
}

/** The items of all rows that run together. */
export interface Items extends Disposable {
  /** Kinds that some row has. */
  readonly kinds: ReadonlySet<ItemKind>;
  /** Bytes of all items, which is what a step reads. */
  readonly bytes: number;
  /** Takes the rows that run now, in their order. */
  update(rows: readonly Row[], gatesOf: GatesOf): void;
  /** Says that an adapter has no row any more. @returns whether none of those that have items has one */
  left(resident: Resident): boolean;
  /** Binds what has changed since the binding was last here. */
  bind(binding: Binding, kinds: ItemKinds): void;
}

/** Items as the runtime's own operators take them: copied next to each other. */
export class ItemCopies implements Items {
  readonly #backbone: Backbone;
  readonly #low: readonly LowList[];
  readonly #lowOf: ReadonlyMap<string, { readonly list: LowList; readonly site: Site }>;
  readonly #vectors: ReadonlyMap<VectorKind, ReadonlyMap<string, VectorList>>;
  readonly #placed = new Set<Row>();
  readonly #left = new Set<Resident>();
  /** What each binding has of the lists. */
  readonly #bound = new WeakMap<Binding, Map<LowList | VectorList, string>>();

  constructor(backbone: Backbone, maxRows: number) {
    this.#backbone = backbone;
    const groups = itemGroups(backbone).map((group) => ({ group, list: new LowList(group, maxRows) }));
    this.#low = groups.map(({ list }) => list);
    this.#lowOf = new Map(
      groups.flatMap(({ group, list }) => group.sites.map((site) => [site.path, { list, site }] as const)),
    );
    const sites = sitesOf(backbone.config);
    this.#vectors = new Map(
      VECTOR_KINDS.map((kind) => [
        kind,
        new Map(sites.map((site) => [site.path, new VectorList(kind, site, maxRows)] as const)),
      ]),
    );
  }

  get kinds(): ReadonlySet<ItemKind> {
    const some = (lists: Iterable<LowList | VectorList>): boolean => [...lists].some(({ count }) => count > 0);
    const kinds = new Set<ItemKind>(some(this.#low) ? ["low"] : []);
    for (const [kind, lists] of this.#vectors) if (some(lists.values())) kinds.add(kind);
    return kinds;
  }

  get bytes(): number {
    return [...this.#lists()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  update(rows: readonly Row[], gatesOf: GatesOf): void {
    const indexOf = new Map(rows.map((row, index) => [row, index]));
    const gone = new Set([...this.#placed].filter((row) => !indexOf.has(row)));
    for (const row of gone) this.#placed.delete(row);
    const come: RowItems = { low: new Map(), vectors: new Map() };
    for (const [index, row] of rows.entries()) {
      if (this.#placed.has(row)) continue;
      this.#collect(come, row, gatesOf(index));
    }
    for (const row of rows) this.#placed.add(row);
    this.#left.clear(); // none of these has
    for (const list of this.#low) {
      const added = come.low.get(list) ?? [];
      if (gone.size + added.length > 0) list.update(gone, added);
    }
    for (const list of [...this.#vectors.values()].flatMap((lists) => [...lists.values()])) {
      const added = come.vectors.get(list) ?? [];
      if (gone.size + added.length > 0) list.update(gone, added);
    }
    for (const list of this.#lists()) if (list.count > 0) list.place(indexOf);
  }

  left(resident: Resident): boolean {
    this.#left.add(resident);
    return [...this.#placed].every((row) => this.#left.has(row.resident));
  }

  bind(binding: Binding, kinds: ItemKinds): void {
    let known = this.#bound.get(binding);
    if (!known) {
      known = new Map();
      this.#bound.set(binding, known);
    }
    for (const list of this.#lists(kinds)) {
      if (known.get(list) === list.key) continue;
      list.bind(binding);
      known.set(list, list.key);
    }
  }

  [Symbol.dispose](): void {
    for (const list of this.#lists()) list[Symbol.dispose]();
  }

  *#lists(kinds: ItemKinds = VECTOR_KINDS): Generator<LowList | VectorList> {
    yield* this.#low;
    for (const kind of kinds) yield* this.#vectors.get(kind)!.values();
  }

  #collect(items: RowItems, row: Row, gates: Float32Array | undefined): void {
    const layers = this.#backbone.config.numLayers;
    for (const module of row.resident.lowered ?? []) {
      const { path, layer } = module.site;
      const { expert } = module;
      const gate = expert === undefined ? 1 : gates![(layer * gates!.length) / layers + expert]!;
      if (gate === 0) continue;
      const vectors = this.#gatedVectors(module, gate);
      if (module.low) {
        const { list, site } = this.#lowOf.get(path)!;
        append(items.low, list, { row, source: lowSource(site, module, gate, vectors.scale) });
      }
      for (const kind of VECTOR_KINDS) {
        const source = vectors[kind];
        if (source) append(items.vectors, this.#vectors.get(kind)!.get(path)!, { row, source });
      }
    }
  }

  /**
   * The gate weighs y' - y. With scale s that leaves y (1 + g (s - 1)); a frozen bias that is not scaled is put back.
   */
  #gatedVectors({ site, scale, bias, keepsBias, inputScale }: LoweredModule, gate: number) {
    // A factor of 0 could not be taken out of the product again, see `lowSource`.
    const gated = scale && (gate === 1 ? scale : scale.map((s) => 1 + gate * (s - 1) || Number.EPSILON));
    let added = bias && (gate === 1 ? bias : bias.map((b) => gate * b));
    const frozen = keepsBias && site.hasBias ? this.#backbone.initializers().get(`${site.path}.bias`) : undefined;
    if (frozen && gated) {
      const kept = (frozen.data as Float32Array).map((b, o) => b * (1 - gated[o]!));
      added = added ? added.map((b, o) => b + kept[o]!) : kept;
    }
    return { scale: gated, bias: added, input: inputScale };
  }
}

function append<K, V>(map: Map<K, V[]>, key: K, value: V): void {
  const list = map.get(key);
  if (list) list.push(value);
  else map.set(key, [value]);
}

/** @param gatedScale what the product is scaled by afterwards, instead of by the module's scale under its gate */
function lowSource(
  site: Site,
  { low, scale }: LoweredModule,
  gate: number,
  gatedScale: Float32Array | undefined,
): LowSource {
  const { a, b, rank, scaling, ranks } = low!;
  const width = site.inFeatures;
  const outputs = scale && gate !== 1 ? scale.map((s, o) => s / gatedScale![o]!) : undefined;
  return {
    site,
    rank,
    factor: scaling * gate,
    writeA(target, from, chunk) {
      const count = Math.min(chunk, rank - from);
      target.set(a.subarray(from * width, (from + count) * width));
      target.fill(0, count * width);
      for (let r = 0; ranks && r < count; r++) {
        for (let i = r * width; i < (r + 1) * width; i++) target[i]! *= ranks[from + r]!;
      }
    },
    writeB(target, from, chunk, first, count) {
      const kept = Math.min(chunk, rank - from);
      if (chunk === rank && outputs === undefined) {
        target.set(b.subarray(first * rank, (first + count) * rank));
        return;
      }
      for (let o = 0; o < count; o++) {
        const weight = outputs ? outputs[first + o]! : 1;
        const [source, at] = [(first + o) * rank + from, o * chunk];
        for (let r = 0; r < kept; r++) target[at + r] = weight * b[source + r]!;
        target.fill(0, at + kept, at + chunk);
      }
    },
  };
}
