/** @file Tokenizers of GGUF files: ids and texts of sentencepiece and of the reference's byte-level BPE, special tokens, chat templates. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { Backbone } from "../backbone.ts";
import { Tokenizer } from "../tokenizer.ts";
import type { MetadataValue } from "./header.ts";
import { GgufModel } from "./model.ts";
import { hasTokenizer, tokenizerFiles } from "./tokenizer.ts";

const FILES = "test/fixtures/gguf";

interface Case {
  readonly text: string;
  readonly ids: number[];
  readonly decoded: string;
}

const { tokenizers } = JSON.parse(readFileSync(`${FILES}/tokenizers.json`, "utf8")) as {
  tokenizers: { file: string; cases: Case[] }[];
};

function metadataOf(file: string, changes: Record<string, MetadataValue | undefined> = {}): Map<string, MetadataValue> {
  using model = GgufModel.open(`${FILES}/${file}`);
  const metadata = new Map(model.metadata);
  for (const [key, value] of Object.entries(changes)) {
    if (value === undefined) metadata.delete(key);
    else metadata.set(key, value);
  }
  return metadata;
}

const load = (file: string, changes: Record<string, MetadataValue | undefined> = {}): Tokenizer =>
  Tokenizer.from(tokenizerFiles(metadataOf(file, changes), file));

describe.each(tokenizers)("$file", ({ file, cases }) => {
  const tokenizer = load(file);
  const portable = Tokenizer.from(tokenizerFiles(metadataOf(file), file, true));

  test.each(cases)("ids and text of the reference: $text", ({ text, ids, decoded }) => {
    expect(tokenizer.encode(text)).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(decoded);
    // So does what is written for other libraries.
    expect(portable.encode(text)).toEqual(ids);
    expect(portable.decode(ids)).toBe(decoded);
  });
});

test("every kind of pre-tokenizer cuts in its own way", () => {
  const kinds = ["gpt-2", "smollm", "llama-bpe", "qwen2"];
  const idsOf = (pre: string) => {
    const tokenizer = load("tokenizer-gpt-2.gguf", { "tokenizer.ggml.pre": pre });
    return JSON.stringify(tokenizers[1]!.cases.map(({ text }) => tokenizer.encode(text, { addSpecialTokens: false })));
  };
  expect(new Set(kinds.map(idsOf)).size).toBe(kinds.length);
});

describe("settings", () => {
  test("tokens put around a text", () => {
    const plain = load("tokenizer-spm.gguf", { "tokenizer.ggml.add_bos_token": false }).encode("Hello");
    expect(load("tokenizer-spm.gguf").encode("Hello")).toEqual([1, ...plain]);
    expect(load("tokenizer-spm.gguf", { "tokenizer.ggml.add_eos_token": true }).encode("Hello")).toEqual([
      1,
      ...plain,
      2,
    ]);
    expect(load("tokenizer-spm.gguf", { "tokenizer.ggml.add_bos_token": undefined }).encode("Hello")).toEqual([
      1,
      ...plain,
    ]);
    expect(load("tokenizer-gpt-2.gguf", { "tokenizer.ggml.add_bos_token": true }).encode("Hello")[0]).toBe(0);
  });

  test("a space before the text, or none", () => {
    const without = load("tokenizer-spm.gguf", { "tokenizer.ggml.add_space_prefix": false });
    expect(without.encode("human")).not.toEqual(load("tokenizer-spm.gguf").encode("human"));
    expect(without.encode(" human")).toEqual(load("tokenizer-spm.gguf").encode("human"));
    expect(without.decode(without.encode("  human "))).toBe("  human ");
  });

  test("special and user-defined tokens are found by their spelling", () => {
    const tokenizer = load("tokenizer-spm.gguf");
    expect(tokenizer.specialTokenIds).toEqual(new Set([0, 1, 2]));
    const user = tokenizer.tokenToId("<|user|>")!;
    expect(tokenizer.encode("<|user|></s>", { addSpecialTokens: false })).toEqual([user, 2]);
    expect(tokenizer.bosTokenId).toBe(1);
    expect(tokenizer.eosTokenIds).toEqual([2]);
  });

  test("the chat template", () => {
    const tokenizer = load("tokenizer-spm.gguf");
    expect(tokenizer.applyChatTemplate([{ role: "user", content: "hi" }])).toBe("<|user|>hi</s>");
    expect(load("tokenizer-gpt-2.gguf").hasChatTemplate).toBe(false);
  });
});

test.each([
  [{ "tokenizer.ggml.pre": "poro-chat" }, "TOKENIZER_UNSUPPORTED", /"poro-chat" is not one of gpt-2, /],
  [{ "tokenizer.ggml.model": "bert" }, "TOKENIZER_UNSUPPORTED", /"bert" is not one of llama, gpt2/],
  [{ "tokenizer.ggml.model": "none" }, "TOKENIZER_MISSING", /has no tokenizer/],
  [{ "tokenizer.ggml.model": undefined }, "TOKENIZER_MISSING", /has no tokenizer/],
  [{ "tokenizer.ggml.tokens": [1, 2] }, "TOKENIZER_INVALID", /not a list of texts/],
  [{ "tokenizer.ggml.token_type": Int32Array.of(1) }, "TOKENIZER_INVALID", /not one number for each/],
  [{ "tokenizer.ggml.merges": ["a b c"] }, "TOKENIZER_INVALID", /no pair of tokens/],
])("refuses %o", (changes, code, message) => {
  const metadata = metadataOf("tokenizer-gpt-2.gguf", changes);
  expect(() => tokenizerFiles(metadata, "x.gguf")).toThrow(expect.objectContaining({ code }) as Error);
  expect(() => tokenizerFiles(metadata, "x.gguf")).toThrow(message);
  expect(hasTokenizer(metadata)).toBe(code !== "TOKENIZER_MISSING");
});

test("a backbone's tokenizer is its file's", async () => {
  using backbone = await Backbone.load(`${FILES}/llama-gqa-q4_0.gguf`);
  expect(backbone.hasTokenizer).toBe(true);
  expect([backbone.tokenizer.tokenToId("w7"), backbone.tokenizer.eosTokenIds]).toEqual([7, [2]]);
});
