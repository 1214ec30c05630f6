/** @file SentencePiece's own way from text to ids: its normaliser, user-defined symbols, BPE by score, unigram. */
import { byteTokens } from "./bpe-model.ts";
import { Charsmap } from "./charsmap.ts";
import type { TextEncoding } from "./encoder.ts";
import { Part } from "./schema.ts";
import { PIECE, type SentencePieceVocabulary } from "./sentencepiece.ts";
import { SentencePieceBpe } from "./sentencepiece-bpe.ts";
import { Unigram } from "./unigram.ts";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

const CACHED_LENGTH = 64;
const CACHE_SIZE = 30_000;

/** Longest of some texts at a place of another. */
class Symbols {
  readonly #byFirst = new Map<string, string[]>();

  constructor(symbols: readonly string[]) {
    for (const symbol of symbols.filter(Boolean).sort((a, b) => b.length - a.length)) {
      const others = this.#byFirst.get(symbol[0]!);
      if (others) others.push(symbol);
      else this.#byFirst.set(symbol[0]!, [symbol]);
    }
  }

  at(text: string, start: number): string | undefined {
    return this.#byFirst.get(text[start]!)?.find((symbol) => text.startsWith(symbol, start));
  }
}

export class SentencePieceModel implements TextEncoding {
  readonly vocab: ReadonlyMap<string, number>;
  readonly #given: SentencePieceVocabulary;
  readonly #symbols: Symbols;
  readonly #charsmap: Charsmap | undefined;
  readonly #unknown: number;
  readonly #bytes: readonly number[] | undefined;
  readonly #cut: (text: string) => string[];
  readonly #segment: (text: string) => number[];
  readonly #cache = new Map<string, readonly number[]>();

  constructor(given: SentencePieceVocabulary, where: string) {
    const part = new Part(where, "SentencePiece model");
    const { pieces, types } = given;
    this.#given = given;
    this.vocab = new Map(pieces.map((piece, id) => [piece, id]));
    this.#symbols = new Symbols(pieces.filter((_, id) => types[id] === PIECE.userDefined));
    this.#unknown = pieces.findIndex((_, id) => types[id] === PIECE.unknown);
    if (this.#unknown < 0 && !given.byteFallback) part.invalid("has no unknown piece");
    if (given.byteFallback) this.#bytes = byteTokens(this.vocab) ?? part.invalid("lacks pieces of byte fallback");
    if (given.charsmap?.length) {
      this.#charsmap = Charsmap.read(given.charsmap) ?? part.invalid("precompiled_charsmap is damaged");
    }
    if (given.kind === "bpe") {
      const bpe = new SentencePieceBpe(given, this.#unknown);
      this.#cut = bpe.cut;
      this.#segment = bpe.segment;
    } else {
      this.#cut = (text) => [text];
      this.#segment = new Unigram(given, this.#unknown).segment;
    }
  }

  /** Special tokens are looked for in the text as given; there is no other use of this. */
  normalize(text: string): string {
    return text;
  }

  encode(text: string, first: boolean, ids: number[]): void {
    const prefix = this.#given.addDummyPrefix && (first || this.#given.prefixAfterSpecial === true);
    let unknown = false;
    for (const id of this.#normalizedIds(this.#normalized(text, prefix))) {
      // Unknown characters in a row are one unknown token.
      if (id !== this.#unknown || !unknown) ids.push(id);
      unknown = id === this.#unknown;
    }
  }

  /** Replaces characters by the rules, spaces by ▁. User-defined symbols stay as they are. */
  #normalized(text: string, prefix: boolean): string {
    if (text === "") return "";
    const remove = this.#given.removeExtraWhitespaces === true;
    const bytes = this.#charsmap ? encoder.encode(text) : undefined;
    const parts: string[] = [];
    let afterSpace = remove;
    for (let at = 0, byte = 0; at < text.length; ) {
      const { taken, replaced } = this.#next(text, at, bytes, byte);
      if (bytes) byte += Buffer.byteLength(text.slice(at, at + taken));
      at += taken;
      const kept = afterSpace ? replaced.replace(/^ +/, "") : replaced;
      if (kept === "") continue;
      parts.push(kept);
      afterSpace = remove && kept.endsWith(" ");
    }
    const marked = (prefix ? "▁" : "") + parts.join("").replaceAll(" ", "▁");
    let end = marked.length;
    if (remove) while (marked[end - 1] === "▁") end--;
    return marked.slice(0, end);
  }

  /** What comes next: how much of the text (UTF-16 units), and what takes its place. */
  #next(text: string, at: number, bytes: Uint8Array | undefined, byte: number) {
    const symbol = this.#symbols.at(text, at);
    if (symbol) return { taken: symbol.length, replaced: symbol };
    const match = bytes && this.#charsmap?.match(bytes, byte);
    if (match) {
      const taken = decoder.decode(bytes.subarray(byte, byte + match.length)).length;
      return { taken, replaced: decoder.decode(match.text) };
    }
    const character = String.fromCodePoint(text.codePointAt(at)!);
    return { taken: character.length, replaced: character };
  }

  *#normalizedIds(text: string): Generator<number> {
    if (this.#given.kind === "unigram") {
      yield* this.#encodeWord(text); // in which user-defined symbols win by their scores
      return;
    }
    for (const part of this.#parts(text)) {
      const symbol = this.#symbols.at(part, 0);
      if (symbol === part) yield this.vocab.get(part)!;
      else for (const word of this.#cut(part)) yield* this.#encodeWord(word);
    }
  }

  /** User-defined symbols, and what is between them. */
  *#parts(text: string): Generator<string> {
    let done = 0;
    for (let at = 0; at < text.length; ) {
      const symbol = this.#symbols.at(text, at);
      if (symbol) {
        if (at > done) yield text.slice(done, at);
        yield symbol;
        done = at + symbol.length;
      }
      at += symbol?.length ?? 1;
    }
    if (done < text.length) yield text.slice(done);
  }

  #encodeWord(word: string): readonly number[] {
    const cached = this.#cache.get(word);
    if (cached) return cached;
    const ids = this.#bytes ? this.#withBytes(word, this.#segment(word)) : this.#segment(word);
    if (word.length <= CACHED_LENGTH) {
      if (this.#cache.size >= CACHE_SIZE) this.#cache.clear();
      this.#cache.set(word, ids);
    }
    return ids;
  }

  /** Bytes for the characters that are unknown: every id stands for its piece, so the text tells which they are. */
  #withBytes(text: string, ids: readonly number[]): number[] {
    const found: number[] = [];
    let at = 0;
    for (const id of ids) {
      if (id !== this.#unknown) {
        found.push(id);
        at += this.#given.pieces[id]!.length;
        continue;
      }
      const character = String.fromCodePoint(text.codePointAt(at)!);
      for (const byte of encoder.encode(character)) found.push(this.#bytes![byte]!);
      at += character.length;
    }
    return found;
  }
}
