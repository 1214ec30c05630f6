/** @file Items of a batch's rows as milora's operators take them: tables of where the numbers of each are. */
import type { Backbone } from "../models/index.ts";
import { type Binding, Tensor } from "../runtime/index.ts";
import { VectorList } from "./item-lists.ts";
import type { GatesOf, Items } from "./items.ts";
import { ITEM_WIDTH, type ItemGroup, type ItemKind, type ItemKinds, itemGroups, itemTable } from "./mixed-graph.ts";
import { ITEM, type PackedModule } from "./packed-adapter.ts";
import type { Resident } from "./residents.ts";
import type { Row } from "./steps.ts";

/** The items of a group of modules. */
class Table implements Disposable {
  readonly name: string;
  count = 0;
  readonly #table: Tensor;
  readonly #integers: BigInt64Array;
  readonly #numbers: Float64Array;
  readonly #views = new Map<number, Tensor>();

  constructor(group: ItemGroup, maxRows: number) {
    this.name = itemTable(group);
    this.#table = Tensor.allocate("int64", [maxRows * group.sites.length, ITEM_WIDTH]);
    this.#integers = this.#table.data as BigInt64Array;
    this.#numbers = new Float64Array(this.#integers.buffer, this.#integers.byteOffset, this.#integers.length);
  }

  add(item: BigInt64Array, row: number, gate: number): void {
    const at = this.count++ * ITEM_WIDTH;
    this.#integers.set(item, at);
    this.#integers[at + ITEM.row] = BigInt(row);
    this.#numbers[at + ITEM.gate] = gate;
  }

  bind(binding: Binding): void {
    const view = this.#views.get(this.count) ?? this.#table.view(0, [this.count, ITEM_WIDTH]);
    this.#views.set(this.count, view);
    binding.input(this.name, view);
  }

  [Symbol.dispose](): void {
    for (const view of this.#views.values()) view.dispose();
    this.#table.dispose();
  }
}

export class ItemTables implements Items {
  bytes = 0;
  readonly #backbone: Backbone;
  readonly #maxRows: number;
  readonly #tables: ReadonlyMap<string, Table>;
  /** By site, made when there are such. */
  readonly #inputs = new Map<string, VectorList>();
  #rows: readonly Row[] = [];
  readonly #left = new Set<Resident>();
  /** What each binding has: counts of tables, by their names, and keys of lists. */
  readonly #bound = new WeakMap<Binding, Map<Table | VectorList, number | string>>();

  constructor(backbone: Backbone, maxRows: number) {
    this.#backbone = backbone;
    this.#maxRows = maxRows;
    this.#tables = new Map(itemGroups(backbone).map((group) => [group.name, new Table(group, maxRows)]));
  }

  get kinds(): ReadonlySet<ItemKind> {
    return new Set([...this.#inputs.values()].some(({ count }) => count > 0) ? ["low", "input"] : ["low"]);
  }

  update(rows: readonly Row[], gatesOf: GatesOf): void {
    for (const table of this.#tables.values()) table.count = 0;
    this.bytes = 0;
    const inputs = new Map<string, { row: Row; source: Float32Array }[]>();
    // Rows of an adapter one after the other: what the first of them reads is in the cache for the others.
    const order = [...rows.keys()].sort((a, b) => rows[a]!.resident.id - rows[b]!.resident.id);
    for (const index of order) {
      const row = rows[index]!;
      const modules = row.resident.packed?.modules ?? [];
      const gates = modules.some(({ expert }) => expert !== undefined) ? gatesOf(index) : undefined;
      for (const module of modules) {
        const gate = gateOf(module, gates, this.#backbone.config.numLayers);
        if (gate === 0) continue;
        const { item, inputScale, site, group, bytes } = module;
        if (item) {
          this.#tables.get(group.name)!.add(item, index, gate);
          this.bytes += bytes;
        }
        if (inputScale) inputs.set(site.path, [...(inputs.get(site.path) ?? []), { row, source: inputScale }]);
      }
    }
    this.#updateInputs(rows, inputs);
    this.#rows = rows;
    this.#left.clear();
  }

  left(resident: Resident): boolean {
    this.#left.add(resident);
    return this.#rows.every((row) => this.#left.has(row.resident));
  }

  bind(binding: Binding, kinds: ItemKinds): void {
    const known = this.#bound.get(binding) ?? new Map<Table | VectorList, number | string>();
    this.#bound.set(binding, known);
    const bind = (list: Table | VectorList, key: number | string): void => {
      if (known.get(list) === key) return;
      list.bind(binding);
      known.set(list, key);
    };
    for (const table of this.#tables.values()) bind(table, table.count);
    if (kinds.includes("input")) for (const list of this.#inputs.values()) bind(list, list.key);
  }

  [Symbol.dispose](): void {
    for (const list of [...this.#tables.values(), ...this.#inputs.values()]) list[Symbol.dispose]();
  }

  #updateInputs(rows: readonly Row[], come: ReadonlyMap<string, { row: Row; source: Float32Array }[]>): void {
    if (come.size > 0 && this.#inputs.size === 0) {
      for (const { sites } of itemGroups(this.#backbone)) {
        for (const site of sites) this.#inputs.set(site.path, new VectorList("input", site, this.#maxRows));
      }
    }
    const indexOf = new Map(rows.map((row, index) => [row, index]));
    const before = new Set(this.#rows);
    for (const [path, list] of this.#inputs) {
      if (list.count === 0 && !come.has(path)) continue;
      list.update(before, come.get(path) ?? []);
      list.place(indexOf);
    }
  }
}

/** The gate of a module's expert, float32 [layers, experts]; 1 where it has none. */
function gateOf({ expert, site }: PackedModule, gates: Float32Array | undefined, layers: number): number {
  return expert === undefined ? 1 : gates![(site.layer * gates!.length) / layers + expert]!;
}
