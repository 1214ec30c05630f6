/** @file What a backbone's graph offers and takes: the sites where a method may act, and how attention is computed. */
import type { Value } from "../graph/index.ts";

/** How linear weights are stored at run time. Embeddings and norms are float32 always. */
export type WeightForm = { readonly kind: "float32" } | { readonly kind: "int4" | "int8"; readonly blockSize: number };

/**
 * Initializers of a quantised weight: uint8 as `MatMulNBits` reads it, the same bytes as a matrix of levels, the scales as
 * stored, float16, and in float32, which all but milora's own product takes.
 */
export const quantizedNames = (name: string, kind: "int4" | "int8") => ({
  quantized: `${name}.q${kind === "int4" ? 4 : 8}`,
  levels: `${name}.levels`,
  scales: `${name}.scales`,
  wideScales: `${name}.scales32`,
});

/** A linear module of one decoder layer, named as in the checkpoint. */
export interface Site {
  /** Module path, e.g. `model.layers.3.self_attn.q_proj`; PEFT keys are `base_model.model.` + this. */
  readonly path: string;
  readonly layer: number;
  /** Last part of the path, e.g. `q_proj`. */
  readonly module: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Its x is the input of its sub-layer, after the norm (q, k, v, gate, up), and not made inside of it (o, down). */
  readonly readsBlockInput: boolean;
  /** It is x Wᵀ + b, not x Wᵀ alone. */
  readonly hasBias?: true;
}

/** What a family's graph builder is told of the backbone's weights. */
export interface FrozenWeights {
  readonly form: WeightForm;
  /** Makes the initializer `<site.path>.weight.norms`, float32 [out], available to sessions. */
  provideNorms(site: Site): void;
  /** Makes the initializer `wideScales` of a quantised weight available to sessions. */
  provideWideScales(name: string): void;
}

/** The frozen weight W [out, in] of a site, in whatever form it is stored. */
export interface SiteWeight {
  /** rows Wᵀ: float32 [R, in] → [R, out]. */
  project(rows: Value): Value;
  /** Squared L2 norm of each row of W, float32 [out]. */
  squaredNorms(): Value;
  /** What is added to x Wᵀ, float32 [out], where the site has a bias. */
  readonly bias?: Value;
}

/** Keys and values that every token of a layer sees before the sequence's own. Keys are not rotated. */
export interface AttentionPrefix {
  /** P; the sequence's own tokens stand at positions P, P + 1, … */
  readonly length: number;
  readonly key: Value; // [B or 1, P, kvHeads · headDim]
  readonly value: Value; // as key
}

/** What a layer's own attention, frozen, makes of rows of the residual stream [R, d]: norm, projection, head norm. */
export type KeyValueOf = (rows: Value) => { readonly key: Value; readonly value: Value }; // [R, kvHeads · headDim] each

/** Where a method changes the forward pass. All activations are `[N, …]` with N = B·T, rows in batch-major order. */
export interface Hooks {
  /** Sees the residual stream right before decoder layer `layer`, before its norm. */
  beforeLayer?(layer: number, hidden: Value): void; // hidden [N, d]
  /** Returns what module `site` gives instead of `y`, the frozen backbone's own output. */
  linear?(site: Site, x: Value, y: Value, weight: SiteWeight): Value; // x [N, in], y [N, out] → [N, out]
  /**
   * Returns what several modules that read the same x give together instead of `y` [N, Σ out], where their products are
   * one (`joinedSites`); before biases, and before each is seen by `linear`.
   */
  joined?(sites: readonly Site[], x: Value, y: Value): Value; // [N, Σ out]
  /**
   * Returns what a sub-layer gives; `x` is its input after the norm, `y` its own output. It is added to the residual
   * stream, in families with norms there after those.
   */
  block?(layer: number, block: "self_attn" | "mlp", x: Value, y: Value): Value; // [N, d] each
  /** The layer's attention prefix; asked for after `beforeLayer`, not when decoding (the KV cache holds it then). */
  prefix?(layer: number, own: KeyValueOf): AttentionPrefix | undefined;
  /** Instead of `prefix` where batches are `joined`: that of each. */
  prefixes?(layer: number, own: KeyValueOf): readonly (AttentionPrefix | undefined)[];
  /** Returns what is added to a frozen weight that is not a linear module's: embeddings, norms, biases, head; in its shape. */
  change?(name: string): Value | undefined;
}

/** Several sequences in one row: a token sees those before it that are of its own sequence. */
export interface PackedRows {
  /** Which sequence a token belongs to; padding has a number that no sequence of its row has. */
  readonly segments: Value; // int64 [B, T]
  /** Where it stands in its sequence, from 0. */
  readonly positions: Value; // int64 [B, T]
}

/** One of several batches that pass together. */
export interface JoinedBatch {
  readonly tokens: Value; // int64 [B, T]
  readonly packed?: PackedRows;
}

/**
 * How attention is computed.
 * - `full`: whole right-padded sequences from position 0, causal, made of differentiable operations. Padding needs
 *   no mask: it stands after every real token, which therefore never sees it. With
 *   `packed` rows hold several sequences each.
 * - `joined`: several batches, each as `full` has it, whose rows stand one after the other in everything else; `tokens`
 *   is then [N, 1]. Frozen weights are read once for all of them.
 * - `cached`: appends to a KV cache in place (`GroupQueryAttention`). The graph gets inputs `past.{layer}.key|value`
 *   and outputs `present.{layer}.key|value`, float32 [B, kvHeads, S, headDim], to be bound to the same buffers.
 */
export type AttentionMode =
  | { readonly kind: "full"; readonly packed?: PackedRows }
  | { readonly kind: "joined"; readonly batches: readonly JoinedBatch[] }
  | {
      readonly kind: "cached";
      /** int32 [B]: length of each sequence after this step, minus one. */
      readonly lastPositions: Value;
      /** int32 scalar: the longest length after this step (prefill: T). */
      readonly totalLength: Value;
      /** The cache is float16, two numbers in each float32: [B, kvHeads, S, headDim / 2]. Needs milora's operators. */
      readonly halves?: boolean;
    };

/** Some of the decoder's layers, for a pass that is cut into stages. */
export interface LayerRange {
  /** The first layer, and the one after the last. */
  readonly from: number;
  readonly to: number;
  /** The residual stream before layer `from`, which the stage before returned as `hidden`; layer 0 begins with tokens. */
  readonly hidden?: Value; // [N, d]
}

export interface ForwardInputs {
  /** Of layers from another than the first on only the shape counts. */
  readonly tokens: Value; // int64 [B, T]
  readonly attention: AttentionMode;
  readonly hooks?: Hooks;
  /**
   * Whether gradients will be taken: products with quantised weights then keep x in float32, where inference rounds it
   * to 8 bits. Default: false.
   */
  readonly differentiable?: boolean;
  /** Default: all. */
  readonly layers?: LayerRange;
}

export interface ForwardOutputs {
  /** After the final norm; where the last layer is not among `layers`, the residual stream after those. */
  readonly hidden: Value; // float32 [N, d]
  /** The language-model head on any rows of `hidden`: float32 [R, d] → [R, vocab]. */
  logits(rows: Value): Value;
}
