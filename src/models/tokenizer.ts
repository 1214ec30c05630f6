/** @file The tokenizer and chat template of a model directory. */
import type { BackboneConfig } from "./config.ts";
import { type DecodeStreamOptions, Detokenizer, type TokenStream } from "./detokenizer.ts";
import { type ChatMessage, ChatTemplate, type ChatTemplateOptions, templatesOf } from "./tokenizer/chat-template.ts";
import { configSchema, frameOfConfig, specialTokens, withConfigTokens } from "./tokenizer/config.ts";
import { type Encoder, encoderOf } from "./tokenizer/encoder.ts";
import { readTokenizerFiles } from "./tokenizer/files.ts";
import type { Frame } from "./tokenizer/post-processor.ts";
import { Part, tokenizerSchema } from "./tokenizer/schema.ts";

/** Text to token ids and back, and chat messages to text. */
export class Tokenizer {
  readonly bosTokenId: number | undefined;
  /** Any of these ends a generated sequence. */
  readonly eosTokenIds: readonly number[];
  /** Fills up batches; the first end token, or 0, where the model has none of its own. */
  readonly padTokenId: number;
  /** Ids of all special tokens. */
  readonly specialTokenIds: ReadonlySet<number>;
  readonly #encoder: Encoder;
  readonly #frame: Frame;
  readonly #detokenizer: Detokenizer;
  readonly #template: ChatTemplate;

  private constructor(parts: TokenizerParts) {
    const { ids = {}, where = "tokenizer" } = parts;
    const config = new Part(where, "tokenizer_config").read(configSchema, parts.config ?? {});
    const json = withConfigTokens(
      new Part(where, "tokenizer").read(tokenizerSchema, parts.tokenizerJson),
      config,
      where,
    );
    const special = specialTokens(config);
    const idOf = (name: string): number | undefined => {
      const content = special[name];
      return content === undefined ? undefined : this.#encoder.tokenToId(content);
    };
    this.#encoder = encoderOf(json, where);
    this.#frame = frameOfConfig(config, idOf) ?? this.#encoder.frame;
    this.specialTokenIds = new Set(json.added_tokens.filter((token) => token.special).map((token) => token.id));
    this.#detokenizer = new Detokenizer(json.decoder, (id) => this.#encoder.idToToken(id), this.specialTokenIds, where);
    const eos = idOf("eos_token");
    this.bosTokenId = ids.bosTokenId ?? idOf("bos_token");
    this.eosTokenIds = ids.eosTokenIds?.length ? ids.eosTokenIds : eos === undefined ? [] : [eos];
    this.padTokenId = ids.padTokenId ?? idOf("pad_token") ?? this.eosTokenIds[0] ?? 0;
    this.#template = new ChatTemplate(templatesOf(config, parts.template), special, where);
  }

  /**
   * Reads `tokenizer.json`, or without one `tokenizer.model` or `vocab.json` and `merges.txt`; and where they exist
   * `tokenizer_config.json` and `chat_template.jinja`, which wins.
   * @param ids special tokens of the model's own config, which win over the tokenizer's
   * @throws InputError when a file is missing or asks for something not supported
   */
  static load(directory: string, ids: TokenIds = {}): Tokenizer {
    return new Tokenizer({ ...readTokenizerFiles(directory), ids });
  }

  /**
   * A tokenizer from the content of its files, wherever they came from.
   * @throws InputError as `load`
   */
  static from(parts: TokenizerParts): Tokenizer {
    return new Tokenizer(parts);
  }

  /** One more than the highest token id. */
  get size(): number {
    return this.#encoder.size;
  }

  /** Whether the model directory has a chat template. */
  get hasChatTemplate(): boolean {
    return this.#template.exists;
  }

  /**
   * Token ids of a text. The names of special tokens inside the text become those tokens, as everywhere.
   * @param options.addSpecialTokens add what the tokenizer puts around a text, such as BOS (default true); false for
   *   text that a chat template has made
   */
  encode(text: string, options: { readonly addSpecialTokens?: boolean } = {}): number[] {
    const { front, back } = this.#frame;
    const ids = this.#encoder.encode(text);
    return (options.addSpecialTokens ?? true) ? [...front, ...ids, ...back] : ids;
  }

  /** Text of token ids, without special tokens unless `skipSpecialTokens` is false. Spaces are left as they are. */
  decode(ids: Iterable<number>, options: DecodeStreamOptions = {}): string {
    return this.#detokenizer.decode(ids, options);
  }

  /** Decodes ids as they come. The parts joined are exactly what `decode` gives for all ids. */
  decodeStream(options: DecodeStreamOptions = {}): TokenStream {
    return this.#detokenizer.stream(options);
  }

  /** UTF-8 of a token as it stands inside a text; perhaps only a part of a character. */
  bytesOf(id: number): Uint8Array {
    return this.#detokenizer.bytes(id);
  }

  /** The id of a token given by its exact spelling in the vocabulary. */
  tokenToId(token: string): number | undefined {
    return this.#encoder.tokenToId(token);
  }

  idToToken(id: number): string | undefined {
    return this.#encoder.idToToken(id);
  }

  /**
   * Renders messages with the model's chat template. Encode the text with `addSpecialTokens: false`.
   * @throws InputError `CHAT_TEMPLATE_MISSING`; `CHAT_TEMPLATE_INVALID`; `CHAT_REJECTED` when the template refuses
   *   these messages
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    return this.#template.render(messages, options);
  }
}

/** Special tokens of a model's config. */
export type TokenIds = Partial<Pick<BackboneConfig, "bosTokenId" | "eosTokenIds" | "padTokenId">>;

/** What a tokenizer is made of. */
export interface TokenizerParts {
  /** The content of tokenizer.json. */
  readonly tokenizerJson: unknown;
  /** The content of tokenizer_config.json: names of the special tokens, chat template. */
  readonly config?: unknown;
  /** A chat template in Jinja; wins over the config's. */
  readonly template?: string;
  /** Special tokens of the model's own config, which win over the tokenizer's. */
  readonly ids?: TokenIds;
  /** What errors call it, such as a path (default "tokenizer"). */
  readonly where?: string;
}
