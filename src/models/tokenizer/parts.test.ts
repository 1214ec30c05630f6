/** @file Parts of tokenizer files that are damaged or not known, and what tokenizer_config.json adds to tokenizer.json. */
import { describe, expect, test } from "vitest";
import { InputError } from "../../base/index.ts";
import { Tokenizer } from "../tokenizer.ts";
import { PIECE, sentencePieceJson } from "./sentencepiece.ts";

const byteLevel = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
const vocab = { a: 0, b: 1, ab: 2, "<s>": 3, "</s>": 4, "[X]": 5 };
const sound = {
  model: { type: "BPE", vocab, merges: [["a", "b"]] },
  added_tokens: [{ id: 3, content: "<s>", special: true }],
  normalizer: null,
  pre_tokenizer: byteLevel,
  post_processor: null,
  decoder: byteLevel,
};
const template = (special_tokens: object) => ({
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [],
  special_tokens,
});

describe("refused, naming the part", () => {
  test.each([
    ["no object", [], "TOKENIZER_INVALID", /tokenizer: /],
    ["no model", { ...sound, model: undefined }, "TOKENIZER_INVALID", /tokenizer.model: /],
    [
      "added token without id",
      { ...sound, added_tokens: [{ content: "x" }] },
      "TOKENIZER_INVALID",
      /added_tokens.0.id/,
    ],
    ["WordPiece", { ...sound, model: { type: "WordPiece", vocab } }, "TOKENIZER_UNSUPPORTED", /model: WordPiece/],
    ["Unigram", { ...sound, model: { type: "Unigram", vocab: [] } }, "TOKENIZER_UNSUPPORTED", /model: Unigram/],
    ["dropout", { ...sound, model: { ...sound.model, dropout: 0.1 } }, "TOKENIZER_UNSUPPORTED", /model: dropout/],
    ["suffix", { ...sound, model: { ...sound.model, end_of_word_suffix: "</w>" } }, "TOKENIZER_UNSUPPORTED", /suffix/],
    ["vocab a list", { ...sound, model: { ...sound.model, vocab: [] } }, "TOKENIZER_INVALID", /model.vocab/],
    ["ids no numbers", { ...sound, model: { ...sound.model, vocab: { a: "0" } } }, "TOKENIZER_INVALID", /vocab: "a"/],
    [
      "merge of three",
      { ...sound, model: { ...sound.model, merges: [["a", "b", "c"]] } },
      "TOKENIZER_INVALID",
      /merges: /,
    ],
    ["merge of one", { ...sound, model: { ...sound.model, merges: ["ab"] } }, "TOKENIZER_INVALID", /merges: "ab"/],
    ["merge of strangers", { ...sound, model: { ...sound.model, merges: [["b", "a"]] } }, "TOKENIZER_INVALID", /"ba"/],
    [
      "unknown token unknown",
      { ...sound, model: { ...sound.model, unk_token: "?" } },
      "TOKENIZER_INVALID",
      /unk_token/,
    ],
    ["normalizer", { ...sound, normalizer: { type: "BertNormalizer" } }, "TOKENIZER_UNSUPPORTED", /normalizer: Bert/],
    ["its fields", { ...sound, normalizer: { type: "Prepend" } }, "TOKENIZER_INVALID", /normalizer.prepend/],
    [
      "pre-tokenizer",
      { ...sound, pre_tokenizer: { type: "UnicodeScripts" } },
      "TOKENIZER_UNSUPPORTED",
      /pre_tokenizer: Uni/,
    ],
    [
      "its pattern",
      { ...sound, pre_tokenizer: { type: "Split", pattern: { Regex: "(" }, behavior: "Isolated" } },
      "TOKENIZER_UNSUPPORTED",
      /regular expression \(/,
    ],
    [
      "its behaviour",
      { ...sound, pre_tokenizer: { type: "Split", pattern: { String: "a" }, behavior: "x" } },
      "TOKENIZER_INVALID",
      /behavior/,
    ],
    [
      "post-processor",
      { ...sound, post_processor: { type: "Magic" } },
      "TOKENIZER_UNSUPPORTED",
      /post_processor: Magic/,
    ],
    ["its tokens", { ...sound, post_processor: template({}) }, "TOKENIZER_INVALID", /special_tokens lacks "<s>"/],
    ["decoder", { ...sound, decoder: { type: "CTC" } }, "TOKENIZER_UNSUPPORTED", /decoder: CTC/],
  ])("%s", (_, tokenizerJson, code, message) => {
    const load = () => Tokenizer.from({ tokenizerJson, where: "here" });
    expect(load).toThrow(InputError);
    expect(load).toThrow(message);
    expect(load).toThrow(expect.objectContaining({ code }));
  });

  test("a config that is none", () => {
    const load = (config: unknown) => () => Tokenizer.from({ tokenizerJson: sound, config });
    expect(load({ bos_token: 5 })).toThrow(/tokenizer_config.bos_token/);
    expect(load({ chat_template: [{ name: "x" }] })).toThrow(/chat_template/);
  });

  test("a SentencePiece vocabulary without an unknown piece, byte pieces or sound rules", () => {
    const given = { kind: "bpe" as const, pieces: ["a"], scores: [0], types: [PIECE.normal], addDummyPrefix: true };
    const load = (more: object) => () =>
      Tokenizer.from({ tokenizerJson: sentencePieceJson({ ...given, byteFallback: false, ...more }) });
    expect(load({})).toThrow(/no unknown piece/);
    expect(load({ byteFallback: true })).toThrow(/byte fallback/);
    const unknown = { pieces: ["<unk>"], types: [PIECE.unknown] };
    expect(load(unknown)).not.toThrow();
    expect(load({ ...unknown, scores: [] })).toThrow(/differ in number/);
    const damaged = { ...sound, model: { type: "SentencePiece", vocabulary: { kind: "words" } } };
    expect(() => Tokenizer.from({ tokenizerJson: damaged })).toThrow(/model.vocabulary.kind/);
    expect(load({ ...unknown, charsmap: new Uint8Array([9, 0, 0, 0, 1]) })).toThrow(/charsmap/);
  });
});

describe("tokenizer_config.json", () => {
  const make = (config: object, json: object = sound) => Tokenizer.from({ tokenizerJson: json, config });
  const names = { bos_token: "<s>", eos_token: { content: "</s>" } };

  test("add_bos_token and add_eos_token win over the post-processor; without them it stands", () => {
    const json = { ...sound, post_processor: template({ "<s>": { id: "<s>", ids: [3], tokens: ["<s>"] } }) };
    expect(make(names, json).encode("ab")).toEqual([3, 2]);
    expect(make({ ...names, add_bos_token: false }, json).encode("ab")).toEqual([2]);
    expect(make({ ...names, add_eos_token: true }, json).encode("ab")).toEqual([2, 4]);
    expect(make({ ...names, add_bos_token: true, add_eos_token: true }).encode("ab")).toEqual([3, 2, 4]);
    expect(make({ add_bos_token: true }).encode("ab")).toEqual([2]); // it has no BOS
    expect(make({ ...names, add_bos_token: true }).encode("ab", { addSpecialTokens: false })).toEqual([2]);
  });

  test("special tokens that tokenizer.json does not list, by their ids in the vocabulary or the config", () => {
    expect(make({}).encode("a</s>")).toEqual([0]); // of "</s>" no character is known
    const tokenizer = make({ ...names, additional_special_tokens: ["[X]", "[nowhere]"] });
    expect(tokenizer.encode("a</s>b[X]")).toEqual([0, 4, 1, 5]);
    expect([...tokenizer.specialTokenIds].sort()).toEqual([3, 4, 5]);
    const added = { 6: { content: "[Y]", rstrip: true }, 3: { content: "<s>", rstrip: true } };
    const more = make({ added_tokens_decoder: added, extra_special_tokens: { image: "[Y]" } });
    expect(more.encode("a[Y]  b<s> b")).toEqual([0, 6, 1, 3, 1]);
    expect(more.decode([0, 6, 1])).toBe("ab");
    expect(more.size).toBe(7);
  });
});

test("no character beyond ASCII is folded but those two that fold to ASCII", () => {
  const pattern = { type: "Split", pattern: { Regex: "(?i:'s|'k|é)" }, behavior: "Isolated", invert: false };
  const letters = Object.fromEntries([..."'skSKſ\u212aéÉx"].map((letter, id) => [letter, id]));
  const merges = [["x", "'"], ["ſ", "x"], ["\u212a", "x"]]; // biome-ignore format: one line
  const tokens = { ...letters, "x'": 20, ſx: 21, "\u212ax": 22 };
  const json = { ...sound, pre_tokenizer: pattern, model: { type: "BPE", vocab: tokens, merges } };
  const tokenizer = Tokenizer.from({ tokenizerJson: json });
  for (const text of ["x'sx", "x'Sx", "x'ſx", "x'kx", "x'Kx", "x'\u212ax"])
    expect(tokenizer.encode(text)).not.toContain(20);
  expect(tokenizer.encode("x'xſx")).toEqual([20, 9, 21]);
});
