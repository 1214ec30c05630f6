/** @file Pre-tokenizers of tokenizer.json: a text cut into pieces that no token crosses. */
import { z } from "zod";
import { byteCharacters } from "./bytes.ts";
import { compilePattern } from "./regex.ts";
import { type Part, patternSchema, type Step } from "./schema.ts";
import { PUNCTUATION } from "./unicode.ts";

/** @param first whether the text begins the whole input */
type Cut = (pieces: readonly string[], first: boolean) => string[];

export interface PreTokenizer {
  /** Pieces of a text, none of them empty. */
  readonly cut: (text: string, first: boolean) => string[];
  /** The pieces' bytes are still to be spelled in GPT-2's characters; as a last step, only for pieces not met before. */
  readonly bytes: boolean;
}

const behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] as const;
type Behavior = (typeof behaviors)[number];

const splitSchema = z.looseObject({
  pattern: patternSchema,
  behavior: z.enum(behaviors),
  invert: z.boolean().default(false),
});
const digitsSchema = z.looseObject({ individual_digits: z.boolean().default(false) });
const punctuationSchema = z.looseObject({ behavior: z.enum(behaviors).default("Isolated") });
const byteLevelSchema = z.looseObject({
  add_prefix_space: z.boolean().default(true),
  use_regex: z.boolean().default(true),
});
const metaspaceSchema = z.looseObject({
  replacement: z.string().default("▁"),
  add_prefix_space: z.boolean().optional(),
  prepend_scheme: z.enum(["always", "first", "never"]).optional(),
  split: z.boolean().default(true),
});
const sequenceSchema = z.looseObject({ pretokenizers: z.array(z.looseObject({ type: z.string() })) });

const GPT2 = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu; // biome-ignore format: one line

/** Bounds of the pieces, as pairs of begin and end. */
function bounds(text: string, regex: RegExp, behavior: Behavior, invert: boolean): [number, number][] {
  const spans: { begin: number; end: number; match: boolean }[] = [];
  const add = (begin: number, end: number, match: boolean) => spans.push({ begin, end, match: match !== invert });
  let done = 0;
  for (const found of text.matchAll(regex)) {
    const end = found.index + found[0].length;
    if (found.index > done) add(done, found.index, false);
    add(found.index, end, true);
    done = end;
  }
  if (done < text.length) add(done, text.length, false);
  if (behavior === "Removed") return spans.flatMap(({ begin, end, match }) => (match ? [] : [[begin, end]]));
  const pieces: [number, number][] = [];
  let before = false;
  if (behavior === "MergedWithNext") {
    for (const { begin, end, match } of spans.reverse()) {
      const next = pieces.at(-1);
      if (match && !before && next) next[0] = begin;
      else pieces.push([begin, end]);
      before = match;
    }
    return pieces.reverse();
  }
  for (const { begin, end, match } of spans) {
    const last = pieces.at(-1);
    const joins = behavior === "Contiguous" ? match === before : behavior === "MergedWithPrevious" && match && !before;
    if (joins && last) last[1] = end;
    else pieces.push([begin, end]);
    before = match;
  }
  return pieces;
}

function cutBy(regex: RegExp, behavior: Behavior, invert = false): Cut {
  const cut = (piece: string): string[] => {
    if (behavior === "Isolated") {
      // Without positions it takes half the time; most patterns match all of a text or nothing.
      const found = piece.match(regex);
      if (!found) return [piece];
      if (found.reduce((length, match) => length + match.length, 0) === piece.length) return found.filter(Boolean);
    }
    const pieces: string[] = [];
    for (const [begin, end] of bounds(piece, regex, behavior, invert)) {
      if (end > begin) pieces.push(piece.slice(begin, end));
    }
    return pieces;
  };
  return (pieces) => (pieces.length === 1 ? cut(pieces[0]!) : pieces.flatMap(cut));
}

/** All of a text is matched by these, so that matches alone are the pieces. */
const matches =
  (regex: RegExp): Cut =>
  (pieces) =>
    pieces.length === 1 ? (pieces[0]!.match(regex) ?? []) : pieces.flatMap((piece) => piece.match(regex) ?? []);

const spell: Cut = (pieces) => pieces.map(byteCharacters);

/** The steps of a pre-tokenizer; ByteLevel's spelling of bytes is a step of its own. */
function stepsOf(step: Step, part: Part): Cut[] {
  switch (step.type) {
    case "Sequence":
      return part.read(sequenceSchema, step).pretokenizers.flatMap((inner) => stepsOf(inner, part));
    case "Split": {
      const { pattern, behavior, invert } = part.read(splitSchema, step);
      if ("String" in pattern && pattern.String === "") return part.invalid("Split by nothing");
      return [cutBy(compilePattern(pattern, part), behavior, invert)];
    }
    case "Digits": {
      const together = !part.read(digitsSchema, step).individual_digits;
      return [cutBy(/\p{N}/gu, together ? "Contiguous" : "Isolated")];
    }
    case "Punctuation":
      return [cutBy(PUNCTUATION, part.read(punctuationSchema, step).behavior)];
    case "BertPreTokenizer":
      return [cutBy(/\p{White_Space}/gu, "Removed"), cutBy(PUNCTUATION, "Isolated")];
    case "CharDelimiterSplit": {
      const { delimiter } = part.read(z.looseObject({ delimiter: z.string().min(1) }), step);
      return [cutBy(compilePattern({ String: delimiter }, part), "Removed")];
    }
    case "WhitespaceSplit":
      return [cutBy(/\p{White_Space}/gu, "Removed")];
    case "Whitespace":
      return [matches(/[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]+|[^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\p{White_Space}]+/gu)]; // biome-ignore format: one line
    case "ByteLevel": {
      const { add_prefix_space: prefix, use_regex: regex } = part.read(byteLevelSchema, step);
      const blank: Cut = (pieces) => pieces.map((piece) => (piece.startsWith(" ") ? piece : ` ${piece}`));
      return [...(prefix ? [blank] : []), ...(regex ? [matches(GPT2)] : []), spell];
    }
    case "Metaspace":
      return metaspaceSteps(step, part);
    default:
      return part.unsupported(step.type);
  }
}

function metaspaceSteps(step: Step, part: Part): Cut[] {
  const { replacement: mark, split, ...given } = part.read(metaspaceSchema, step);
  const scheme = given.prepend_scheme ?? (given.add_prefix_space === false ? "never" : "always");
  const replace: Cut = (pieces, first) =>
    pieces.map((piece, at) => {
      const marked = piece.replaceAll(" ", mark);
      const prepend = scheme === "always" || (scheme === "first" && first && at === 0);
      return prepend && !marked.startsWith(mark) ? mark + marked : marked;
    });
  return split ? [replace, cutBy(compilePattern({ String: mark }, part), "MergedWithNext")] : [replace];
}

export function preTokenizerOf(step: Step | null | undefined, part: Part): PreTokenizer {
  const steps = step ? stepsOf(step, part) : [];
  const bytes = steps.at(-1) === spell;
  if (bytes) steps.pop();
  return {
    cut: (text, first) => {
      let pieces = text === "" ? [] : [text];
      for (const cut of steps) pieces = cut(pieces, first);
      return pieces;
    },
    bytes,
  };
}
