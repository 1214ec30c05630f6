/** @file SentencePiece models: `tokenizer.model` (a protobuf) as the content of a tokenizer.json with a model of its own. */
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { z } from "zod";
import { Part } from "./schema.ts";

/** Kinds of pieces, as in sentencepiece_model.proto. */
export const PIECE = { normal: 1, unknown: 2, control: 3, userDefined: 4, unused: 5, byte: 6 } as const;

/** What SentencePiece knows of a vocabulary and of the text that is cut into it. */
export interface SentencePieceVocabulary {
  readonly kind: "bpe" | "unigram";
  readonly pieces: readonly string[];
  /** BPE: the higher, the earlier a piece is put together. Unigram: logarithms of probabilities. */
  readonly scores: ArrayLike<number>;
  /** See `PIECE`. */
  readonly types: ArrayLike<number>;
  readonly byteFallback: boolean;
  /** A space is put before a text. */
  readonly addDummyPrefix: boolean;
  /** Spaces at both ends go, and of several in a row all but one. */
  readonly removeExtraWhitespaces?: boolean;
  /** Rules of characters, as in NormalizerSpec.precompiled_charsmap. */
  readonly charsmap?: Uint8Array;
  /** The dummy prefix is put after special tokens inside a text, too, and not only at its beginning (default false). */
  readonly prefixAfterSpecial?: boolean;
}

export interface SentencePieceModelFile {
  readonly vocabulary: SentencePieceVocabulary;
  /** Spellings of the special tokens by the names of tokenizer_config.json. */
  readonly special: Readonly<Record<string, string>>;
}

/** Fields of a message by number; of several of one number the last, as protobuf has it. */
function fields(bytes: Uint8Array): Map<number, number | Uint8Array> {
  const reader = new BinaryReader(bytes);
  const found = new Map<number, number | Uint8Array>();
  while (reader.pos < reader.len) {
    const [number, wire] = reader.tag();
    // Varints are numbers and flags, 32 bits are floats, the rest are texts, bytes and messages.
    const value = wire === 0 ? reader.int32() : wire === 5 ? reader.float() : wire === 2 ? reader.bytes() : undefined;
    if (value === undefined) reader.skip(wire, number);
    else found.set(number, value);
  }
  return found;
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

type Message = ReturnType<typeof fields>;

/** A field that may be missing. */
function numberOf(message: Message, number: number, missing: number): number {
  const value = message.get(number) ?? missing;
  if (typeof value !== "number") throw new TypeError(`field ${number} is no number`);
  return value;
}

function bytesOf(message: Message, number: number): Uint8Array {
  const value = message.get(number) ?? new Uint8Array();
  if (typeof value === "number") throw new TypeError(`field ${number} is a number`);
  return value;
}

/** Of the fields at the top, pieces are many. */
function topLevel(bytes: Uint8Array): { pieces: Uint8Array[]; specs: Map<number, Uint8Array> } {
  const reader = new BinaryReader(bytes);
  const pieces: Uint8Array[] = [];
  const specs = new Map<number, Uint8Array>();
  while (reader.pos < reader.len) {
    const [number, wire] = reader.tag();
    if (wire !== 2) reader.skip(wire, number);
    else if (number === 1) pieces.push(reader.bytes());
    else specs.set(number, reader.bytes());
  }
  return { pieces, specs };
}

const KINDS: Readonly<Record<number, SentencePieceVocabulary["kind"]>> = { 1: "unigram", 2: "bpe" };

/**
 * Reads a ModelProto.
 * @throws InputError `TOKENIZER_INVALID` when it is none, `TOKENIZER_UNSUPPORTED` for models of words and characters
 */
export function readSentencePiece(bytes: Uint8Array, where: string): SentencePieceModelFile {
  const part = new Part(where, "SentencePiece model");
  try {
    const { pieces, specs } = topLevel(bytes);
    const trainer = fields(specs.get(2) ?? new Uint8Array());
    const normalizer = fields(specs.get(3) ?? new Uint8Array());
    const entries = pieces.map(fields);
    const kind = KINDS[numberOf(trainer, 3, 1)];
    if (!kind) return part.unsupported("a model of words or characters");
    if (numberOf(trainer, 24, 0)) return part.unsupported("treat_whitespace_as_suffix");
    if (!numberOf(normalizer, 5, 1)) return part.unsupported("escape_whitespaces = false");
    if (!entries.length) return part.invalid("has no pieces");
    const texts = entries.map((entry) => decoder.decode(bytesOf(entry, 1)));
    const special = Object.entries({
      unk_token: [40, 0],
      bos_token: [41, 1],
      eos_token: [42, 2],
      pad_token: [43, -1],
    }).flatMap(([name, [field, missing]]) => {
      const token = texts[numberOf(trainer, field!, missing!)];
      return token === undefined ? [] : [[name, token]];
    });
    const vocabulary = {
      kind,
      pieces: texts,
      scores: Float32Array.from(entries, (entry) => numberOf(entry, 2, 0)),
      types: Int32Array.from(entries, (entry) => numberOf(entry, 3, PIECE.normal)),
      byteFallback: numberOf(trainer, 35, 0) !== 0,
      addDummyPrefix: numberOf(normalizer, 3, 1) !== 0,
      removeExtraWhitespaces: numberOf(normalizer, 4, 1) !== 0,
      charsmap: bytesOf(normalizer, 2),
    };
    return { vocabulary, special: Object.fromEntries(special) };
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError || (error as Error).name === "Error") {
      return part.invalid(`is damaged, or no SentencePiece model (${(error as Error).message})`);
    }
    throw error;
  }
}

const number = z.number();

/** A vocabulary as JSON holds it: `charsmap` in base64. */
const vocabularySchema = z.looseObject({
  kind: z.enum(["bpe", "unigram"]),
  pieces: z.array(z.string()),
  scores: z.array(number),
  types: z.array(number),
  byteFallback: z.boolean(),
  addDummyPrefix: z.boolean(),
  removeExtraWhitespaces: z.boolean().optional(),
  prefixAfterSpecial: z.boolean().optional(),
  charsmap: z.string().optional(),
});

/** The vocabulary of what `sentencePieceJson` gave, perhaps written to a file and read since. */
export function vocabularyOf(model: unknown, part: Part): SentencePieceVocabulary {
  const { charsmap, ...read } = part.read(z.looseObject({ vocabulary: vocabularySchema }), model).vocabulary;
  if (read.scores.length !== read.pieces.length || read.types.length !== read.pieces.length) {
    part.invalid("vocabulary: pieces, scores and types differ in number");
  }
  const given = read as Omit<SentencePieceVocabulary, "charsmap">;
  return charsmap === undefined ? given : { ...given, charsmap: Buffer.from(charsmap, "base64") };
}

/** The decoder of its tokenizer.json. */
export function decoderOf(addDummyPrefix: boolean): Record<string, unknown> {
  return {
    type: "Sequence",
    decoders: [
      { type: "Replace", pattern: { String: "▁" }, content: " " },
      { type: "ByteFallback" },
      { type: "Fuse" },
      ...(addDummyPrefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
    ],
  };
}

/** The content of a tokenizer.json for a SentencePiece vocabulary; `Tokenizer.from` takes it. */
export function sentencePieceJson(vocabulary: SentencePieceVocabulary): Record<string, unknown> {
  const { pieces, types, addDummyPrefix } = vocabulary;
  const added = pieces.flatMap((content, id) => {
    const special = types[id] === PIECE.control || types[id] === PIECE.unknown;
    return special ? [{ id, content, special, normalized: false }] : [];
  });
  return {
    added_tokens: added,
    model: {
      type: "SentencePiece",
      vocabulary: {
        ...vocabulary,
        scores: Array.from(vocabulary.scores),
        types: Array.from(types),
        charsmap: Buffer.from(vocabulary.charsmap ?? []).toString("base64"),
      },
    },
    decoder: decoderOf(addDummyPrefix),
  };
}
