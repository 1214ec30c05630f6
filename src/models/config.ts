/** @file What a backbone is made of: sizes, constants and special tokens. */
import { z } from "zod";
import type { Rope, RopeScaling } from "./rope.ts";

/**
 * Sizes and constants of a decoder-only transformer, in the project's own names: all that the graph of its forward pass
 * depends on. Optional fields are missing where they have their defaults, so that digests of older models stay valid.
 */
export interface BackboneConfig {
  /** Key of the family in `FAMILIES`, e.g. `llama`. */
  readonly modelType: string;
  /** d, the width of the residual stream. */
  readonly hiddenSize: number;
  /** Width of the feed-forward block. */
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** Heads of keys and values; fewer than `numHeads` with grouped-query attention. */
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  readonly rmsNormEps: number;
  /** Base of the rotary embedding's frequencies. */
  readonly ropeTheta: number;
  /** How its frequencies are changed for longer sequences; default: not at all. */
  readonly ropeScaling?: RopeScaling;
  /** What layers with a sliding window rotate with, where that is something else. */
  readonly localRope?: Rope;
  /** Leading features of a head that are rotated; default all. */
  readonly rotaryDim?: number;
  /** Longest sequence the model was made for, in tokens. */
  readonly maxPositions: number;
  /** The language-model head is the embedding table. */
  readonly tieWordEmbeddings: boolean;
  /** Of the gate of the feed-forward block; `gelu_tanh` is GELU by its tanh formula. */
  readonly hiddenAct: "silu" | "gelu_tanh";
  /** Linear modules that have a bias, by name; default none. */
  readonly biases?: readonly string[];
  /** Queries, keys and values come from one module `qkv_proj`, gate and up from one `gate_up_proj`. */
  readonly fusedModules?: true;
  /** Each head of queries and of keys is RMS-normalised before it is rotated. */
  readonly qkNorm?: true;
  /** What is added to weights of norms as they are stored; default 0. */
  readonly normOffset?: 1;
  /** The outputs of attention and feed-forward are normalised too, before they are added to the residual stream. */
  readonly postNorms?: true;
  /** Factor on embeddings where a sequence begins; the head, though tied, is the table itself. Default 1. */
  readonly embeddingScale?: number;
  /** Factor on attention scores; default 1 / √headDim. */
  readonly attentionScale?: number;
  /** c of score → c · tanh(score / c), before the mask; default: none. */
  readonly attentionSoftcap?: number;
  /** The same of the head's logits. */
  readonly logitSoftcap?: number;
  /** In `layers` a token sees itself and the `size` - 1 before it only. */
  readonly slidingWindow?: { readonly size: number; readonly layers: readonly number[] };
  readonly bosTokenId?: number;
  /** Any of these ends a generated sequence; empty where the checkpoint names none. */
  readonly eosTokenIds: readonly number[];
  readonly padTokenId?: number;
}

/** A token id, or null where a config says so; some checkpoints write -1 for none. */
export const tokenIdSchema = z
  .number({ error: "must be a token id" })
  .int("must be a token id")
  .min(-1, "must be a token id")
  .max(2 ** 31, "must be a token id")
  .nullish();

export const tokenIdsSchema = z
  .union([z.number().int().min(0), z.array(z.number().int().min(0)).max(1000)], {
    error: "must be a token id or a list of token ids",
  })
  .nullish();

/** The special-token fields of a config; ids that stand for "none" are left out. */
export function tokenIds(
  bos: number | null | undefined,
  eos: number | readonly number[] | null | undefined,
  pad: number | null | undefined,
): Pick<BackboneConfig, "bosTokenId" | "eosTokenIds" | "padTokenId"> {
  return {
    ...(bos === undefined || bos === null || bos < 0 ? {} : { bosTokenId: bos }),
    eosTokenIds: eos === undefined || eos === null ? [] : typeof eos === "number" ? [eos] : eos,
    ...(pad === undefined || pad === null || pad < 0 ? {} : { padTokenId: pad }),
  };
}
