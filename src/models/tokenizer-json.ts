/** @file Rewrites of tokenizer.json that make @huggingface/tokenizers agree with the reference implementation, and fast. */
import { z } from "zod";

type Json = Record<string, unknown>;

const preTokenizerSchema = z.looseObject({ type: z.string() });

/** Splits text into all matches of an Oniguruma pattern. */
const matches = (pattern: string): Json => ({
  type: "Split",
  pattern: { Regex: pattern },
  behavior: "Isolated",
  invert: true,
});

/** GPT-2's pattern, from the reference implementation. Given as `Split`, its \s is Unicode's, as it should be. */
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const escapeRegex = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");

/**
 * Known differences of version 0.2.0, each put right by an equivalent `Split`:
 * - `Digits` knows only 0–9; the reference isolates every Unicode number (²,٣,½).
 * - `ByteLevel` uses JavaScript's \s, which has U+FEFF and lacks U+0085.
 * - `Metaspace` does not split into words.
 */
function rewritePreTokenizer(json: unknown): unknown {
  const parsed = preTokenizerSchema.safeParse(json);
  if (!parsed.success) return json;
  const node: Json = parsed.data;
  switch (node.type) {
    case "Sequence": {
      const steps = node.pretokenizers;
      return Array.isArray(steps) ? { ...node, pretokenizers: steps.map(rewritePreTokenizer) } : node;
    }
    case "Digits":
      return matches(node.individual_digits === true ? "[^\\p{N}]+|\\p{N}" : "[^\\p{N}]+|\\p{N}+");
    case "ByteLevel":
      // A prefix space is added before splitting, which two steps would do in the wrong order.
      if (node.use_regex === false || node.add_prefix_space === true) return node;
      return { type: "Sequence", pretokenizers: [matches(GPT2), { ...node, use_regex: false }] };
    case "Metaspace": {
      if (node.split === false) return node;
      const mark = escapeRegex(typeof node.replacement === "string" ? node.replacement : "▁");
      return { type: "Sequence", pretokenizers: [node, matches(`${mark}[^${mark}]*|[^${mark}]+`)] };
    }
    default:
      return node;
  }
}

/**
 * A SentencePiece-like BPE has no pre-tokenizer: the whole text is one word, which takes 15 s for a megabyte. Where no
 * token has ▁ after another character, no merge can cross from a character to a ▁, so splitting there changes nothing
 * but the time: words are short, and repeated ones come from a cache.
 */
function splitsAtWords(model: Json): boolean {
  const { vocab, type } = model;
  if (type !== "BPE" || typeof vocab !== "object" || vocab === null || Array.isArray(vocab)) return false;
  return !Object.keys(vocab).some((token) => /[^▁]▁/u.test(token));
}

export function rewriteTokenizerJson(json: Json): Json {
  const model = json.model;
  const preTokenizer = json.pre_tokenizer;
  if (preTokenizer === null && typeof model === "object" && model !== null && splitsAtWords(model as Json)) {
    return { ...json, pre_tokenizer: matches("▁+[^▁]*|[^▁]+") };
  }
  return { ...json, pre_tokenizer: rewritePreTokenizer(preTokenizer) };
}
