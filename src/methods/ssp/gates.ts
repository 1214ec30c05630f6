/** @file The relaxed binary gates of SSP, tied together by the budget ("shifted global sigmoid"), and what they choose. */
import {
  add,
  div,
  greater,
  log,
  max,
  maximum,
  mul,
  neg,
  sigmoid,
  stopGradient,
  sub,
  sum,
  type Value,
  where,
} from "../../graph/index.ts";
import type { BackboneConfig } from "../../models/index.ts";
import { budgetOf, type Candidate, candidatesOf, KINDS, type SspConfig, type Structure, totalSize } from "./config.ts";

/** Halvings of the interval of ζ; the Newton step that follows squares what is left. */
const HALVINGS = 24;

/**
 * (α_i − ζ) / τ, the logits of the probabilities p_i with which the candidates are kept, float32 [n]. ζ is where the
 * expected number of parameters, Σ p_i · size_i, is the budget: gates compete, since none can rise unless others fall.
 * ζ is found by bisection; a last Newton step is what carries the gradient, and gives the exact one of the implicit ζ(α).
 */
export function gateLogits(config: SspConfig, candidates: readonly Candidate[], alpha: Value): Value {
  const { graph } = alpha;
  const total = totalSize(candidates);
  const share = budgetOf(config, candidates) / total;
  const { temperature } = config;
  const weights = graph.constant(
    "float32",
    [candidates.length],
    candidates.map(({ size }) => size / total),
  );
  const logits = (zeta: Value, of: Value): Value => div(sub(of, zeta), temperature); // [n]
  const excess = (zeta: Value, of: Value): Value => sub(sum(mul(weights, sigmoid(logits(zeta, of)))), share); // []
  const fixed = stopGradient(alpha);
  // With ζ = α_i − τ logit(share) for all i alike the share is met, so the root lies between those of min α and max α.
  const offset = temperature * Math.log(share / (1 - share));
  let low = sub(neg(max(neg(fixed), { axes: [0], keepDims: false })), offset); // []
  let high = sub(max(fixed, { axes: [0], keepDims: false }), offset);
  for (let i = 0; i < HALVINGS; i++) {
    const middle = mul(add(low, high), 0.5);
    const tooMany = greater(excess(middle, fixed), 0);
    low = where(tooMany, middle, low);
    high = where(tooMany, high, middle);
  }
  const root = mul(add(low, high), 0.5);
  const p = sigmoid(logits(root, fixed));
  const slope = maximum(div(sum(mul(weights, mul(p, sub(1, p)))), temperature), 1e-12); // −∂excess/∂ζ
  return logits(add(root, div(excess(root, alpha), slope)), alpha);
}

/**
 * How much each candidate counts, float32 [n] in (0, 1). With `noise` u in (0, 1) a sample of the binary concrete
 * distribution (Maddison et al. 2017), σ(logit p + logit u); without it, u = 1/2, p itself.
 */
export function gatesOf(logits: Value, noise: Value | undefined): Value {
  return sigmoid(noise === undefined ? logits : add(logits, sub(log(noise), log(sub(1, noise)))));
}

/**
 * The structure at the end of the search: candidates by falling α, equal ones in their order, each that still fits into
 * the budget.
 */
export function chooseStructure(config: SspConfig, backbone: BackboneConfig, alpha: ArrayLike<number>): Structure {
  const candidates = candidatesOf(config, backbone);
  const kept = new Set<Candidate>();
  let left = budgetOf(config, candidates);
  for (const [candidate] of candidates
    .map((candidate, i) => [candidate, alpha[i]!] as const)
    .sort(([, a], [, b]) => b - a)) {
    if (candidate.size > left) continue;
    left -= candidate.size;
    kept.add(candidate);
  }
  const structure: Structure = { lora: {}, bitfit: {} };
  for (const kind of KINDS) {
    for (const candidate of candidates.filter((one) => one.kind === kind && kept.has(one))) {
      const { module, layer } = candidate.site;
      structure[kind][module] = [...(structure[kind][module] ?? []), layer];
    }
  }
  return structure;
}
