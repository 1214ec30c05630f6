/** @file Rotary positions in config.json: `rope_scaling` of transformers 4 and `rope_parameters` of transformers 5. */
import { z } from "zod";
import type { Rope, RopeScaling } from "../rope.ts";

const number = z.number({ error: "must be a number" });
const positive = number.positive("must be positive");

/** Its kind was first called `type`. */
export const ropeSchema = z.looseObject({
  rope_type: z.string().nullish(),
  type: z.string().nullish(),
  rope_theta: positive.nullish(),
  partial_rotary_factor: number.gt(0).max(1, "must be at most 1").nullish(),
  factor: number.min(1, "must be at least 1").nullish(),
  original_max_position_embeddings: positive.nullish(),
  low_freq_factor: positive.nullish(),
  high_freq_factor: positive.nullish(),
  attention_factor: number.min(0).nullish(),
  beta_fast: positive.nullish(),
  beta_slow: positive.nullish(),
  mscale: number.nullish(),
  mscale_all_dim: number.nullish(),
  truncate: z.boolean().nullish(),
  short_factor: z.array(positive).nullish(),
  long_factor: z.array(positive).nullish(),
});

export type RopeFields = z.output<typeof ropeSchema>;

/** What a family knows where the fields themselves do not say. */
export interface RopeContext {
  /** Name of the field, for messages. */
  readonly field: string;
  readonly theta: number;
  /** `max_position_embeddings` as the config has it. */
  readonly positions: number;
  /** Length of the first training where the family has a field of its own for it; else as in the fields. */
  readonly original?: number | undefined;
  /** Features of a head that are rotated. */
  readonly rotaryDim: number;
  /** Kinds under another name. */
  readonly aliases?: Readonly<Record<string, string>>;
}

/** What config.json says of rotary positions; problems are added to the list. Defaults and formulas are transformers'. */
export function readRope(fields: RopeFields, context: RopeContext, problems: string[]): Rope {
  const scaling = readScaling(fields, context, problems);
  return { theta: context.theta, ...(scaling && { scaling }) };
}

function readScaling(fields: RopeFields, context: RopeContext, problems: string[]): RopeScaling | undefined {
  const { field, positions, rotaryDim } = context;
  const given = fields.rope_type ?? fields.type ?? "default";
  const kind = context.aliases?.[given] ?? given;
  const original = context.original ?? fields.original_max_position_embeddings ?? positions;
  const needed = (name: "factor" | "low_freq_factor" | "high_freq_factor"): number => {
    const value = fields[name] ?? undefined;
    if (value === undefined) problems.push(`${field}.${name}: is missing`);
    return value ?? 1;
  };
  switch (kind) {
    case "default":
      return undefined;
    case "linear":
      return { kind, factor: needed("factor") };
    case "dynamic":
      return { kind, factor: needed("factor"), original: positions };
    case "llama3": {
      const [lowFreq, highFreq] = [needed("low_freq_factor"), needed("high_freq_factor")];
      if (highFreq < lowFreq) problems.push(`${field}.high_freq_factor: ${highFreq} is less than low_freq_factor`);
      return { kind, factor: needed("factor"), lowFreq, highFreq, original };
    }
    case "yarn": {
      const factor = fields.factor ?? positions / original;
      const scale = (m: number) => (factor <= 1 ? 1 : 0.1 * m * Math.log(factor) + 1);
      const { mscale, mscale_all_dim: all } = fields;
      const attention = fields.attention_factor ?? (mscale && all ? scale(mscale) / scale(all) : scale(1));
      const [betaFast, betaSlow] = [fields.beta_fast ?? 32, fields.beta_slow ?? 1];
      return { kind, factor, original, betaFast, betaSlow, attention, truncate: fields.truncate ?? true };
    }
    case "longrope": {
      const factor = fields.factor ?? positions / original;
      const attention =
        fields.attention_factor ?? (factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(original)));
      const [short, long] = (["short_factor", "long_factor"] as const).map((name) => {
        const list = fields[name] ?? [];
        if (list.length !== rotaryDim / 2) {
          problems.push(`${field}.${name}: has ${list.length} numbers, a head needs ${rotaryDim / 2}`);
        }
        return list;
      }) as [number[], number[]];
      return { kind, short, long, original, attention };
    }
    default:
      problems.push(
        `${field}.${fields.rope_type ? "rope_type" : "type"}: ${JSON.stringify(given)} is not supported (supported: default, linear, dynamic, llama3, yarn, longrope)`,
      );
      return undefined;
  }
}

/** Positions that a scaled model can read; a config often says only how many it was made for before. */
export function scaledPositions(scaling: RopeScaling | undefined, positions: number): number {
  switch (scaling?.kind) {
    case "linear":
    case "dynamic":
      return Math.round(positions * scaling.factor);
    case "yarn":
      return Math.max(positions, Math.round(scaling.original * scaling.factor));
    default:
      return positions;
  }
}
