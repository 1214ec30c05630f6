/** @file tokenizer_config.json: names of special tokens, tokens that tokenizer.json lacks, BOS and EOS, chat templates. */
import { z } from "zod";
import type { Frame } from "./post-processor.ts";
import { type AddedToken, addedTokenSchema, Part, type TokenizerJson } from "./schema.ts";
import { PIECE, type SentencePieceVocabulary, vocabularyOf } from "./sentencepiece.ts";

/** Special tokens are strings, or objects as older versions of transformers wrote them. */
const specialToken = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish();
const flag = z.boolean().nullish();
const namedTemplates = z.array(z.looseObject({ name: z.string(), template: z.string() }));

export const configSchema = z.looseObject({
  bos_token: specialToken,
  eos_token: specialToken,
  pad_token: specialToken,
  unk_token: specialToken,
  sep_token: specialToken,
  cls_token: specialToken,
  mask_token: specialToken,
  additional_special_tokens: z.array(specialToken).nullish(),
  extra_special_tokens: z.union([z.array(specialToken), z.record(z.string(), specialToken)]).nullish(),
  add_bos_token: flag,
  add_eos_token: flag,
  added_tokens_decoder: z.record(z.string().regex(/^\d+$/), addedTokenSchema.omit({ id: true })).nullish(),
  chat_template: z.union([z.string(), namedTemplates]).nullish(),
  legacy: flag,
  tokenizer_class: z.string().nullish(),
});
export type TokenizerConfig = z.infer<typeof configSchema>;

const NAMES = ["bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"] as const;

const contentOf = (token: z.infer<typeof specialToken>): string | undefined =>
  token === null || token === undefined ? undefined : typeof token === "string" ? token : token.content;

/** Spellings of the special tokens by name; chat templates know them. */
export function specialTokens(config: TokenizerConfig): Record<string, string> {
  return Object.fromEntries(
    NAMES.flatMap((name) => {
      const content = contentOf(config[name]);
      return content === undefined ? [] : [[name, content]];
    }),
  );
}

/**
 * tokenizer.json with the tokens that only the config adds. Names of special tokens that have no id anywhere are left
 * out: the model has no row for them.
 */
export function withConfigTokens(json: TokenizerJson, config: TokenizerConfig, where: string): TokenizerJson {
  const sentencePiece =
    json.model.type === "SentencePiece" ? vocabularyOf(json.model, new Part(where, "model")) : undefined;
  const vocab = sentencePiece ? vocabOf(sentencePiece) : (json.model.vocab as Record<string, unknown> | undefined);
  const idIn = (content: string): number | undefined => {
    const id = vocab !== undefined && Object.hasOwn(vocab, content) ? vocab[content] : undefined;
    return typeof id === "number" ? id : undefined;
  };
  const added = new Map(json.added_tokens.map((token) => [token.content, token]));
  for (const [id, token] of Object.entries(config.added_tokens_decoder ?? {})) {
    const own = idIn(token.content);
    if (own !== undefined && sentencePiece?.types[own] === PIECE.userDefined && !token.special) continue;
    // A SentencePiece model says nothing of the whitespace beside its control tokens.
    const known = added.has(token.content) && !sentencePiece;
    if (!known) added.set(token.content, { ...token, id: own ?? Number(id) } as AddedToken);
  }
  const { additional_special_tokens: additional, extra_special_tokens: extra } = config;
  const more = [...(additional ?? []), ...(Array.isArray(extra) ? extra : Object.values(extra ?? {}))].map(contentOf);
  for (const content of [...Object.values(specialTokens(config)), ...more]) {
    if (content === undefined) continue;
    const token = added.get(content);
    const id = token?.id ?? idIn(content);
    const plain = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    if (id !== undefined) added.set(content, { ...plain, ...token, id, content, special: true });
  }
  return { ...json, added_tokens: [...added.values()] };
}

const vocabOf = ({ pieces }: SentencePieceVocabulary): Record<string, number> =>
  Object.fromEntries(pieces.map((piece, id) => [piece, id]));

/** BOS and EOS around a text where the config says so, which wins over the post-processor, as in transformers 5. */
export function frameOfConfig(config: TokenizerConfig, idOf: (name: string) => number | undefined): Frame | undefined {
  const { add_bos_token: bos, add_eos_token: eos } = config;
  if ((bos ?? eos ?? undefined) === undefined) return undefined;
  const ids = (wanted: boolean | null | undefined, name: string): number[] => {
    const id = wanted ? idOf(name) : undefined;
    return id === undefined ? [] : [id];
  };
  return { front: ids(bos, "bos_token"), back: ids(eos, "eos_token") };
}
