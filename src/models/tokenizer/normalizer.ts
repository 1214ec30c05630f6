/** @file Normalizers of tokenizer.json: from the text as given to the text that is cut into tokens. */
import { z } from "zod";
import { compilePattern } from "./regex.ts";
import { type Part, patternSchema, type Step } from "./schema.ts";
import { normalForm } from "./unicode.ts";

export type Normalize = (text: string) => string;

const replaceSchema = z.looseObject({ pattern: patternSchema, content: z.string() });
const stripSchema = z.looseObject({ strip_left: z.boolean(), strip_right: z.boolean() });
const sequenceSchema = z.looseObject({ normalizers: z.array(z.looseObject({ type: z.string() })) });

/** Character by character, as the reference: the end of a word has no sigma of its own. */
const lower: Normalize = (text) =>
  text.replace(/\p{Changes_When_Lowercased}/gu, (character) => character.toLowerCase());

/**
 * The function of a normalizer. Those of BERT and T5, and StripAccents, go by tables of other versions of Unicode and
 * are refused.
 */
export function normalizerOf(step: Step | null | undefined, part: Part): Normalize {
  if (!step) return (text) => text;
  switch (step.type) {
    case "Sequence": {
      const steps = part.read(sequenceSchema, step).normalizers.map((inner) => normalizerOf(inner, part));
      return (text) => steps.reduce((result, normalize) => normalize(result), text);
    }
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const form = step.type;
      return (text) => normalForm(text, form);
    }
    case "Lowercase":
      return lower;
    case "Replace": {
      const { pattern, content } = part.read(replaceSchema, step);
      if ("String" in pattern) return (text) => text.replaceAll(pattern.String, () => content);
      const regex = compilePattern(pattern, part);
      return (text) => text.replace(regex, () => content);
    }
    case "Prepend": {
      const { prepend } = part.read(z.looseObject({ prepend: z.string() }), step);
      return (text) => (text === "" ? "" : prepend + text);
    }
    case "Strip": {
      const { strip_left: left, strip_right: right } = part.read(stripSchema, step);
      return (text) => {
        const start = left ? text.replace(/^\p{White_Space}+/u, "") : text;
        return right ? trimEnd(start) : start;
      };
    }
    default:
      return part.unsupported(step.type);
  }
}

/** Without the whitespace at the end; a regular expression would look at every blank of the text again and again. */
export function trimEnd(text: string): string {
  let end = text.length;
  // All whitespace lies in the basic plane.
  while (end > 0 && /\p{White_Space}/u.test(text[end - 1]!)) end--;
  return text.slice(0, end);
}
