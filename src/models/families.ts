/** @file The table of model families. A further family is one file that reads its config.json, and one line here. */
import type { Family } from "./families/family.ts";
import { gemma, gemma2, gemma3 } from "./families/gemma.ts";
import { llama } from "./families/llama.ts";
import { mistral } from "./families/mistral.ts";
import { phi3 } from "./families/phi.ts";
import { qwen2, qwen3 } from "./families/qwen.ts";

export type { Family };

/** By `model_type`. */
export const FAMILIES: Readonly<Record<string, Family>> = Object.fromEntries(
  [llama, mistral, gemma, gemma2, gemma3, qwen2, qwen3, phi3].map((family) => [family.modelType, family]),
);

/** What is close to a family and not one, with what to do instead. */
export const REFUSED: Readonly<Record<string, string>> = {
  Gemma3ForConditionalGeneration:
    "sees pictures too; use a checkpoint of its language model alone, Gemma3ForCausalLM with text_config as config.json",
};

/** Names in a checkpoint that are known and not needed. */
export const IGNORED_TENSORS: readonly RegExp[] = [
  /\.self_attn\.rotary_emb\.inv_freq$/,
  /^model\.rotary_emb\.inv_freq$/,
];
