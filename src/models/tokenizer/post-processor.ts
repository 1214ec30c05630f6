/** @file Post-processors of tokenizer.json: the special tokens before and after a text. */
import { z } from "zod";
import type { Part, Step } from "./schema.ts";

export interface Frame {
  readonly front: readonly number[];
  readonly back: readonly number[];
}

const sequenceSchema = z.looseObject({ processors: z.array(z.looseObject({ type: z.string() })) });
const id = z.number().int().min(0);
const pairSchema = z.looseObject({ cls: z.tuple([z.string(), id]), sep: z.tuple([z.string(), id]) });
const templateSchema = z.looseObject({
  single: z.array(
    z.union([
      z.looseObject({ SpecialToken: z.looseObject({ id: z.string() }) }),
      z.looseObject({ Sequence: z.looseObject({ id: z.enum(["A", "B"]) }) }),
    ]),
  ),
  special_tokens: z.record(z.string(), z.looseObject({ ids: z.array(id) })),
});

const NONE: Frame = { front: [], back: [] };

export function frameOf(step: Step | null | undefined, part: Part): Frame {
  if (!step) return NONE;
  switch (step.type) {
    case "ByteLevel":
      return NONE;
    case "Sequence": {
      const frames = part.read(sequenceSchema, step).processors.map((inner) => frameOf(inner, part));
      // A later one goes around what an earlier one has made.
      return {
        front: frames.toReversed().flatMap(({ front }) => front),
        back: frames.flatMap(({ back }) => back),
      };
    }
    case "BertProcessing":
    case "RobertaProcessing": {
      const { cls, sep } = part.read(pairSchema, step);
      return { front: [cls[1]], back: [sep[1]] };
    }
    case "TemplateProcessing": {
      const { single, special_tokens: specials } = part.read(templateSchema, step);
      const at = single.findIndex((piece) => "Sequence" in piece);
      if (at < 0 || single.filter((piece) => "Sequence" in piece).length > 1) part.unsupported("this template");
      const ids = single.map((piece) => {
        if (!("SpecialToken" in piece)) return [];
        const name = (piece.SpecialToken as { id: string }).id;
        return specials[name]?.ids ?? part.invalid(`special_tokens lacks "${name}"`);
      });
      return { front: ids.slice(0, at).flat(), back: ids.slice(at + 1).flat() };
    }
    default:
      return part.unsupported(step.type);
  }
}
