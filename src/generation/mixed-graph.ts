/** @file Rows of many adapters in one graph: the backbone, and what items add to the rows they belong to. */
import {
  add,
  applyItems,
  concat,
  fusedMatmul,
  type Graph,
  gather,
  mul,
  mulDims,
  reshape,
  routePrompts,
  scatterRows,
  type Value,
} from "../graph/index.ts";
import type { MethodGraph } from "../methods/index.ts";
import { type Backbone, type Hooks, joinedSites, type Site, type SiteWeight, sitesOf } from "../models/index.ts";
import { operators } from "../runtime/index.ts";

/** Numbers of an item in a table, see `ITEM`. */
export const ITEM_WIDTH = 14;

/** Numbers of a router in a table, see `PackedAdapter`. */
export const ROUTER_WIDTH = 10;

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

/** Input of a group where milora's operators are: int64 [n, ITEM_WIDTH], see `ITEM`. */
export const itemTable = ({ name }: ItemGroup): string => `items.${name}`;
/** Input for the routers of prompts: int64 [layers, B, ROUTER_WIDTH], see `PackedAdapter`. */
export const ROUTERS = "routers";

/** The hooks of a decoding graph that adds items. */
export function itemHooks(graph: Graph, backbone: Backbone, kinds: ItemKinds): Hooks {
  const groups = groupsOf(backbone);
  return operators() ? tableHooks(graph, groups, { kinds, ahead: true }) : copyHooks(graph, groups, kinds);
}

/**
 * What the adapters of prompts do while those are read, as a method would: with milora's operators, by tables.
 * @param mask 1 on prompt tokens, float32 [B, T]
 * @param experts that routers choose among, at most; 0: there are none
 */
export function promptItems(graph: Graph, backbone: Backbone, mask: Value, experts: number): MethodGraph {
  const groups = groupsOf(backbone);
  if (experts === 0) return { hooks: tableHooks(graph, groups, { kinds: [], ahead: false }) };
  const B = mask.shape[0]!;
  const routers = graph.input(ROUTERS, "int64", [backbone.config.numLayers, B, ROUTER_WIDTH]);
  const routes: ReturnType<typeof routePrompts>[] = [];
  const gates = () => routes.at(-1)!.gates; // of the layer that is being built
  const perLayer = (values: readonly Value[]) => reshape(concat(values, 1), [B, values.length, experts]); // [B, L, E]
  return {
    hooks: {
      ...tableHooks(graph, groups, { kinds: [], ahead: false, gates }),
      beforeLayer: (layer, hidden) => void routes.push(routePrompts(hidden, mask, routers, { layer, experts })),
    },
    state: () => new Map([["gates", perLayer(routes.map((route) => route.gates))]]),
    reports: () => new Map([["probabilities", perLayer(routes.map(({ probabilities }) => probabilities))]]),
  };
}

type Groups = ReadonlyMap<string, ItemGroup>;

function groupsOf(backbone: Backbone): Groups {
  return new Map(itemGroups(backbone).map((group) => [group.name, group]));
}

interface TableOptions {
  readonly kinds: ItemKinds;
  /** Whether the memory of a group's items is fetched during the product before. */
  readonly ahead: boolean;
  /** What items with an expert are weighted with. */
  gates?(): Value;
}

/** With milora's operators: tables say where the numbers of items are. */
function tableHooks(graph: Graph, groups: Groups, { kinds, ahead, gates }: TableOptions): Hooks {
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
    const after = ahead ? order[order.indexOf(group) + 1] : undefined;
    const next = after && { items: tableOf(after), inFeatures: after.sites[0]!.inFeatures };
    return applyItems(x, y, tableOf(group), { next, gates: gates?.() });
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
