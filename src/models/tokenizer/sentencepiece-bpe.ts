/** @file BPE as SentencePiece does it: any two neighbours that make a piece may join, the piece of the highest score first. */
import { type Merge, Merger } from "./bpe.ts";
import { PIECE, type SentencePieceVocabulary } from "./sentencepiece.ts";
import { Words } from "./words.ts";

const JOINED: readonly number[] = [PIECE.normal, PIECE.userDefined, PIECE.unused];
/** Longer pieces have no place in a vocabulary; each would have as many ways to be put together. */
const LONGEST = 512;

export class SentencePieceBpe {
  /** Pieces, and after them characters that are only parts of pieces. */
  readonly #symbols = new Map<string, number>();
  readonly #merger: Merger;
  readonly #words: Words;
  readonly #halves = new Map<number, readonly [number, number]>();
  readonly #size: number;
  readonly #unknown: number;

  constructor({ pieces, scores, types }: SentencePieceVocabulary, unknown: number) {
    this.#size = pieces.length;
    this.#unknown = unknown;
    for (const [id, piece] of pieces.entries()) if (JOINED.includes(types[id]!)) this.#symbols.set(piece, id);
    for (const piece of [...this.#symbols.keys()]) {
      for (const character of piece) {
        if (!this.#symbols.has(character)) this.#symbols.set(character, pieces.length + this.#symbols.size);
      }
    }
    const order = [...new Set(Array.from(scores))].sort((a, b) => b - a);
    const ranks = new Map(order.map((score, rank) => [score, rank]));
    const merges: Merge[] = [];
    for (const [piece, result] of this.#symbols) {
      if (result >= pieces.length || piece.length > LONGEST) continue;
      for (let at = 1; at < piece.length; at++) {
        const left = this.#symbols.get(piece.slice(0, at));
        const right = this.#symbols.get(piece.slice(at));
        if (left === undefined || right === undefined) continue;
        merges.push({ left, right, result, rank: ranks.get(scores[result]!)! });
        if (types[result] === PIECE.unused) this.#halves.set(result, [left, right]);
      }
    }
    this.#merger = new Merger(merges);
    this.#words = new Words(this.#symbols, merges);
  }

  readonly cut = (text: string): string[] => this.#words.cut(text);

  /** Ids of the pieces; the unknown one for characters that are none. */
  readonly segment = (text: string): number[] => {
    const symbols = Array.from(text, (character) => this.#symbols.get(character) ?? -1);
    return this.#merger.merge(symbols).flatMap((id) => this.#used(id));
  };

  /** Pieces that are not to be used fall apart again. */
  #used(id: number): number[] {
    const halves = this.#halves.get(id);
    if (halves) return halves.flatMap((half) => this.#used(half));
    return [id < 0 || id >= this.#size ? this.#unknown : id];
  }
}
