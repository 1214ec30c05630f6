/** @file One token for rows of many adapters in one graph: the backbone, and what items add to the rows they belong to. */
import {
  add,
  applyItems,
  fusedMatmul,
  type Graph,
  gather,
  mul,
  mulDims,
  reshape,
  scatterRows,
  type Value,
} from "../graph/index.ts";
import { type Backbone, type Hooks, joinedSites, type Site, type SiteWeight, sitesOf } from "../models/index.ts";
import { operators } from "../runtime/index.ts";

/** Numbers of an item in a table, see `ITEM`. */
export const ITEM_WIDTH = 14;

/**
 * What adapters do to a module, by kind; a row that has nothing of a kind has no item and costs nothing.
 * - `low`: y += (x Aᵀ) Bᵀ
 * - `scale`: y *= s, `bias`: y += b
 * - `input`: y = W (s ∘ x) + b instead of W x + b
 */
export const VECTOR_KINDS = ["scale", "bias", "input"] as const;
export type VectorKind = (typeof VECTOR_KINDS)[number];
export type ItemKind = "low" | VectorKind;

/** Which kinds of vectors a graph has: each set is a session of its own, so there are few. */
export type ItemKinds = readonly VectorKind[];

/** The smallest set of a session that has these kinds. */
export function sessionKinds(kinds: ReadonlySet<ItemKind>): ItemKinds {
  if (kinds.has("input")) return VECTOR_KINDS;
  return kinds.has("scale") || kinds.has("bias") ? ["scale", "bias"] : [];
}

/**
 * Modules whose low-rank items are multiplied together because they read the same x: fewer and larger products. Their
 * outputs, one next to the other, are seen as units of equal width, so that the products with B are alike too.
 */
export interface ItemGroup {
  readonly name: string;
  readonly sites: readonly Site[];
  /** Width of a unit. */
  readonly unit: number;
  /** Units of all sites. */
  readonly units: number;
  /** Whether some site has several units, and so an item several products with B. */
  readonly divided: boolean;
}

const divisor = (a: number, b: number): number => (b === 0 ? a : divisor(b, a % b));

/** In the order in which they are computed. */
export function itemGroups(backbone: Backbone): ItemGroup[] {
  const order = new Map(sitesOf(backbone.config).map(({ path }, index) => [path, index]));
  const firstOf = ([site]: readonly Site[]): number => order.get(site!.path)!;
  const groups = joinedSites(backbone.config, backbone.weights).sort((a, b) => firstOf(a) - firstOf(b));
  return groups.map((sites) => {
    const unit = sites.map(({ outFeatures }) => outFeatures).reduce(divisor);
    const units = sites.reduce((sum, { outFeatures }) => sum + outFeatures / unit, 0);
    return { name: sites[0]!.path, sites, unit, units, divided: sites.some((site) => site.outFeatures > unit) };
  });
}

/** Inputs of a group: n items of c ranks, u units of them. `unitItems` is there only where it is `divided`. */
export const lowInputs = ({ name }: ItemGroup) => ({
  /** Row of the batch of each item. */
  rows: `items.${name}.rows`, // int64 [n, 1]
  a: `items.${name}.a`, // [n, c, in]
  /** What x Aᵀ is multiplied with, so that A and B are copied as they are. */
  factors: `items.${name}.factors`, // [n, 1, 1]
  b: `items.${name}.b`, // [u, unit, c]
  /** Where each unit is: row · units + its place among the units of a row. */
  unitRows: `items.${name}.unitRows`, // int64 [u, 1]
  /** Item of each unit. */
  unitItems: `items.${name}.unitItems`, // int64 [u]
});

/** Inputs of a site's vectors of a kind: rows of the batch int64 [n, 1], and vectors [n, width]. */
export const vectorInputs = (kind: VectorKind, { path }: Site) => ({
  rows: `items.${path}.${kind}.rows`,
  values: `items.${path}.${kind}`,
});

export const vectorWidth = (kind: VectorKind, { inFeatures, outFeatures }: Site): number =>
  kind === "input" ? inFeatures : outFeatures;

/** Input of a group where milora's operators are: int64 [n, 14], see `ITEM`. */
export const itemTable = ({ name }: ItemGroup): string => `items.${name}`;

/** The hooks of a decoding graph that adds items. */
export function itemHooks(graph: Graph, backbone: Backbone, kinds: ItemKinds): Hooks {
  const groups = new Map(itemGroups(backbone).map((group) => [group.name, group]));
  return operators() ? tableHooks(graph, groups, kinds) : copyHooks(graph, groups, kinds);
}

type Groups = ReadonlyMap<string, ItemGroup>;

/** With milora's operators: tables say where the numbers of items are. */
function tableHooks(graph: Graph, groups: Groups, kinds: ItemKinds): Hooks {
  const order = [...groups.values()];
  const tables = new Map<string, Value>();
  const tableOf = (group: ItemGroup): Value => {
    const known = tables.get(group.name);
    const table = known ?? graph.input(itemTable(group), "int64", [`n.${group.name}`, ITEM_WIDTH]);
    tables.set(group.name, table);
    return table;
  };
  const joined: NonNullable<Hooks["joined"]> = ([first], x, y) => {
    const group = groups.get(first!.path)!;
    const next = order[order.indexOf(group) + 1];
    const soon = next && { items: tableOf(next), inFeatures: next.sites[0]!.inFeatures };
    return applyItems(x, y, tableOf(group), { next: soon });
  };
  return {
    joined,
    linear(site, x, y, weight) {
      const result = groups.get(site.path)?.sites.length === 1 ? joined([site], x, y) : y;
      return kinds.includes("input") ? withScaledInputs(graph, site, x, result, weight) : result;
    },
  };
}

/** Rows with a vector of the kind `input` get W (s ∘ x) + b in place of y. */
function withScaledInputs(graph: Graph, site: Site, x: Value, y: Value, weight: SiteWeight): Value {
  const { n, rows, values } = vectorsOf(graph, "input", site);
  const own = reshape(gather(x, rows), [n, site.inFeatures]);
  const product = weight.project(mul(own, values)); // [n, out]
  return scatterRows(y, rows, weight.bias ? add(product, weight.bias) : product, "none");
}

function vectorsOf(graph: Graph, kind: VectorKind, site: Site) {
  const names = vectorInputs(kind, site);
  const n = `n.${names.rows}`;
  const rows = graph.input(names.rows, "int64", [n, 1]);
  return { n, rows, values: graph.input(names.values, "float32", [n, vectorWidth(kind, site)]) };
}

/** With the runtime's operators alone: items are copied next to each other. */
function copyHooks(graph: Graph, groups: Groups, kinds: ItemKinds): Hooks {
  let lists = 0;
  const joined: NonNullable<Hooks["joined"]> = ([first], x, y) => {
    const group = groups.get(first!.path)!;
    const { unit, units, divided } = group;
    const names = lowInputs(group);
    const [n, c] = [`n${lists}`, `c${lists}`];
    const u = divided ? `u${lists}` : n;
    lists++;
    const [N, d] = x.shape as [string, number];
    const rows = graph.input(names.rows, "int64", [n, 1]);
    const a = graph.input(names.a, "float32", [n, c, d]);
    const factors = graph.input(names.factors, "float32", [n, 1, 1]);
    const b = graph.input(names.b, "float32", [u, unit, c]);
    const unitRows = graph.input(names.unitRows, "int64", [u, 1]);
    const low = mul(fusedMatmul(gather(x, rows), a, { transB: true }), factors); // [n, 1, c]
    const perUnit = divided ? gather(low, graph.input(names.unitItems, "int64", [u])) : low; // [u, 1, c]
    const change = fusedMatmul(perUnit, b, { transB: true }); // [u, 1, unit]
    if (units === 1) return scatterRows(y, unitRows, reshape(change, [n, unit]));
    const cells = reshape(y, [mulDims(N, units), 1, unit]);
    return reshape(scatterRows(cells, unitRows, change), [N, units * unit]);
  };
  return {
    joined,
    linear(site, x, y, weight) {
      let result = groups.get(site.path)?.sites.length === 1 ? joined([site], x, y) : y;
      if (kinds.includes("input")) result = withScaledInputs(graph, site, x, result, weight);
      for (const kind of ["scale", "bias"] as const) {
        if (!kinds.includes(kind)) continue;
        const { rows, values } = vectorsOf(graph, kind, site);
        result = scatterRows(result, rows, values, kind === "scale" ? "mul" : "add");
      }
      return result;
    },
  };
}
