/** @file The parts of tokenizer.json, checked, and the error for those that are not known. */
import { z } from "zod";
import { InputError } from "../../base/index.ts";

const typed = z.looseObject({ type: z.string() });
export type Step = z.infer<typeof typed>;

const flag = z.boolean().default(false);

export const addedTokenSchema = z.looseObject({
  id: z.number().int().min(0),
  content: z.string(),
  single_word: flag,
  lstrip: flag,
  rstrip: flag,
  special: flag,
  normalized: z.boolean().optional(),
});
export type AddedToken = z.infer<typeof addedTokenSchema>;

export const tokenizerSchema = z.looseObject({
  model: z.looseObject({ type: z.string().optional() }),
  added_tokens: z.array(addedTokenSchema).default([]),
  normalizer: typed.nullish(),
  pre_tokenizer: typed.nullish(),
  post_processor: typed.nullish(),
  decoder: z.unknown().default(null),
});
export type TokenizerJson = z.infer<typeof tokenizerSchema>;

/** Where a tokenizer came from and which part is being read: errors name both. */
export class Part {
  readonly where: string;
  readonly name: string;

  constructor(where: string, name: string) {
    this.where = where;
    this.name = name;
  }

  unsupported(what: string, cause?: unknown): never {
    const problem = `${this.name}: ${what} is not supported`;
    throw new InputError("TOKENIZER_UNSUPPORTED", this.where, problem, { cause });
  }

  invalid(what: string): never {
    throw new InputError("TOKENIZER_INVALID", this.where, `${this.name}: ${what}`);
  }

  /** Checks a step's own fields. */
  read<S extends z.ZodType>(schema: S, value: unknown): z.infer<S> {
    const result = schema.safeParse(value);
    if (result.success) return result.data;
    const problems = result.error.issues.map(({ path, message }) => `${[this.name, ...path].join(".")}: ${message}`);
    throw new InputError("TOKENIZER_INVALID", this.where, problems);
  }
}

/** A pattern of Split and Replace: a text as it stands, or a regular expression. */
export const patternSchema = z.union([z.strictObject({ String: z.string() }), z.strictObject({ Regex: z.string() })]);
export type Pattern = z.infer<typeof patternSchema>;
