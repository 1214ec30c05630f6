/** @file The BPE model of tokenizer.json: from a piece of text to the ids of its tokens. */
import { z } from "zod";
import { type Merge, Merger } from "./bpe.ts";
import { byteCharacters } from "./bytes.ts";
import type { Part } from "./schema.ts";

const flag = z.boolean().nullish();
const schema = z.looseObject({
  vocab: z.record(z.string(), z.number().int().min(0)),
  merges: z.array(z.union([z.string(), z.tuple([z.string(), z.string()])])),
  dropout: z.number().nullish(),
  unk_token: z.string().nullish(),
  continuing_subword_prefix: z.string().nullish(),
  end_of_word_suffix: z.string().nullish(),
  fuse_unk: flag,
  byte_fallback: flag,
  ignore_merges: flag,
});

/** What all models of tokens can do. */
export interface Model {
  /** Ids of a piece's tokens. */
  encode(piece: string): readonly number[];
  readonly vocab: ReadonlyMap<string, number>;
}

/** Longer pieces are seldom met again. */
const CACHED_LENGTH = 64;
const CACHE_SIZE = 30_000;
/** Where a piece longer than this may be cut, it is: its parts are short, and in the cache. */
const LONG = 32;

const encoder = new TextEncoder();

export class BpeModel implements Model {
  readonly vocab: ReadonlyMap<string, number>;
  readonly #merger: Merger;
  readonly #cache = new Map<string, readonly number[]>();
  readonly #unknown: number | undefined;
  readonly #fuse: boolean;
  readonly #bytes: readonly number[] | undefined;
  readonly #whole: boolean;
  readonly #spell: boolean;
  /** Characters after which a merge may cross to a ▁; undefined where pieces must not be cut. */
  readonly #crossing: ReadonlySet<string> | undefined;

  /** @param spell pieces come as text; their bytes are spelled here, in GPT-2's characters */
  constructor(json: unknown, spell: boolean, part: Part) {
    const parsed = part.read(schema, json);
    if (parsed.dropout) part.unsupported("dropout");
    if (parsed.continuing_subword_prefix) part.unsupported("continuing_subword_prefix");
    if (parsed.end_of_word_suffix) part.unsupported("end_of_word_suffix");
    this.vocab = new Map(Object.entries(parsed.vocab));
    this.#merger = new Merger(mergesOf(parsed.merges, this.vocab, part));
    this.#spell = spell;
    this.#whole = parsed.ignore_merges === true;
    this.#fuse = parsed.fuse_unk === true;
    const { unk_token: unknown } = parsed;
    this.#unknown = unknown
      ? (this.vocab.get(unknown) ?? part.invalid(`vocab lacks unk_token "${unknown}"`))
      : undefined;
    if (parsed.byte_fallback) this.#bytes = byteTokens(this.vocab);
    if (!this.#whole && !spell) this.#crossing = crossing(parsed.merges, this.vocab);
  }

  encode(piece: string): readonly number[] {
    if (this.#crossing && piece.length > LONG) return this.#encodeParts(piece, this.#crossing);
    return this.#encodeCached(piece);
  }

  /**
   * Texts of SentencePiece-like tokenizers are one piece. Where no merge goes from the character before a ▁ to it,
   * the text falls into parts that do not touch each other.
   */
  #encodeParts(text: string, crossing: ReadonlySet<string>): readonly number[] {
    const ids: number[] = [];
    let done = 0;
    for (let at = text.indexOf("▁", 1); at >= 0; at = text.indexOf("▁", at + 1)) {
      if (crossing.has(text[at - 1]!) || !this.vocab.has(text[at - 1]!)) continue;
      for (const id of this.#encodeCached(text.slice(done, at))) ids.push(id);
      done = at;
    }
    for (const id of this.#encodeCached(text.slice(done))) ids.push(id);
    return ids;
  }

  #encodeCached(piece: string): readonly number[] {
    const cached = this.#cache.get(piece);
    if (cached) return cached;
    const ids = this.#encodeNew(this.#spell ? byteCharacters(piece) : piece);
    if (piece.length <= CACHED_LENGTH) {
      if (this.#cache.size >= CACHE_SIZE) this.#cache.clear();
      this.#cache.set(piece, ids);
    }
    return ids;
  }

  #encodeNew(piece: string): readonly number[] {
    if (this.#whole) {
      const id = this.vocab.get(piece);
      if (id !== undefined) return [id];
    }
    return this.#merger.merge(this.#symbolsOf(piece));
  }

  /** A token for each character; its bytes, or the unknown token, for one that the vocabulary lacks. */
  #symbolsOf(piece: string): number[] {
    const symbols: number[] = [];
    let unknown = false; // an unknown token is due: more characters may join it
    for (const character of piece) {
      const id = this.vocab.get(character);
      if (id !== undefined) {
        if (unknown) symbols.push(this.#unknown!);
        unknown = false;
        symbols.push(id);
      } else if (this.#bytes) {
        for (const byte of encoder.encode(character)) symbols.push(this.#bytes[byte]!);
      } else if (this.#unknown !== undefined) {
        if (unknown && !this.#fuse) symbols.push(this.#unknown);
        unknown = true;
      }
    }
    if (unknown) symbols.push(this.#unknown!);
    return symbols;
  }
}

/** The tokens <0x00> to <0xFF>; all or none, as a character with one byte missing would be unknown. */
export function byteTokens(vocab: ReadonlyMap<string, number>): readonly number[] | undefined {
  const ids = Array.from({ length: 256 }, (_, byte) =>
    vocab.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`),
  );
  return ids.includes(undefined) ? undefined : (ids as number[]);
}

type Pair = string | readonly [string, string];

function halves(merge: Pair, part: Part): readonly [string, string] {
  if (typeof merge !== "string") return merge;
  const blank = merge.indexOf(" ");
  return blank > 0 ? [merge.slice(0, blank), merge.slice(blank + 1)] : part.invalid(`"${merge}" is no merge`);
}

function mergesOf(merges: readonly Pair[], vocab: ReadonlyMap<string, number>, part: Part): Merge[] {
  return merges.map((merge, rank) => {
    const [first, second] = halves(merge, part);
    const lookUp = (token: string) => vocab.get(token) ?? part.invalid(`vocab lacks "${token}" of merge ${rank}`);
    return { left: lookUp(first), right: lookUp(second), result: lookUp(first + second), rank };
  });
}

/** The last characters (UTF-16 units) of what merges join with a token that begins with ▁. */
function crossing(merges: readonly Pair[], vocab: ReadonlyMap<string, number>): ReadonlySet<string> | undefined {
  if (!vocab.has("▁")) return undefined;
  const found = new Set<string>();
  for (const merge of merges) {
    const [first, second] = typeof merge === "string" ? merge.split(" ") : merge;
    if (second?.startsWith("▁")) found.add(first!.at(-1)!);
  }
  return found;
}
