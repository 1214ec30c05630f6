/** @file Tokenizers against the reference implementation, streaming against decoding at once, chat templates. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { InputError } from "../base/index.ts";
import { Tokenizer } from "./tokenizer.ts";

interface Case {
  text: string;
  ids: number[];
  plain: number[];
  decoded: string;
  withSpecials: string;
}

/** Made by test/reference/tokenizer_fixture.py. */
const fixture = JSON.parse(readFileSync("test/fixtures/tokenizer.json", "utf8")) as Record<
  string,
  { cases: Case[]; broken: { ids: number[]; decoded: string }[] }
>;

const TINY = "assets/tiny-llama";
const SENTENCEPIECE = "test/fixtures/sentencepiece";

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "tokenizer-"));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** A copy of the tiny tokenizer with some files replaced; undefined removes one. */
function variant(name: string, files: Record<string, string | undefined>): string {
  const path = join(directory, name);
  cpSync(SENTENCEPIECE, path, { recursive: true });
  for (const [file, content] of Object.entries(files)) {
    if (content === undefined) rmSync(join(path, file));
    else writeFileSync(join(path, file), content);
  }
  return path;
}

function edited(source: string, edit: (json: Record<string, unknown>) => void): string {
  const json = JSON.parse(readFileSync(join(source, "tokenizer.json"), "utf8")) as Record<string, unknown>;
  edit(json);
  return JSON.stringify(json);
}

describe.each([TINY, SENTENCEPIECE])("%s", (path) => {
  const tokenizer = Tokenizer.load(path);
  const { cases, broken } = fixture[path]!;

  test.each(cases)("ids and text of the reference: $text", ({ text, ids, plain, decoded, withSpecials }) => {
    expect(tokenizer.encode(text)).toEqual(ids);
    expect(tokenizer.encode(text, { addSpecialTokens: false })).toEqual(plain);
    expect(tokenizer.decode(ids)).toBe(decoded);
    expect(tokenizer.decode(ids, { skipSpecialTokens: false })).toBe(withSpecials);
  });

  test("ids that end or begin inside a character decode as in the reference", () => {
    for (const { ids, decoded } of broken) expect(tokenizer.decode(ids)).toBe(decoded);
  });

  test("a stream gives whole characters only, and nothing but what decoding at once gives", () => {
    for (const { ids, withSpecials } of cases) {
      const stream = tokenizer.decodeStream({ skipSpecialTokens: false });
      const parts = [...ids.map((id) => stream.push(id)), stream.end()];
      expect(parts.join("").includes("\ufffd")).toBe(withSpecials.includes("\ufffd"));
      // A part that began or ended inside a surrogate pair would not survive UTF-8.
      for (const part of parts) expect(Buffer.from(part).toString()).toBe(part);
      expect(parts.join("")).toBe(withSpecials);
    }
  });

  test("text comes as soon as it is whole", () => {
    const ids = tokenizer.encode(" Hello", { addSpecialTokens: false });
    const stream = tokenizer.decodeStream();
    expect(ids.map((id) => stream.push(id)).join("")).toBe(tokenizer.decode(ids));
  });

  test("any ids: the parts of a stream joined are the decoded text; ids outside the vocabulary are silent", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(9000), { maxLength: 60 }), fc.boolean(), (ids, skipSpecialTokens) => {
        const stream = tokenizer.decodeStream({ skipSpecialTokens });
        const text = ids.map((id) => stream.push(id)).join("") + stream.end();
        expect(text).toBe(tokenizer.decode(ids, { skipSpecialTokens }));
      }),
      { numRuns: 300 },
    );
    expect(tokenizer.decode([1_000_000])).toBe("");
    expect(tokenizer.decode([])).toBe("");
  });

  test("any text survives encoding and decoding", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (given) => {
        const text = given.replaceAll("▁", ""); // stands for a space in one of the two
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
      { numRuns: 300 },
    );
  });

  test("a long text has the ids of its parts: cost grows with length, not with its square", () => {
    const words = cases.map(({ text }) => text.replaceAll(/<[^>]*>/g, "")).join(" ");
    const once = tokenizer.encode(words, { addSpecialTokens: false });
    const times = Math.ceil(300_000 / words.length);
    const many = tokenizer.encode(`${`${words} `.repeat(times - 1)}${words}`, { addSpecialTokens: false });
    expect(many.length).toBeGreaterThan((times - 1) * once.length);
    expect(many.slice(0, once.length - 5)).toEqual(once.slice(0, -5));
    expect(tokenizer.decode(many).length).toBe((words.length + 1) * times - 1);
  });
});

describe("an unfinished character is held back, and given up as U+FFFD at the end", () => {
  test("byte-level: one for the beginning of a character, which is whole with its last byte", () => {
    const tokenizer = Tokenizer.load(TINY);
    const ids = [..."ðŁĺĢ"].map((token) => tokenizer.tokenToId(token)!); // the bytes F0 9F 98 80
    const stream = tokenizer.decodeStream();
    expect(ids.slice(0, 3).map((id) => stream.push(id))).toEqual(["", "", ""]);
    expect(stream.push(ids[3]!)).toBe("\u{1f600}");
    expect([stream.push(ids[0]!), stream.push(ids[1]!), stream.end()]).toEqual(["", "", "\ufffd"]);
  });

  test("byte fallback: one for each byte of a run, all of which stand or fall together", () => {
    const tokenizer = Tokenizer.load(SENTENCEPIECE);
    const ids = ["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"].map((token) => tokenizer.tokenToId(token)!);
    const a = tokenizer.tokenToId("a")!;
    const stream = tokenizer.decodeStream();
    expect(ids.map((id) => stream.push(id))).toEqual(["", "", "", ""]);
    expect(stream.push(a)).toBe("\u{1f600}a");
    expect([stream.push(ids[0]!), stream.end()]).toEqual(["", "\ufffd"]);
    expect(tokenizer.decode([...ids, ids[0]!, a])).toBe("\ufffd\ufffd\ufffd\ufffd\ufffda");
  });
});

test("a text that goes on keeps its leading space", () => {
  const tokenizer = Tokenizer.load(SENTENCEPIECE);
  const ids = tokenizer.encode("All human", { addSpecialTokens: false });
  expect(tokenizer.decode(ids)).toBe("All human");
  expect(tokenizer.decode(ids, { continuation: true })).toBe(" All human");
});

test("special tokens: the tokenizer's own, or the model's, which win", () => {
  const own = Tokenizer.load(TINY);
  expect([own.bosTokenId, own.eosTokenIds, own.padTokenId]).toEqual([0, [0], 3]);
  expect([...own.specialTokenIds]).toEqual([0, 1, 2, 3]);
  expect(own.tokenToId("<|im_end|>")).toBe(2);
  const given = Tokenizer.load(TINY, { bosTokenId: 1, eosTokenIds: [2, 0], padTokenId: 0 });
  expect([given.bosTokenId, given.eosTokenIds, given.padTokenId]).toEqual([1, [2, 0], 0]);
  // Without a pad token the end token fills up.
  expect(Tokenizer.load(SENTENCEPIECE).padTokenId).toBe(2);
  const bare = Tokenizer.load(variant("bare", { "tokenizer_config.json": undefined }));
  expect([bare.bosTokenId, bare.eosTokenIds, bare.padTokenId]).toEqual([undefined, [], 0]);
});

test("from the content of the files: the same tokenizer, without a directory", () => {
  const read = (name: string): unknown => JSON.parse(readFileSync(join(TINY, name), "utf8"));
  const loaded = Tokenizer.load(TINY);
  const parts = { tokenizerJson: read("tokenizer.json"), config: read("tokenizer_config.json") };
  const made = Tokenizer.from(parts);
  const messages = [{ role: "user", content: "Hi 😀" }];
  expect(made.encode("Hello, wörld")).toEqual(loaded.encode("Hello, wörld"));
  expect(made.eosTokenIds).toEqual(loaded.eosTokenIds);
  expect(made.applyChatTemplate(messages)).toBe(loaded.applyChatTemplate(messages));
  expect(Tokenizer.from({ ...parts, template: "{{ messages[0].content }}" }).applyChatTemplate(messages)).toBe("Hi 😀");
  expect(Tokenizer.from({ ...parts, ids: { eosTokenIds: [5, 6] } }).eosTokenIds).toEqual([5, 6]);
  expect(() => Tokenizer.from({ tokenizerJson: {}, where: "x.gguf" })).toThrow(/x\.gguf.*model/s);
});

describe("decoders and pre-tokenizers of other tokenizers", () => {
  test("a vocabulary whose tokens cross from one word to the next keeps the text whole", () => {
    const json = edited(SENTENCEPIECE, (tokenizer) => {
      const model = tokenizer.model as { vocab: Record<string, number>; merges: [string, string][] };
      model.vocab["x▁"] = Object.keys(model.vocab).length;
      model.merges.unshift(["x", "▁"]);
    });
    const tokenizer = Tokenizer.load(variant("crossing", { "tokenizer.json": json }));
    const ids = tokenizer.encode("x x", { addSpecialTokens: false });
    expect(ids.map((id) => tokenizer.idToToken(id))).toEqual(["▁", "x▁", "x"]);
  });

  test("Metaspace cuts the mark of the first token and splits words as the reference does", () => {
    const json = edited(SENTENCEPIECE, (tokenizer) => {
      tokenizer.normalizer = null;
      tokenizer.pre_tokenizer = { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true };
      tokenizer.decoder = { type: "Metaspace", replacement: "▁", prepend_scheme: "always", split: true };
    });
    const tokenizer = Tokenizer.load(variant("metaspace", { "tokenizer.json": json }));
    const tokens = tokenizer.encode("All  human", { addSpecialTokens: false }).map((id) => tokenizer.idToToken(id));
    expect(tokens).toEqual(["▁All", "▁", "▁human"]); // not ▁▁, though it is in the vocabulary
    expect(tokenizer.decode(tokenizer.encode("  x"))).toBe(" x"); // every mark of the first token goes
    expect(tokenizer.decode(tokenizer.encode("All  human"))).toBe("All  human");
  });

  test.each([
    ["no decoder", null],
    ["WordPiece", { type: "WordPiece", prefix: "##", cleanup: true }],
    ["a regular expression", { type: "Replace", pattern: { Regex: "a+" }, content: "b" }],
    ["Strip before Fuse", { type: "Sequence", decoders: [{ type: "Strip", content: " ", start: 1, stop: 0 }] }],
    ["something after Fuse", { type: "Sequence", decoders: [{ type: "Fuse" }, { type: "ByteFallback" }] }],
  ])("%s is refused", (name, decoder) => {
    const json = edited(SENTENCEPIECE, (tokenizer) => {
      tokenizer.decoder = decoder;
    });
    const path = variant(name, { "tokenizer.json": json });
    expect(() => Tokenizer.load(path)).toThrow(/decoder: .* is not supported/);
  });
});

describe("chat templates", () => {
  const messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "Hi 😀" },
  ];

  test("the model's own, with and without the opening of the answer", () => {
    const tokenizer = Tokenizer.load(TINY);
    const text = tokenizer.applyChatTemplate(messages);
    expect(text).toBe("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi 😀<|im_end|>\n");
    const open = tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true });
    expect(open).toBe(`${text}<|im_start|>assistant\n`);
    expect(tokenizer.encode(open, { addSpecialTokens: false }).filter((id) => id === 1)).toHaveLength(3);
  });

  test("a chat_template.jinja beside it wins; special tokens and raise_exception are there", () => {
    const template =
      "{{ bos_token }}{% for m in messages %}\n  {% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\n[{{ m.content | trim }}]{% endfor %}";
    const path = variant("jinja", { "chat_template.jinja": template });
    const tokenizer = Tokenizer.load(path);
    expect(tokenizer.applyChatTemplate(messages)).toBe("<s>[Be brief.][Hi 😀]");
    expect(() => tokenizer.applyChatTemplate([{ role: "tool", content: "" }])).toThrow(/no tools/);
  });

  test("a list of templates: the one named default", () => {
    const config = { chat_template: [{ name: "rag", template: "r" }, { name: "default", template: "d" }] }; // biome-ignore format: one line
    const path = variant("list", { "tokenizer_config.json": JSON.stringify(config) });
    expect(Tokenizer.load(path).applyChatTemplate([])).toBe("d");
  });

  test("none, or one that does not parse", () => {
    expect(Tokenizer.load(SENTENCEPIECE).hasChatTemplate).toBe(false);
    expect(() => Tokenizer.load(SENTENCEPIECE).applyChatTemplate(messages)).toThrow(/has no chat template/);
    const path = variant("unparsable", { "chat_template.jinja": "{% for %}" });
    expect(() => Tokenizer.load(path).applyChatTemplate(messages)).toThrow(InputError);
  });
});

test.each([
  ["missing", undefined, /no such file/],
  ["not JSON", "{", /not valid JSON/],
  ["no model", "{}", /model/],
  ["unknown model", '{"model":{"type":"Magic","vocab":{}}}', /tokenizer.json: /],
  ["unknown normalizer", JSON.stringify({ normalizer: { type: "Magic" }, model: { type: "BPE", vocab: {}, merges: [] } }), /Magic/], // biome-ignore format: one line
])("a damaged tokenizer.json: %s", (name, content, message) => {
  const load = () => Tokenizer.load(variant(`damaged ${name}`, { "tokenizer.json": content }));
  expect(load).toThrow(InputError);
  expect(load).toThrow(message);
});
