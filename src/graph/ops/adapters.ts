/** @file What adapters do to rows by tables of where their numbers are; milora's own operators only, no gradients. */
import { OPERATOR_DOMAIN } from "../../runtime/index.ts";
import { type None, none, producedBy, type Value } from "../graph.ts";
import { int } from "../lowering.ts";
import { apply1, op } from "./common.ts";
import { isLinear, type NBits, quantizedOps } from "./quantized.ts";

/** Inputs that an items op has after its first ones. */
export interface ItemInputs {
  /** The items of the next product, of `nextK` columns, whose memory is fetched meanwhile. */
  readonly next: boolean;
  readonly gates: boolean;
}

export const adapterOps = {
  /** `matmulNBits` of rows, with what adapters do to them: inputs x, quantized, scales, items, next items?, gates? */
  linearItems: op<NBits & ItemInputs & { nextK: number }>("linearItems", {
    infer: ({ inputs: [x], attributes: { N } }) => ({ dtype: x!.dtype, shape: [x!.shape[0]!, N] }),
    lower(to) {
      const { K, N, bits, blockSize, nextK, next, gates } = to.attributes;
      const shape = { K: int(K), N: int(N), bits: int(bits), block_size: int(blockSize), next_K: int(nextK) };
      const [x, quantized, scales, items, ...others] = to.ins as [string, string, string, string, ...string[]];
      const inputs = [x, quantized, scales, "", items];
      if (next || gates) inputs.push(next ? others.shift()! : "");
      if (gates) inputs.push(others.shift()!);
      to.emit("Linear", inputs, shape, to.outs, OPERATOR_DOMAIN);
    },
  }),
  /** y with what adapters do to it: inputs x, y, items, gates? */
  lowRankItems: op<None>("lowRankItems", {
    infer: ({ inputs: [, y] }) => y!,
    lower(to) {
      const [K, N] = to.node.inputs.map(({ shape }) => shape.at(-1) as number) as [number, number];
      to.emit("LowRank", to.ins, { K: int(K), N: int(N) }, to.outs, OPERATOR_DOMAIN);
    },
  }),
  /** What the routers of prompts choose at a layer: inputs hidden, mask, routers. */
  routePrompts: op<{ layer: number; experts: number }>("routePrompts", {
    infer: ({ inputs: [hidden, mask], attributes: { experts } }) => {
      const each = { dtype: hidden!.dtype, shape: [mask!.shape[0]!, experts] };
      return [each, each];
    },
    lower(to) {
      const { layer, experts } = to.attributes;
      to.emit("Route", to.ins, { layer: int(layer), experts: int(experts) }, to.outs, OPERATOR_DOMAIN);
    },
  }),
};

export interface ItemOptions {
  /** Items that come next, of modules with `inFeatures`: their memory is fetched while this is computed. */
  readonly next?: { readonly items: Value; readonly inFeatures: number } | undefined;
  /** Float32, of any shape: what the changes of items with an expert are weighted with. */
  readonly gates?: Value | undefined;
}

/**
 * y [N, out], made from x [N, in], with what adapters do to some of its rows: `items` int64 [n, 14] are structs Item of
 * native/kernels.h. A product with a quantised weight and its items are one node. Only where there are `operators`.
 */
export function applyItems(x: Value, y: Value, items: Value, { next, gates }: ItemOptions = {}): Value {
  const last = gates ? [gates] : [];
  const product = producedBy(y, quantizedOps.matmulNBits);
  if (!product || product.inputs[0] !== x || !isLinear(product.inputs)) {
    return apply1(adapterOps.lowRankItems, [x, y, items, ...last], none);
  }
  const { levels: _levels, ...attributes } = product.attributes;
  const inputs = [...product.inputs, items, ...(next ? [next.items] : []), ...last];
  const given = { nextK: next?.inFeatures ?? 0, next: next !== undefined, gates: gates !== undefined };
  return apply1(adapterOps.linearItems, inputs, { ...attributes, ...given });
}

/**
 * The routers of prompts at a layer, each of its own adapter: gates and probabilities, float32 [B, experts] each; zeros for
 * prompts without a router. Only where there are `operators`.
 *
 * @param hidden residual stream, float32 [B · T, d]
 * @param mask 1 on prompt tokens, else 0, float32 [B, T]
 * @param routers int64 [layers, B, 10]: structs Router of native/kernels.h
 */
export function routePrompts(
  hidden: Value,
  mask: Value,
  routers: Value,
  at: { readonly layer: number; readonly experts: number },
): { gates: Value; probabilities: Value } {
  const [gates, probabilities] = hidden.graph.apply(adapterOps.routePrompts, [hidden, mask, routers], at);
  return { gates: gates!, probabilities: probabilities! };
}
