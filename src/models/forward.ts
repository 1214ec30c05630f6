/** @file What a backbone's graph offers and takes: the sites where a method may act, and how attention is computed. */
import type { Value } from "../graph/index.ts";

/** How linear weights are stored at run time. Embeddings and norms are float32 always. */
export type WeightForm = { readonly kind: "float32" } | { readonly kind: "int4"; readonly blockSize: number };

/** A linear module of one decoder layer, named as in the checkpoint. */
export interface Site {
  /** Module path, e.g. `model.layers.3.self_attn.q_proj`; PEFT keys are `base_model.model.` + this. */
  readonly path: string;
  readonly layer: number;
  /** Last part of the path, e.g. `q_proj`. */
  readonly module: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
}

/** Where a method changes the forward pass. All activations are `[N, …]` with N = B·T, rows in batch-major order. */
export interface Hooks {
  /** Sees the residual stream right before decoder layer `layer`, before its norm. */
  beforeLayer?(layer: number, hidden: Value): void; // hidden [N, d]
  /** Returns what module `site` gives instead of `y`, the frozen backbone's own output. */
  linear?(site: Site, x: Value, y: Value): Value; // x [N, in], y [N, out] → [N, out]
}

/**
 * How attention is computed.
 * - `full`: whole right-padded sequences from position 0, causal, made of differentiable operations. Padding needs
 *   no mask: it stands after every real token, which therefore never sees it.
 * - `cached`: appends to a KV cache in place (`GroupQueryAttention`). The graph gets inputs `past.{layer}.key|value`
 *   and outputs `present.{layer}.key|value`, float32 [B, kvHeads, S, headDim], to be bound to the same buffers.
 */
export type AttentionMode =
  | { readonly kind: "full" }
  | {
      readonly kind: "cached";
      /** int32 [B]: length of each sequence after this step, minus one. */
      readonly lastPositions: Value;
      /** int32 scalar: the longest length after this step (prefill: T). */
      readonly totalLength: Value;
    };

export interface ForwardInputs {
  readonly tokens: Value; // int64 [B, T]
  readonly attention: AttentionMode;
  readonly hooks?: Hooks;
}

export interface ForwardOutputs {
  /** After the final norm. */
  readonly hidden: Value; // float32 [N, d]
  /** The language-model head on any rows of `hidden`: float32 [R, d] → [R, vocab]. */
  logits(rows: Value): Value;
}
