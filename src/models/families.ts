/** @file The table of model families. A further family is one file that reads its config.json, and one line here. */
import type { BackboneConfig } from "./config.ts";
import { llama } from "./families/llama.ts";

export interface Family {
  /** `model_type` of config.json. */
  readonly modelType: string;
  /** Entry of `architectures` in config.json. */
  readonly architecture: string;
  /** Reads config.json; throws InputError listing every field that is wrong or not supported. */
  config(raw: unknown, where: string): BackboneConfig;
}

export const FAMILIES: Readonly<Record<string, Family>> = { llama };

/** Names in a checkpoint that are known and not needed. */
export const IGNORED_TENSORS: readonly RegExp[] = [
  /\.self_attn\.rotary_emb\.inv_freq$/,
  /^model\.rotary_emb\.inv_freq$/,
];
