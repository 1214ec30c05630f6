/** @file SentencePiece models against the Python package: ids of texts and of strings from all scripts of Unicode. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InputError } from "../../base/index.ts";
import { Tokenizer } from "../tokenizer.ts";
import { readSentencePiece, sentencePieceJson } from "./sentencepiece.ts";
import { differences, digest, drawStrings } from "./testing.ts";

const MODELS = "test/fixtures/tokenizers/sentencepiece";
const read = (path: string) => JSON.parse(readFileSync(path, "utf8"));

/** Made by test/reference/tokenizer_sentencepiece.py, which also tells what the package makes of one string. */
const fixture = read(join(MODELS, "expected.json")) as {
  texts: string[];
  models: Record<string, { ids: number[][]; strings: string }>;
};
const { strings: count, runs, parts } = read("test/fixtures/tokenizers/families.json");
const strings = drawStrings(count, runs, parts).map((text) => text.replaceAll("<s>", "<t>"));

let root: string;
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), "sentencepiece-"));
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A model directory with this tokenizer.model and other files. */
function directory(name: string, model: string | Uint8Array, files: Record<string, unknown> = {}): string {
  const path = join(root, name);
  mkdirSync(path);
  if (typeof model === "string") cpSync(join(MODELS, `${model}.model`), join(path, "tokenizer.model"));
  else writeFileSync(join(path, "tokenizer.model"), model);
  for (const [file, content] of Object.entries(files)) writeFileSync(join(path, file), JSON.stringify(content));
  return path;
}

describe.each(Object.keys(fixture.models))("%s", (name) => {
  const expected = fixture.models[name]!;
  const encode = (tokenizer: Tokenizer) => (text: string) => tokenizer.encode(text, { addSpecialTokens: false });

  test("ids of texts and of strings from all scripts", () => {
    const tokenizer = Tokenizer.load(directory(name, name));
    for (const [at, text] of fixture.texts.entries()) {
      expect({ text, ids: encode(tokenizer)(text) }).toEqual({ text, ids: expected.ids[at] });
    }
    expect(differences(strings, expected.strings, (text) => digest(encode(tokenizer)(text)))).toEqual([]);
  });
});

test("BOS in front, special tokens by their names in the model or the config, text back", () => {
  const own = Tokenizer.load(directory("own", "llama"));
  const hello = own.encode("dignity and rights", { addSpecialTokens: false });
  expect([own.bosTokenId, own.eosTokenIds, own.tokenToId("<unk>")]).toEqual([1, [2], 0]);
  expect(own.encode("dignity and rights")).toEqual([1, ...hello]);
  expect(own.decode([1, ...hello, 2])).toBe("dignity and rights");
  expect(own.decode([1, ...hello, 2], { skipSpecialTokens: false })).toBe("<s> dignity and rights</s>");
  // A space is put before the text, and after a special token where the config says "legacy".
  const after = own.encode("</s>and", { addSpecialTokens: false });
  expect(after.map((id) => own.idToToken(id))).toEqual(["</s>", "a", "nd"]);
  const config = {
    add_bos_token: false,
    add_eos_token: true,
    legacy: true,
    eos_token: "<end>",
    added_tokens_decoder: { 700: { content: "<end>", special: true, rstrip: true }, 701: { content: "<more>" } },
  };
  const changed = Tokenizer.load(directory("changed", "llama", { "tokenizer_config.json": config }));
  expect(changed.encode("dignity and rights")).toEqual([...hello, 700]);
  expect(changed.encode("</s>dignity and rights<end> \n<more>")).toEqual([2, ...hello, 700, 701, 700]);
  expect([changed.eosTokenIds, [...changed.specialTokenIds]]).toEqual([[700], [0, 1, 2, 700]]);
  const old = { "special_tokens_map.json": { eos_token: { content: "<old>" } }, "added_tokens.json": { "<old>": 700 } };
  const older = Tokenizer.load(directory("older", "llama", old));
  expect([older.eosTokenIds, older.encode("<old>")]).toEqual([[700], [1, 700]]);
});

test("as JSON and back, as prepared models keep it", () => {
  const { vocabulary } = readSentencePiece(readFileSync(join(MODELS, "rules.model")), "rules");
  const json = JSON.parse(JSON.stringify(sentencePieceJson(vocabulary)));
  const encode = (tokenizerJson: unknown) => Tokenizer.from({ tokenizerJson }).encode("ﬁne ＡＢ ½ <start> 😀");
  expect(encode(json)).toEqual(encode(sentencePieceJson(vocabulary)));
});

test("user-defined symbols are no special tokens", () => {
  const tokenizer = Tokenizer.load(directory("symbols", "gemma"));
  const ids = tokenizer.encode("<start>and<end>");
  expect(ids.map((id) => tokenizer.idToToken(id))).toEqual(["<s>", "<start>", "a", "nd", "<end>"]);
  expect(tokenizer.decode(ids)).toBe("<start>and<end>");
});

test("a long text takes time in proportion to its length", () => {
  const tokenizer = Tokenizer.load(directory("long", "llama"));
  const ids = tokenizer.encode("abcdefghij".repeat(20_000), { addSpecialTokens: false });
  expect(tokenizer.decode(ids)).toHaveLength(200_000);
});

/** A field of bytes of a protobuf. */
function field(number: number, bytes: Uint8Array): Buffer {
  const head = [(number << 3) | 2];
  let length = bytes.length;
  for (; length > 127; length = Math.floor(length / 128)) head.push((length % 128) + 128);
  return Buffer.concat([Buffer.from([...head, length]), bytes]);
}

test("a field that is there half a million times is read once through, and the last of them counts", () => {
  const model = readFileSync(join(MODELS, "llama.model"));
  // model_type, of words but for the last one; each copied with those before it they would take an hour.
  const types = Buffer.alloc(1_000_000, Buffer.from([0x18, 3]));
  types[types.length - 1] = 2;
  const { vocabulary } = readSentencePiece(Buffer.concat([model, field(2, types)]), "repeated");
  expect(vocabulary.kind).toBe("bpe");
  expect(vocabulary.pieces).toEqual(readSentencePiece(model, "llama").vocabulary.pieces);
});

test("a hundred thousand symbols that begin alike", () => {
  const { vocabulary } = readSentencePiece(readFileSync(join(MODELS, "unigram.model")), "unigram");
  const symbols = Array.from({ length: 100_000 }, (_, i) => `<${i}>`);
  const tokenizerJson = sentencePieceJson({
    ...vocabulary,
    pieces: [...vocabulary.pieces, ...symbols],
    scores: [...Array.from(vocabulary.scores), ...symbols.map(() => 0)],
    types: [...Array.from(vocabulary.types), ...symbols.map(() => 4)],
  });
  const tokenizer = Tokenizer.from({ tokenizerJson });
  const id = tokenizer.tokenToId("<99999>");
  expect(tokenizer.encode("and<99999>", { addSpecialTokens: false }).at(-1)).toBe(id);
});

test.each([
  ["tiktoken", Buffer.from("IQ== 0\nIg== 1\n"), /damaged, or no SentencePiece model|has no pieces/],
  ["empty", Buffer.alloc(0), /has no pieces/],
  ["cut", readFileSync(join(MODELS, "llama.model")).subarray(0, 5000), /damaged/],
  ["of words", Buffer.from("0a070a016115000000001202180318", "hex"), /damaged|words or characters/],
])("a damaged tokenizer.model: %s", (name, bytes, message) => {
  const path = directory(`damaged ${name}`, bytes);
  expect(() => Tokenizer.load(path)).toThrow(InputError);
  expect(() => Tokenizer.load(path)).toThrow(message);
});

describe("vocab.json and merges.txt", () => {
  const { bases, families } = read("test/fixtures/tokenizers/families.json");
  const { tokens, merges } = bases.bytes as { tokens: string[]; merges: [string, string][] };
  const vocab = Object.fromEntries([...tokens, "<|endoftext|>"].map((token, id) => [token, id]));
  const write = (name: string, config: object) => {
    const path = directory(name, "llama", { "vocab.json": vocab, "tokenizer_config.json": config });
    rmSync(join(path, "tokenizer.model"));
    writeFileSync(join(path, "merges.txt"), `#version: 0.2\n${merges.map((pair) => pair.join(" ")).join("\n")}\n`);
    return path;
  };
  const text = "It's 1234 dignity\n\n  and rights<|endoftext|>";

  test.each([
    ["GPT2Tokenizer", "gpt2"],
    ["Qwen2TokenizerFast", "qwen2"],
  ])("%s", (tokenizer_class, family) => {
    const tokenizer = Tokenizer.load(write(family, { tokenizer_class, eos_token: "<|endoftext|>" }));
    const { base: _, model, expected: __, ...parts } = families[family];
    const json = { ...parts, model: { ...model, vocab, merges } };
    expect(tokenizer.encode(text)).toEqual(Tokenizer.from({ tokenizerJson: json }).encode(text));
    expect(tokenizer.decode(tokenizer.encode(text), { skipSpecialTokens: false })).toBe(text);
    expect(tokenizer.eosTokenIds).toEqual([vocab["<|endoftext|>"]]);
  });

  test("another class is refused", () => {
    expect(() => Tokenizer.load(write("other", { tokenizer_class: "RobertaTokenizer" }))).toThrow(/RobertaTokenizer/);
  });
});
