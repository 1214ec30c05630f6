/** @file The prompt-aware router of one layer (eq. 2, 3, 6, 8): pooler → activation → linear → softmax → top-k → gates. */
import {
  add,
  concat,
  div,
  gather,
  gelu,
  gemm,
  log,
  logSoftmax,
  matmul,
  max,
  maximum,
  mean,
  mul,
  mulDims,
  oneHot,
  reciprocal,
  relu,
  reshape,
  slice,
  softmax,
  sqrt,
  square,
  straightThrough,
  sub,
  sum,
  topK,
  unsqueeze,
  type Value,
} from "../../graph/index.ts";
import type { Attention, LoweredRouter, Packing, ParameterSpec } from "../method.ts";
import { KEY_PREFIX } from "../peft.ts";
import { rational, rationalCoefficients, rationalKeys, rationalSpecs } from "../rational.ts";
import { type ActivationKind, activationOf, type MiloraConfig } from "./config.ts";

/** Hides what is not prompt: added to scores before a softmax or a maximum. */
const HIDDEN = 1e30;
const RMS_EPSILON = 1e-6;

export function routerKeys(layer: number): { pooler: string; activation: string; gate: string } {
  const prefix = `${KEY_PREFIX}model.layers.${layer}.milora_router`;
  return { pooler: `${prefix}.pooler.weight`, activation: `${prefix}.activation`, gate: `${prefix}.gate.weight` };
}

export function routerSpecs(config: MiloraConfig, layer: number, hiddenSize: number): ParameterSpec[] {
  const keys = routerKeys(layer);
  const experts = config.target_modules.length;
  // Small normal weights, as BERT's and LLaMA's: at the start every expert has about the same probability.
  const specs: ParameterSpec[] = [
    { key: keys.gate, shape: [experts, hiddenSize], init: { kind: "normal", std: 0.02 }, group: "weights" },
  ];
  if (config.pooler === "self_attention") {
    specs.push({ key: keys.pooler, shape: [1, hiddenSize], init: { kind: "normal", std: 0.02 }, group: "weights" });
  }
  if (activationOf(config, layer) === "rational") specs.push(...rationalSpecs(keys.activation));
  return specs;
}

/** What the routers of all layers share: the prompt's mask in the forms the poolers need. */
export class PromptMask {
  readonly mask: Value; // float32 [B, T]
  /** 0 on the prompt, -1e30 elsewhere. */
  readonly penalty: Value; // [B, T]
  /** Ones, to spread a per-prompt value over its tokens. */
  readonly ones: Value; // [B, T, 1]
  readonly #packing: Packing | undefined;

  /** @param packing where several sequences share a row: B is then their number, T the length of the longest prompt */
  constructor(mask: Value, packing?: Packing) {
    this.mask = mask;
    this.penalty = mul(sub(mask, 1), HIDDEN);
    this.ones = unsqueeze(add(mul(mask, 0), 1), [2]);
    this.#packing = packing;
  }

  /** The rows of activations [N, d] that `mask` speaks of, [B · T, d]. */
  rowsOf(hidden: Value): Value {
    if (!this.#packing) return hidden;
    return gather(hidden, reshape(this.#packing.promptRows, [mulDims(this.batch, this.length)]), 0);
  }

  /** Gives each token what its sequence has: [B, E] → [N, E]. */
  spread(values: Value): Value {
    if (this.#packing) return gather(values, this.#packing.sampleOf, 0);
    const E = values.shape[1]!;
    const each = mul(reshape(values, [this.batch, 1, E]), this.ones); // [B, T, E]
    return reshape(each, [mulDims(this.batch, this.length), E]);
  }

  get batch() {
    return this.mask.shape[0]!;
  }

  get length() {
    return this.mask.shape[1]!;
  }
}

/** 1 on the last prompt token of each row: the prompt's one token whose right neighbour is not prompt. */
function lastToken({ mask }: PromptMask): Value {
  const next = concat([slice(mask, 1, 1), mul(slice(mask, 1, 0, 1), 0)], 1); // [B, T], shifted left
  return sub(mask, next);
}

/**
 * What a pooler that takes a weighted mean weighs the tokens with, [B, T], of sum 1 and 0 outside of the prompt.
 * @param flat the rows of activations that the mask speaks of, [B · T, d]
 * @param weight of self-attention pooling, [1, d]
 */
function poolWeights(
  kind: Exclude<MiloraConfig["pooler"], "max">,
  flat: Value,
  prompt: PromptMask,
  weight: () => Value,
): Value {
  if (kind === "mean") return div(prompt.mask, sum(prompt.mask, { axes: [1], keepDims: true }));
  if (kind === "last") return lastToken(prompt);
  const scores = reshape(gemm(flat, weight(), { transB: true }), [prompt.batch, prompt.length]);
  return softmax(add(scores, prompt.penalty), -1);
}

/** Pools the prompt's rows of `hidden` [N, d] to one vector a prompt, [B, d]. */
function pool(kind: MiloraConfig["pooler"], hidden: Value, prompt: PromptMask, weight: () => Value): Value {
  const { batch: B, length: T } = prompt;
  const d = hidden.shape[1]!;
  const flat = prompt.rowsOf(hidden); // [B · T, d]
  const rows = reshape(flat, [B, T, d]);
  if (kind === "max") return max(add(rows, unsqueeze(prompt.penalty, [2])), { axes: [1], keepDims: false });
  return reshape(matmul(unsqueeze(poolWeights(kind, flat, prompt, weight), [1]), rows), [B, d]);
}

/** What the poolers of all layers attend to; undefined where they take the largest values instead of a mean. */
export function attention(
  { pooler }: MiloraConfig,
  prompt: PromptMask,
  parameter: (key: string) => Value,
): Attention | undefined {
  if (pooler === "max") return undefined;
  return (layer, hidden) =>
    poolWeights(pooler, prompt.rowsOf(hidden), prompt, () => parameter(routerKeys(layer).pooler));
}

function activate(kind: ActivationKind, x: Value, layer: number, parameter: (key: string) => Value): Value {
  if (kind === "gelu") return gelu(x);
  if (kind === "relu") return relu(x);
  if (kind === "identity") return x;
  const { numerator, denominator } = rationalKeys(routerKeys(layer).activation);
  return rational(x, rationalCoefficients(parameter(numerator), parameter(denominator)));
}

/** What the router of a layer decides for each prompt. */
export interface Routes {
  /** Before the softmax. */
  readonly scores: Value; // [B, E]
  readonly probabilities: Value; // [B, E]
  /** Weight of each expert, 0 for those not chosen. */
  readonly gates: Value; // [B, E]
  /** The weights that training runs with: the same once the experts that are not chosen have faded out. */
  readonly trained: Value; // [B, E]
}

/** What is left of an expert that is not chosen: 1 at the start of the training, 0 from its share `end` on. */
function faded(progress: Value, end: number): Value {
  return maximum(sub(1, div(progress, end)), 0); // []
}

/**
 * Routes the prompts of a batch at one layer, from its residual stream before the norm, float32 [N, d].
 * @param progress in training: the share of it that is done, float32 []
 */
export function route(
  config: MiloraConfig,
  layer: number,
  hidden: Value,
  prompt: PromptMask,
  parameter: (key: string) => Value,
  progress?: Value,
): Routes {
  const keys = routerKeys(layer);
  let pooled = pool(config.pooler, hidden, prompt, () => parameter(keys.pooler)); // [B, d]
  if (config.router_input === "rms") {
    const power = add(mean(square(pooled), { axes: [1], keepDims: true }), RMS_EPSILON);
    pooled = mul(pooled, reciprocal(sqrt(power)));
  }
  const features = activate(activationOf(config, layer), pooled, layer, parameter); // [B, d]
  const scores = gemm(features, parameter(keys.gate), { transB: true }); // [B, E]
  const probabilities = softmax(scores, -1);
  const experts = config.target_modules.length;
  // By score, not by probability: the order is the same, but a confident softmax rounds the small ones to equal zeros.
  const chosen = topK(scores, config.top_k, -1).indices; // [B, k]
  const mask = sum(oneHot(chosen, experts), { axes: [1], keepDims: false }); // [B, E]
  const gatesOf = (strengths: Value): Value => {
    const weighted = mul(strengths, probabilities);
    if (config.gate === "probability") return weighted;
    if (config.gate === "renormalized") return div(weighted, sum(weighted, { axes: [1], keepDims: true }));
    // Forward m itself, backward m · (1 + p − stop_gradient(p)), so that the loss reaches the router.
    return straightThrough(strengths, weighted);
  };
  const gates = gatesOf(mask);
  if (progress === undefined || config.anneal === 0) return { scores, probabilities, gates, trained: gates };
  const strengths = add(mask, mul(sub(1, mask), faded(progress, config.anneal)));
  return { scores, probabilities, gates, trained: gatesOf(strengths) };
}

/** What `route` does in use, in numbers. */
export function loweredRouter(
  config: MiloraConfig,
  layer: number,
  values: (key: string) => Float32Array,
): LoweredRouter {
  const keys = routerKeys(layer);
  const activation = activationOf(config, layer);
  const { numerator, denominator } = rationalKeys(keys.activation);
  return {
    pooling: config.pooler,
    ...(config.pooler === "self_attention" && { pooler: values(keys.pooler) }),
    activation,
    ...(activation === "rational" && { coefficients: [values(numerator), values(denominator)] as const }),
    normalized: config.router_input === "rms",
    gate: values(keys.gate),
    experts: config.target_modules.length,
    topK: config.top_k,
    weighting: config.gate,
  };
}

/**
 * Minus the mutual information between prompt and expert over a batch, in nats: H(p given the prompt) − H(mean p). Its
 * least value is −log E, where each prompt's router is sure of itself and all experts are first equally often.
 */
export function information({ scores, probabilities }: Routes): Value {
  const means = mean(probabilities, { axes: [0], keepDims: false }); // [E]
  const ofMeans = sum(mul(means, log(add(means, 1e-9)))); // −H
  const each = sum(mul(probabilities, logSoftmax(scores, -1)), { axes: [1], keepDims: false }); // [B], −H
  return sub(ofMeans, mean(each)); // []
}

/** Load-balance loss of one layer (eq. 4, 5): E · Σ_i f_i · p̂_i, f_i the share of prompts whose first expert is i. */
export function loadBalance({ scores, probabilities }: Routes): Value {
  const experts = probabilities.shape[1] as number;
  const first = reshape(topK(scores, 1, -1).indices, [scores.shape[0]!]); // [B]
  const shares = mean(oneHot(first, experts), { axes: [0], keepDims: false }); // [E], no gradient
  const means = mean(probabilities, { axes: [0], keepDims: false }); // [E]
  return mul(sum(mul(shares, means)), experts);
}
