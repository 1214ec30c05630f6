/** @file A SentencePiece vocabulary with scores as a BPE with merges, which the libraries of transformers read. */
import { decoderOf, PIECE, type SentencePieceVocabulary } from "../tokenizer/sentencepiece.ts";

type Vocabulary = Pick<SentencePieceVocabulary, "pieces" | "scores" | "types" | "addDummyPrefix" | "byteFallback">;

const MERGED: readonly number[] = [PIECE.normal, PIECE.userDefined, PIECE.unused];
/** Longer pieces have no place in a vocabulary; each would have as many ways to be put together. */
const MAX_PIECE = 512;

/**
 * Merges for every way to put a piece together of two others. SentencePiece joins whatever neighbours give the piece of
 * the highest score, which is what BPE does with these, in this order (that of transformers' own conversion).
 */
function mergesOf({ pieces, scores, types }: Vocabulary): [string, string][] {
  const ids = new Map<string, number>();
  for (let id = 0; id < pieces.length; id++) if (MERGED.includes(types[id]!)) ids.set(pieces[id]!, id);
  const merges: { left: string; right: string; score: number; lengths: [number, number] }[] = [];
  for (const [piece, id] of ids) {
    const characters = [...piece];
    if (characters.length > MAX_PIECE) continue;
    const own: typeof merges = [];
    let at = 0;
    for (let i = 1; i < characters.length; i++) {
      at += characters[i - 1]!.length;
      const [left, right] = [piece.slice(0, at), piece.slice(at)];
      if (ids.has(left) && ids.has(right)) {
        own.push({ left, right, score: scores[id]!, lengths: [i, characters.length - i] });
      }
    }
    own.sort((a, b) => ids.get(a.left)! - ids.get(b.left)! || ids.get(a.right)! - ids.get(b.right)!);
    merges.push(...own);
  }
  merges.sort((a, b) => b.score - a.score || b.lengths[0] - a.lengths[0] || b.lengths[1] - a.lengths[1]);
  return merges.map(({ left, right }) => [left, right]);
}

/** The parts of tokenizer.json beside the added tokens: a BPE with byte fallback, spaces written as ▁. */
export function portableJson(vocabulary: Vocabulary): Record<string, unknown> {
  const { pieces, types, addDummyPrefix } = vocabulary;
  const unknown = pieces.findIndex((_, id) => types[id] === PIECE.unknown);
  const replace = { type: "Replace", pattern: { String: " " }, content: "▁" };
  return {
    model: {
      type: "BPE",
      unk_token: unknown < 0 ? null : pieces[unknown],
      fuse_unk: true,
      byte_fallback: vocabulary.byteFallback,
      ignore_merges: false,
      vocab: Object.fromEntries(pieces.map((piece, id) => [piece, id])),
      merges: mergesOf(vocabulary),
    },
    normalizer: addDummyPrefix
      ? { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace] }
      : replace,
    pre_tokenizer: null,
    decoder: decoderOf(addDummyPrefix),
  };
}
