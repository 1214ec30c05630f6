/** @file From text to token ids: added tokens, normalizer, pre-tokenizer, model, in the reference's order. */
import { AddedTokens, isNormalized } from "./added-tokens.ts";
import { BpeModel, type Model } from "./bpe-model.ts";
import { normalizerOf } from "./normalizer.ts";
import { type Frame, frameOf } from "./post-processor.ts";
import { preTokenizerOf } from "./pre-tokenizer.ts";
import { type AddedToken, Part, type TokenizerJson } from "./schema.ts";
import { vocabularyOf } from "./sentencepiece.ts";
import { SentencePieceModel } from "./sentencepiece-model.ts";

/** Text without added tokens to ids. */
export interface TextEncoding {
  /** @param first whether the text begins the whole input */
  encode(text: string, first: boolean, ids: number[]): void;
  readonly vocab: ReadonlyMap<string, number>;
  normalize(text: string): string;
}

export class Encoder {
  readonly #text: TextEncoding;
  readonly #added: AddedTokens;
  readonly #tokens: (string | undefined)[] = [];
  readonly #addedIds: ReadonlyMap<string, number>;
  /** Special tokens around a text. */
  readonly frame: Frame;

  constructor(text: TextEncoding, added: readonly AddedToken[], frame: Frame) {
    this.#text = text;
    this.frame = frame;
    this.#added = new AddedTokens(added, text.normalize);
    for (const [token, id] of text.vocab) this.#tokens[id] = token;
    // As the reference: those that are looked for in normalised text are spelled that way.
    for (const token of added) {
      this.#tokens[token.id] = isNormalized(token) ? text.normalize(token.content) : token.content;
    }
    this.#addedIds = new Map(added.map(({ content, id }) => [content, id]));
  }

  /** One more than the highest id. */
  get size(): number {
    return this.#tokens.length;
  }

  tokenToId(token: string): number | undefined {
    return this.#addedIds.get(token) ?? this.#text.vocab.get(token);
  }

  idToToken(id: number): string | undefined {
    return this.#tokens[id];
  }

  /** Ids of a text, without those around it. */
  encode(given: string): number[] {
    // A surrogate without its other half is no character; UTF-8, and so the reference, has none.
    const text = given.replace(/\p{Surrogate}/gu, "\ufffd");
    const ids: number[] = [];
    for (const section of this.#added.split(text)) {
      if (section.id !== undefined) ids.push(section.id);
      else this.#text.encode(section.text, section.first, ids);
    }
    return ids;
  }
}

function modelOf(json: TokenizerJson, bytes: boolean, where: string): Model {
  const part = new Part(where, "model");
  const type = json.model.type ?? ("merges" in json.model ? "BPE" : "without a type");
  if (type !== "BPE") part.unsupported(type);
  return new BpeModel(json.model, bytes, part);
}

/** The encoder that a tokenizer.json describes. Throws `InputError` naming the part that is not supported or damaged. */
export function encoderOf(json: TokenizerJson, where: string): Encoder {
  const part = (name: string) => new Part(where, name);
  const frame = frameOf(json.post_processor, part("post_processor"));
  if (json.model.type === "SentencePiece") {
    const vocabulary = vocabularyOf(json.model, part("model"));
    return new Encoder(new SentencePieceModel(vocabulary, where), json.added_tokens, frame);
  }
  const normalize = normalizerOf(json.normalizer, part("normalizer"));
  const { cut, bytes } = preTokenizerOf(json.pre_tokenizer, part("pre_tokenizer"));
  const model = modelOf(json, bytes, where);
  const text: TextEncoding = {
    encode: (normalized, first, ids) => {
      for (const piece of cut(normalized, first)) for (const id of model.encode(piece)) ids.push(id);
    },
    vocab: model.vocab,
    normalize,
  };
  return new Encoder(text, json.added_tokens, frame);
}
