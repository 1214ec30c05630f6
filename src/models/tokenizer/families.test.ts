/** @file Token ids and texts of the model families' tokenizers against the reference, on all scripts of Unicode. */
import { readFileSync } from "node:fs";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Tokenizer } from "../tokenizer.ts";
import { differences, digest, draw, drawStrings } from "./testing.ts";

interface Family {
  base: string;
  model: object;
  expected: { ids: number[][]; plain: string; decoded: string; strings: string; sequences: string };
}

/** Made by test/reference/tokenizer_families.py, which also tells what the reference makes of one string. */
const fixture = JSON.parse(readFileSync("test/fixtures/tokenizers/families.json", "utf8")) as {
  bases: Record<string, { tokens: string[]; merges: [string, string][] }>;
  texts: string[];
  parts: string[];
  runs: [number, number][];
  strings: number;
  sequences: number;
  families: Record<string, Family>;
};

function load(name: string): Tokenizer {
  const { base, model, expected: _, ...parts } = fixture.families[name]!;
  const { tokens, merges } = fixture.bases[base]!;
  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  return Tokenizer.from({ tokenizerJson: { ...parts, model: { ...model, vocab, merges } } });
}

const digestText = (text: string): string => digest(new TextEncoder().encode(text));

const strings = drawStrings(fixture.strings, fixture.runs, fixture.parts);

function sequences(size: number): number[][] {
  const next = draw(77);
  return Array.from({ length: fixture.sequences }, () => {
    const limit = next(2) ? size : Math.min(size, 300);
    return Array.from({ length: next(14) }, () => next(limit + 2));
  });
}

function streamed(tokenizer: Tokenizer, ids: readonly number[], skipSpecialTokens: boolean): string {
  const stream = tokenizer.decodeStream({ skipSpecialTokens });
  return ids.map((id) => stream.push(id)).join("") + stream.end();
}

describe.each(Object.keys(fixture.families))("%s", (name) => {
  const { expected } = fixture.families[name]!;
  const tokenizer = load(name);

  test("ids of texts", () => {
    for (const [at, text] of fixture.texts.entries()) {
      expect({ text, ids: tokenizer.encode(text) }).toEqual({ text, ids: expected.ids[at] });
    }
    const plain = (text: string) => digest(tokenizer.encode(text, { addSpecialTokens: false }));
    expect(differences(fixture.texts, expected.plain, plain)).toEqual([]);
  });

  test("ids of strings from all scripts", () => {
    expect(differences(strings, expected.strings, (text) => digest(tokenizer.encode(text)))).toEqual([]);
  });

  test("texts of these ids and of random ones, at once and streamed", () => {
    const rows = expected.ids.map((ids) => ({ ids, skip: true }));
    const texts = [...rows, ...rows.map(({ ids }) => ({ ids, skip: false }))];
    const random = sequences(tokenizer.size).map((ids) => ({ ids, skip: true }));
    const both = [...random, ...random.map(({ ids }) => ({ ids, skip: false }))];
    for (const [given, digests] of [
      [texts, expected.decoded],
      [both, expected.sequences],
    ] as const) {
      const decoded = differences(given, digests, ({ ids, skip }) =>
        digestText(tokenizer.decode(ids, { skipSpecialTokens: skip })),
      );
      expect(decoded.slice(0, 5)).toEqual([]);
      for (const { ids, skip } of given) {
        expect(streamed(tokenizer, ids, skip)).toBe(tokenizer.decode(ids, { skipSpecialTokens: skip }));
      }
    }
  });

  test("any text and any ids: lone surrogates count as U+FFFD, a stream joined is the decoded text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), (text) => {
        expect(tokenizer.encode(text)).toEqual(tokenizer.encode(text.replace(/\p{Surrogate}/gu, "\ufffd")));
      }),
      { numRuns: 30 },
    );
    fc.assert(
      fc.property(fc.array(fc.nat(tokenizer.size + 2)), fc.boolean(), (ids, skip) => {
        expect(streamed(tokenizer, ids, skip)).toBe(tokenizer.decode(ids, { skipSpecialTokens: skip }));
      }),
      { numRuns: 30 },
    );
  });
});
