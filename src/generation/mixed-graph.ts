/** @file One token for rows of many adapters in one graph: the backbone, and what items add to the rows they belong to. */
import { add, fusedMatmul, type Graph, gather, mul, scatterRows, squeeze, type Value } from "../graph/index.ts";
import type { Hooks, Site } from "../models/index.ts";

/**
 * What adapters do to a module, by kind; a row that has nothing of a kind has no item and costs nothing.
 * - `low`: y += (x Aᵀ) Bᵀ, of a part of the ranks
 * - `scale`: y *= s, `bias`: y += b
 * - `input`: y = W (s ∘ x) + b instead of W x + b
 */
export const ITEM_KINDS = ["low", "scale", "bias", "input"] as const;
export type ItemKind = (typeof ITEM_KINDS)[number];

/** Which kinds a graph has: each set is a session of its own, so there are few. */
export type ItemKinds = readonly ItemKind[];

/** The smallest set of a session that has these kinds. */
export function sessionKinds(kinds: ReadonlySet<ItemKind>): ItemKinds {
  if (kinds.has("input")) return ITEM_KINDS;
  return kinds.has("scale") || kinds.has("bias") ? ["low", "scale", "bias"] : ["low"];
}

/** A tensor of items, [n, …shape]; `c` ranks an item. */
export interface ItemPart {
  readonly name: string;
  shape(c: number): number[];
}

/** The rows that items belong to, int64 [n, 1], are an input of this name. */
export const rowsInput = (kind: ItemKind, site: Site): string => `items.${site.path}.${kind}.rows`;

/** The other inputs of a kind at a site. */
export function itemParts(kind: ItemKind, { path, inFeatures, outFeatures }: Site): ItemPart[] {
  const name = (part: string): string => `items.${path}.${kind}.${part}`;
  if (kind === "low") {
    return [
      { name: name("a"), shape: (c) => [c, inFeatures] },
      { name: name("b"), shape: (c) => [outFeatures, c] },
    ];
  }
  return [{ name: name("values"), shape: () => [kind === "input" ? inFeatures : outFeatures] }];
}

/** The hooks of a decoding graph that adds items. */
export function itemHooks(graph: Graph, kinds: ItemKinds): Hooks {
  const has = new Set(kinds);
  let lists = 0;
  const inputsOf = (kind: ItemKind, site: Site) => {
    const n = `n${lists}`;
    const c = `c${lists++}`;
    const rows = graph.input(rowsInput(kind, site), "int64", [n, 1]);
    const parts = itemParts(kind, site).map(({ name, shape }) => {
      const sizes = shape(-1).map((size) => (size === -1 ? c : size));
      return graph.input(name, "float32", [n, ...sizes]);
    });
    return { rows, parts: parts as [Value, Value] };
  };
  return {
    linear(site, x, y, weight) {
      let result = y;
      if (has.has("input")) {
        const { rows, parts } = inputsOf("input", site);
        const product = weight.project(mul(squeeze(gather(x, rows), [1]), parts[0])); // [n, out]
        result = scatterRows(result, rows, weight.bias ? add(product, weight.bias) : product, "none");
      }
      for (const [kind, reduction] of [
        ["scale", "mul"],
        ["bias", "add"],
      ] as const) {
        if (!has.has(kind)) continue;
        const { rows, parts } = inputsOf(kind, site);
        result = scatterRows(result, rows, parts[0], reduction);
      }
      const { rows, parts } = inputsOf("low", site);
      const low = fusedMatmul(gather(x, rows), parts[0], { transB: true }); // [n, 1, c]
      const change = fusedMatmul(low, parts[1], { transB: true }); // [n, 1, out]
      return scatterRows(result, rows, squeeze(change, [1]));
    },
  };
}
