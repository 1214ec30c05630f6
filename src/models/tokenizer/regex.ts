/** @file Oniguruma's regular expressions, as tokenizer.json has them, in JavaScript. */
import * as library from "@huggingface/tokenizers";
import { reasonOf } from "../../base/index.ts";
import type { Part, Pattern } from "./schema.ts";

/** Its types name their files without an extension, so that TypeScript finds only some of them. */
const { SplitPreTokenizer } = library as unknown as {
  SplitPreTokenizer: new (config: object) => { readonly pattern: RegExp | null };
};

const escapeRegex = (text: string): string => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");

/**
 * The translation of @huggingface/tokenizers folds the case of ASCII alone. Two letters beyond it fold to ASCII ones:
 * U+017F to s and U+212A, the Kelvin sign, to k. They are written out, which that translation leaves as they are.
 */
function foldBeyondAscii(pattern: string): string {
  return pattern.replace(/\(\?i:((?:[^()[\]\\]|\\.)*)\)/g, (_, body: string) => {
    const folded = body.replace(/\\.|[sSkK]/gs, (atom) => {
      if (atom.length > 1) return atom;
      return /s/i.test(atom) ? "[sS\u017f]" : "[kK\u212a]";
    });
    return `(?i:${folded})`;
  });
}

/** The pattern with the flags g and u. Throws SyntaxError for what JavaScript cannot express. */
function compileRegex(pattern: string): RegExp {
  const regex = { Regex: foldBeyondAscii(pattern) };
  const { pattern: compiled } = new SplitPreTokenizer({ type: "Split", pattern: regex, invert: false });
  if (!compiled) throw new SyntaxError("no pattern");
  return compiled;
}

/** A pattern of tokenizer.json; an error names the part that has it. */
export function compilePattern(pattern: Pattern, part: Part): RegExp {
  if ("String" in pattern) return new RegExp(escapeRegex(pattern.String), "gu");
  try {
    return compileRegex(pattern.Regex);
  } catch (error) {
    return part.unsupported(`the regular expression ${pattern.Regex} (${reasonOf(error)})`, error);
  }
}
