/** @file The BPE model of tokenizer.json: from a piece of text to the ids of its tokens. */
import { z } from "zod";
import { type Merge, Merger } from "./bpe.ts";
import { byteCharacters } from "./bytes.ts";
import type { Part } from "./schema.ts";
import { Words } from "./words.ts";

const flag = z.boolean().nullish();
const schema = z.looseObject({
  // Their hundreds of thousands of entries are checked where they are used, which is ten times as fast.
  vocab: z.custom<Record<string, unknown>>((given) => typeof given === "object" && !Array.isArray(given)),
  merges: z.array(z.unknown()),
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
  readonly #words: Words | undefined;

  /** @param spell pieces come as text; their bytes are spelled here, in GPT-2's characters */
  constructor(json: unknown, spell: boolean, part: Part) {
    const parsed = part.read(schema, json);
    if (parsed.dropout) part.unsupported("dropout");
    if (parsed.continuing_subword_prefix) part.unsupported("continuing_subword_prefix");
    if (parsed.end_of_word_suffix) part.unsupported("end_of_word_suffix");
    this.vocab = vocabOf(parsed.vocab, part);
    const merges = mergesOf(parsed.merges, this.vocab, part);
    this.#merger = new Merger(merges);
    this.#spell = spell;
    this.#whole = parsed.ignore_merges === true;
    this.#fuse = parsed.fuse_unk === true;
    const { unk_token: unknown } = parsed;
    this.#unknown = unknown
      ? (this.vocab.get(unknown) ?? part.invalid(`vocab lacks unk_token "${unknown}"`))
      : undefined;
    if (parsed.byte_fallback) this.#bytes = byteTokens(this.vocab);
    if (!this.#whole && !spell) this.#words = new Words(this.vocab, merges);
  }

  encode(piece: string): readonly number[] {
    return this.#words ? this.#words.cut(piece).flatMap((word) => this.#encodeCached(word)) : this.#encodeCached(piece);
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

function vocabOf(json: Record<string, unknown>, part: Part): ReadonlyMap<string, number> {
  const vocab = new Map<string, number>();
  for (const token in json) {
    const id = json[token];
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0 || id > 0x7fffffff) {
      part.invalid(`vocab: ${JSON.stringify(token)} has no id`);
    }
    vocab.set(token, id as number);
  }
  return vocab;
}

/** Both tokens of a merge: a pair, or in older files a text with a blank between them. */
function halves(merge: unknown, part: Part): readonly [string, string] {
  if (typeof merge === "string") {
    const blank = merge.indexOf(" ");
    if (blank > 0) return [merge.slice(0, blank), merge.slice(blank + 1)];
  } else if (Array.isArray(merge) && merge.length === 2) {
    const [first, second] = merge as unknown[];
    if (typeof first === "string" && typeof second === "string") return [first, second];
  }
  return part.invalid(`merges: ${JSON.stringify(merge)} is not two tokens`);
}

function mergesOf(merges: readonly unknown[], vocab: ReadonlyMap<string, number>, part: Part): Merge[] {
  return merges.map((merge, rank) => {
    const [first, second] = halves(merge, part);
    const lookUp = (token: string) =>
      vocab.get(token) ?? part.invalid(`vocab lacks ${JSON.stringify(token)} of merge ${rank}`);
    return { left: lookUp(first), right: lookUp(second), result: lookUp(first + second), rank };
  });
}
