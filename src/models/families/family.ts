/** @file What a model family is: the names by which config.json says so, and what its fields mean. */
import type { z } from "zod";
import { InputError } from "../../base/index.ts";
import type { BackboneConfig } from "../config.ts";

export interface Family {
  /** `model_type` of config.json. */
  readonly modelType: string;
  /** Entry of `architectures` in config.json. */
  readonly architecture: string;
  /**
   * Reads config.json, or what another format's metadata are in its terms: every field that changes numbers is
   * implemented or checked to be neutral. Throws InputError listing every field that is wrong or not supported.
   */
  config(raw: unknown, where: string): BackboneConfig;
}

/**
 * A family from the schema of its fields and what they mean together.
 * @param read adds to `problems` what is wrong with fields that are each valid; its result then counts for nothing
 */
export function family<S extends z.ZodType>({
  modelType,
  architecture,
  schema,
  read,
}: {
  readonly modelType: string;
  readonly architecture: string;
  readonly schema: S;
  read(data: z.output<S>, problems: string[]): Omit<BackboneConfig, "modelType">;
}): Family {
  return {
    modelType,
    architecture,
    config(raw, where) {
      const result = schema.safeParse(raw);
      const problems: string[] = [];
      const config = result.success ? { modelType, ...read(result.data, problems) } : undefined;
      for (const { path, message } of result.error?.issues ?? []) {
        problems.push(`${path.map(String).join(".")}: ${message}`);
      }
      if (config === undefined || problems.length > 0) throw new InputError("CONFIG_INVALID", where, problems);
      return config;
    },
  };
}
