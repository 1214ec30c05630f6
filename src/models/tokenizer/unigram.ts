/** @file Unigram segmentation (Kudo 2018): the most likely way to put a text together of pieces. */
import { PIECE, type SentencePieceVocabulary } from "./sentencepiece.ts";

/** A tree of characters; `id` where a piece ends. */
interface Node {
  readonly next: Map<string, Node>;
  id: number;
}

const newNode = (): Node => ({ next: new Map(), id: -1 });

/** How much less likely than the rarest piece an unknown character is, in nats; as in SentencePiece. */
const UNKNOWN_PENALTY = 10;

export class Unigram {
  readonly #root = newNode();
  readonly #scores: Float32Array;
  readonly #unknown: number;
  readonly #unknownScore: number;

  constructor({ pieces, scores, types }: SentencePieceVocabulary, unknown: number) {
    const normal = Float32Array.from(scores).filter((_, id) => types[id] === PIECE.normal);
    // SentencePiece begins its search for the highest score above zero (at FLT_MIN).
    const most = normal.reduce((a, b) => Math.max(a, b), 0);
    this.#unknown = unknown;
    this.#unknownScore = Math.fround(normal.reduce((a, b) => Math.min(a, b), Number.MAX_VALUE) - UNKNOWN_PENALTY);
    this.#scores = Float32Array.from(scores, (score, id) =>
      // So high that they are chosen always.
      types[id] === PIECE.userDefined ? Buffer.byteLength(pieces[id]!) * most - 0.1 : score,
    );
    for (const [id, piece] of pieces.entries()) {
      if (types[id] !== PIECE.normal && types[id] !== PIECE.userDefined) continue;
      let node = this.#root;
      for (const character of piece) {
        const next = node.next.get(character) ?? newNode();
        node.next.set(character, next);
        node = next;
      }
      node.id = id;
    }
  }

  /** Ids of the best pieces; the unknown one for characters that are in none. Sums have 32 bits, as SentencePiece's. */
  readonly segment = (text: string): number[] => {
    const characters = [...text];
    const count = characters.length;
    const best = new Float32Array(count + 1);
    const start = new Int32Array(count + 1).fill(-1);
    const ids = new Int32Array(count + 1);
    const offer = (from: number, to: number, score: number, id: number): void => {
      const sum = Math.fround(score + best[from]!);
      if (start[to] !== -1 && sum <= best[to]!) return;
      best[to] = sum;
      start[to] = from;
      ids[to] = id;
    };
    for (let from = 0; from < count; from++) {
      let single = false;
      let node: Node | undefined = this.#root;
      for (let at = from; at < count; at++) {
        node = node.next.get(characters[at]!);
        if (!node) break;
        if (node.id < 0) continue;
        offer(from, at + 1, this.#scores[node.id]!, node.id);
        if (at === from) single = true;
      }
      if (!single) offer(from, from + 1, this.#unknownScore, this.#unknown);
    }
    const found: number[] = [];
    for (let at = count; at > 0; at = start[at]!) found.push(ids[at]!);
    return found.reverse();
  };
}
