/** @file The routers of one sub-layer, all at once: one product for their logits and the modules' A, gates per rank. */
import {
  concat,
  div,
  type Graph,
  gemm,
  greaterEqual,
  mul,
  reshape,
  slice,
  softmax,
  split,
  stopGradient,
  sum,
  topK,
  type Value,
  where,
} from "../../graph/index.ts";
import type { Site } from "../../models/index.ts";
import { loraKeys } from "../lora/index.ts";
import type { BuildContext } from "../method.ts";
import { KEY_PREFIX } from "../peft.ts";
import type { MoeloraConfig } from "./config.ts";

const HIDDEN = -1e30;

export function routerKey(site: Site): string {
  return `${KEY_PREFIX}${site.path}.moelora_router.weight`;
}

/** What one sub-layer's routers decide for every token, and what of its modules' mixtures could be computed along. */
export interface Mixture {
  readonly routers: number;
  /** x Aᵀ with gates, [N, r], of the modules that read the sub-layer's input; by path. */
  readonly low: ReadonlyMap<string, Value>;
  /** Gates of the others, one for each rank, [N, r]; by path. */
  readonly gates: ReadonlyMap<string, Value>;
  readonly logits: Value; // [N, routers, experts]
  /** Which experts are active, bool; undefined where all are. */
  readonly chosen: Value | undefined; // [N, routers, experts]
}

/** Zeros and ones [M · E, M · r] that give each expert's gate to each of its ranks. */
function spreadOf(graph: Graph, routers: number, experts: number, r: number): Value {
  const matrix = new Float32Array(routers * experts * routers * r);
  const ranks = r / experts;
  for (let e = 0; e < routers * experts; e++) {
    const start = e * routers * r + e * ranks;
    matrix.fill(1, start, start + ranks);
  }
  return graph.constant("float32", [routers * experts, routers * r], matrix);
}

/**
 * Routes every token of x, the input of a sub-layer, float32 [N, d], for `sites`, its modules that have a mixture.
 * Gates are the softmax over the `top_k` largest logits of a router: probabilities of the chosen, divided by their sum.
 */
export function mix(context: BuildContext<MoeloraConfig>, block: string, sites: readonly Site[], x: Value): Mixture {
  const { config, graph, parameter } = context;
  const { r, num_experts: E, top_k } = config;
  const ordered = [...sites.filter((s) => s.readsBlockInput), ...sites.filter((s) => !s.readsBlockInput)];
  const shared = ordered.filter((site) => site.readsBlockInput);
  const M = ordered.length;
  const N = x.shape[0]!;
  const rows = M * E + shared.length * r;
  const matrix = context.derived(`${block}.moelora`, [rows, x.shape[1] as number], () =>
    concat([...ordered.map((site) => parameter(routerKey(site))), ...shared.map((s) => parameter(loraKeys(s).a))], 0),
  );
  const sizes = shared.length ? [M * E, shared.length * r] : [M * E];
  const [flat, lows] = split(gemm(x, matrix, { transB: true }), 1, sizes);
  const logits = reshape(flat!, [N, M, E]);
  let chosen: Value | undefined;
  let masked = logits;
  if (top_k < E) {
    const least = stopGradient(slice(topK(logits, top_k, -1).values, 2, top_k - 1)); // [N, M, 1]
    chosen = greaterEqual(logits, least);
    masked = where(chosen, logits, HIDDEN);
  }
  const gates = gemm(reshape(softmax(masked, -1), [N, M * E]), spreadOf(graph, M, E, r)); // [N, M · r]
  const others = ordered.slice(shared.length);
  const [ofShared, ofOthers] =
    shared.length && others.length
      ? split(gates, 1, [shared.length * r, others.length * r])
      : shared.length
        ? [gates, undefined]
        : [undefined, gates];
  const each = (value: Value, of: readonly Site[]): [string, Value][] =>
    split(
      value,
      1,
      of.map(() => r),
    ).map((part, i) => [of[i]!.path, part]);
  return {
    routers: M,
    low: new Map(lows && ofShared ? each(mul(lows, ofShared), shared) : []),
    gates: new Map(ofOthers ? each(ofOthers, others) : []),
    logits,
    chosen,
  };
}

/**
 * Load-balance loss, summed over the routers of a sub-layer: E · Σ_e f_e P_e, f_e the share of the choices that fell
 * on expert e (no gradient), P_e its mean probability.
 * @param weights of each token in the means, [1, N], of sum 1
 */
export function loadBalance({ logits, chosen, routers }: Mixture, weights: Value, top_k: number): Value {
  const { graph } = logits;
  const N = logits.shape[0]!;
  const experts = logits.shape[2] as number;
  const perToken = (value: Value): Value => reshape(value, [N, routers * experts]);
  const means = gemm(weights, perToken(softmax(logits, -1))); // [1, M · E]
  if (chosen === undefined) return sum(means); // every share is 1 / E
  const shares = gemm(weights, perToken(where(chosen, graph.scalar(1), 0))); // [1, M · E]
  return mul(sum(mul(stopGradient(shares), means)), experts / top_k);
}

/** Weights that make the mean over the tokens of all prompts, [1, N], from the mask [B, T]. */
export function promptWeights(mask: Value, N: Value["shape"][number]): Value {
  return reshape(div(mask, sum(mask)), [1, N]);
}
