/** @file What a backbone is made of: sizes, constants and special tokens. */
import { z } from "zod";

/** Sizes and constants of a decoder-only transformer, in the project's own names. */
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
  /** Longest sequence the model was made for, in tokens. */
  readonly maxPositions: number;
  /** The language-model head is the embedding table. */
  readonly tieWordEmbeddings: boolean;
  readonly hiddenAct: "silu";
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
